"""What samkit's dependencies would send to their makers, or leave behind: switched off before they are imported.

`import samkit` does it, in every command and every process of a server, because others than samkit import these
packages, too: torch's exporter does. Who set a variable himself keeps what he set.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SWITCHES = {"ORT_DISABLE_TELEMETRY": "1"}
"""Environment variables, and what switches off.

ONNX Runtime from 1.31 on sends events with names of model files and an id of the machine, and keeps both under
~/.cache/Microsoft. Only this variable stops it, and only before the import: `disable_telemetry_events()` does not.
"""

CACHES = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Environment variables that say where matplotlib and torch keep what they would leave in the user's home, or in the
temporary folder for all to see: lists of fonts, compiled graphs."""


def switch_off() -> None:
    """Set what the user has not set."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


@contextmanager
def own_caches() -> Iterator[None]:
    """Have a command's caches go with it, where the user has not said where they are kept.

    Their folder is made by whoever writes there first: most commands never do. Its name can't be guessed, so that no
    other user of the machine has made it before. What packages keep there is of no patient, and may be read.
    """
    place = Path(tempfile.gettempdir()) / f"samkit-{os.urandom(8).hex()}"
    ours = {name: str(place / name.lower()) for name in CACHES if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        shutil.rmtree(place, ignore_errors=True)
