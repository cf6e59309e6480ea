"""A command under watch: what it looks up, speaks to and writes, itself and all that it starts (watch.c says how)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_name("watch.c")
_PLACES = ("HOME", "TMPDIR", "OUT", "CWD")
_OWN_PLACES = ("XDG_", "MPL", "TORCH", "TRITON", "ORT_")
"""What would lead a package away from the places that are watched, or switch off what is to be seen."""
_TEMPORARY = ("/tmp/", "/dev/shm/")  # noqa: S108
"""Triton's Python backend takes the former whatever TMPDIR says."""
_SERVERS_MEMORY = "/dev/shm/samkit_"  # noqa: S108
_CACHES = "samkit-"
"""How the folders of samkit.telemetry.own_caches begin."""
_NO_FILES = ("/dev/", "/proc/")


@dataclass
class Watched:
    """Places of a command, each of which is looked into when it has ended."""

    library: Path
    root: Path
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.root / "log"
        for name in _PLACES:
            (self.root / name).mkdir(exist_ok=True)

    @property
    def out(self) -> Path:
        """What a command is asked to write lies here."""
        return self.root / "OUT"

    def start(self, words, **options) -> subprocess.Popen:
        """Start `python WORDS`, in an empty folder, with an empty home and an empty folder for what is temporary."""
        self.log.unlink(missing_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_PLACES)}
        environment |= {name: str(self.root / name) for name in ("HOME", "TMPDIR")}
        environment |= {
            "SAMKIT_WATCH": str(self.log),
            "LD_PRELOAD": str(self.library),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, *map(str, words)]
        return subprocess.Popen(command, env=environment, cwd=self.root / "CWD", text=True, **options)

    def seen(self) -> list[str]:
        """Return every look-up and every address beyond this machine, and each file outside of what was asked for.

        A temporary file, or one of /dev/shm, may be made but not left, and no other user may read it, but for what
        holds no data: caches of packages, and the memory that a server shares with its models until they are loaded,
        whose mode from then on tests/e2e/test_server.py looks at.
        """
        lines = {tuple(line.split("\t")) for line in self.log.read_text().splitlines()} if self.log.is_file() else set()
        found = []
        for program, kind, what in sorted(lines):
            is_asked_for = kind == "write" and (
                Path(what).is_relative_to(self.out)
                or (Path(what).is_relative_to(self.root / "TMPDIR") and not Path(what).exists())
                or (what.startswith(_TEMPORARY) and not Path(what).exists())
                or (what.startswith(_NO_FILES) and not what.startswith(_TEMPORARY))
            )
            is_asked_for |= kind == "shown" and what.startswith((_SERVERS_MEMORY, str(self.root / "TMPDIR" / _CACHES)))
            if not is_asked_for:
                found.append(f"{program}: {kind} {what}")
        for name in ("HOME", "TMPDIR", "CWD"):  # by whatever way they came there
            found += [f"left: {path}" for path in sorted((self.root / name).rglob("*"))]
            shutil.rmtree(self.root / name)  # the next command finds nothing again
            (self.root / name).mkdir()
        return found


def watched(root: Path) -> Watched:
    """Return a place to run commands under watch; skips where there is no C compiler or it is not Linux."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or sys.platform != "linux":
        pytest.skip("to watch a command needs Linux and a C compiler (cc, gcc or clang)")
    library = root / "watch.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
    return Watched(library, root)
