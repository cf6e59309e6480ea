"""Kernels that TensorRT for RTX compiled on this machine's GPU, kept between sessions in the user's own cache folder:
`$XDG_CACHE_HOME/samkit/kernels`, or `~/.cache/samkit/kernels`.

Kernels are native code, so a file is loaded only from there, and only if this user owns it, nobody else may write to
it, it is of this engine, GPU, driver and library, and its bytes have the SHA-256 of its first line. Whatever is else is
dropped: to be without one costs a compilation, and no run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from samkit.errors import SamkitError
from samkit.files import reason_of, where_known, write_whole

_log = logging.getLogger(__name__)

MOST_BYTES = 100 << 20
"""Of one engine's kernels: TensorRT for RTX 1.0 was slow to load more."""
FOLDER_BYTES = 1 << 30
"""Of all together; what was written first goes first."""
ENDING = ".kernels"
_BOUND_TO = ("gpu", "compute_capability", "driver", "cuda_driver")


class RuntimeCache:
    """The kernels of one engine on one GPU, driver and release of the library."""

    def __init__(self, engine: bytes, version: str, here: Mapping[str, str]) -> None:
        """Find the file of a serialised engine; `version` is the library's, `here` what `describe_device` says."""
        self._binding = {
            "engine": hashlib.sha256(engine).hexdigest(),
            "library": version,
            **{fact: here[fact] for fact in _BOUND_TO},
        }
        folder = _cache_folder()
        parts = (here["gpu"], here["compute_capability"], here["driver"], version, self._binding["engine"][:16])
        name = re.sub(r"[^\w.]+", "-", "-".join(parts), flags=re.ASCII)
        self.path = None if folder is None else folder / f"{name}{ENDING}"
        self._known = b""

    def read(self) -> bytes:
        """Return the kernels; none where there are none, or none that may be loaded, which are dropped."""
        if self.path is None:
            return b""
        try:
            content = self._read(self.path)
        except FileNotFoundError:
            return b""
        except (OSError, ValueError) as error:
            _log.info("kernels in %s are not used: %s; they are compiled anew", self.path.name, reason_of(error))
            with suppress(OSError):
                self.path.unlink()
            return b""
        self._known = content
        return content

    def _read(self, path: Path) -> bytes:
        """Return the kernels of a file; raises ValueError with what keeps them from being loaded."""
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
                raise ValueError("the file is not this user's alone")
            if facts.st_size > MOST_BYTES + (1 << 12):  # and the first line
                raise ValueError(f"the file has {facts.st_size} bytes, more than is kept")
            header, _, kernels = file.read().partition(b"\n")
        wanted = {**self._binding, "sha256": hashlib.sha256(kernels).hexdigest()}
        if json.loads(header) != wanted:
            raise ValueError("the file changed, or is of another engine or machine")
        return kernels

    def write(self, kernels: bytes) -> None:
        """Keep kernels, if they are others than were read; that they can't be is a warning."""
        if self.path is None or kernels == self._known:
            return
        if len(kernels) > MOST_BYTES:
            _log.info("kernels of %d MB are not kept, at most %d are", len(kernels) >> 20, MOST_BYTES >> 20)
            return
        header = json.dumps({**self._binding, "sha256": hashlib.sha256(kernels).hexdigest()}).encode()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            where_known(self.path.parent.chmod, 0o700)
            write_whole(self.path, header + b"\n" + kernels)
            where_known(self.path.chmod, 0o600)
            self._make_room(self.path)
        except (OSError, SamkitError) as error:
            _log.warning(
                "kernels can't be kept in %s (%s), so the next session compiles them again; make room, or name another "
                "folder with XDG_CACHE_HOME",
                self.path.parent,
                reason_of(error),
            )
            return
        self._known = kernels

    @staticmethod
    def _make_room(newest: Path) -> None:
        """Remove the files written first, until all fit; never the newest."""
        there = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in newest.parent.glob(f"*{ENDING}"))
        total = sum(size for _, size, _ in there)
        for _, size, path in there:
            if total > FOLDER_BYTES and path != newest:
                path.unlink(missing_ok=True)
                total -= size


def _cache_folder() -> Path | None:
    """Return the folder; None where this user has no home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (given if given.is_absolute() else Path.home() / ".cache") / "samkit" / "kernels"
    except RuntimeError:
        return None
