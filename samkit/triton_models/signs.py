"""Signs: what `sam-serve start` and the Python models of its server tell each other, by files in a folder of theirs.

    watched    somebody starts again what dies, so that a call to a model that is away is worth another try
    stopping   nothing new is begun
    at-work    locked by every process while it works on requests

In NVIDIA's container nobody gives signs, and nothing waits for any. A file, because a model hears of nothing else
without a thread of its own; a lock, because Linux opens that of a process which died.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

VARIABLE = "SAMKIT_SIGNS"
"""In the environment of a server: where its signs are."""
_REST = 3
"""How often in a row nobody may be found at work: between two steps of an ensemble nobody is, for a moment."""


class Signs:
    """The signs of one server, as either side gives and reads them."""

    def __init__(self, folder: Path) -> None:
        """Use the files in `folder`, which is there."""
        self._watched, self._stopping, self._at_work = (folder / n for n in ("watched", "stopping", "at-work"))
        self._lock = threading.Lock()
        self._busy = 0
        self._file: int | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """Return the signs that a model's environment tells of; None where there are none."""
        folder = environment.get(VARIABLE)
        return None if folder is None else cls(Path(folder))

    @property
    def is_watched(self) -> bool:
        """Whether somebody starts again what dies."""
        return self._watched.exists()

    @property
    def is_stopping(self) -> bool:
        """Whether nothing new is to be begun."""
        return self._stopping.exists()

    def say_watched(self) -> None:
        """Say that what dies is started again."""
        self._watched.touch()

    def say_stopping(self) -> None:
        """Say that nothing new is to be begun."""
        self._stopping.touch()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the other side see that a request is worked on."""
        with self._lock:
            if self._file is None:
                self._file = os.open(self._at_work, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._busy += 1
            if self._busy == 1:
                fcntl.flock(self._file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                if self._busy == 0:
                    fcntl.flock(self._file, fcntl.LOCK_UN)

    def wait_for_rest(self, seconds: float) -> bool:
        """Return whether nobody is at work any more, within `seconds`."""
        until, free = time.monotonic() + seconds, 0
        while free < _REST:
            free = free + 1 if self._is_free() else 0
            if free < _REST and time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def _is_free(self) -> bool:
        file = os.open(self._at_work, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing opens it again
        except BlockingIOError:
            return False
        finally:
            os.close(file)
        return True
