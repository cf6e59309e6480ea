"""Files that are written whole or not at all, folders to work in, and what a process that was killed left of both.

What is not finished lies hidden beside the place it is for, under `.samkit-MACHINE-...`, and whoever writes it holds a
lock on it. The system takes the lock away when the process ends, however it ends: so the next one that writes there
knows what nobody works on any more, and removes it. A machine sees its own locks alone on some shares, and so each
removes its own leftovers only.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from samkit.errors import OptionError, SamkitError

_NOT_KNOWN = frozenset({errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What a share answers that has no modes or no fsync. EIO and ENOSPC are none of these: there the file is not safe."""

_swept: set[Path] = set()
"""Where this process has looked for leftovers: once is enough, and a listing of a large folder takes its time."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when all of it is written; until then `path` stays as it was.

    Raises SamkitError where the system refuses it.
    """
    try:
        _remove_leftovers(path.parent)
        part, handle = _new_part(path.parent)
        try:
            with os.fdopen(os.dup(handle), "wb") as file:  # closed before the file moves: a share may fail only then
                yield file
                file.flush()
                where_known(os.fsync, file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one move; raises SamkitError where the system refuses it."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def working_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give a folder to work in, hidden in `parent` or among the temporary ones; it is gone when it is left."""
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_leftovers(parent)
    folder, handle = _new_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def given_path(given: str | os.PathLike, what: str) -> Path:
    """Return a path that was given in Python, `~` being what it is in a shell; `what` is how messages call it.

    Raises OptionError for what no file can be called.

    >>> given_path("scan.nii.gz", "the image")
    PosixPath('scan.nii.gz')
    """
    text = os.fsdecode(given)
    if not text or "\0" in text:
        raise OptionError(f"{what} is {text!r:.80}, and no file has such a name; give the path of one that you mean")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home of a user that there is not: a file may be called so
        return Path(text)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing; raises SamkitError where the system refuses it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SamkitError(f"the folder {path} can't be made ({reason_of(error)}); name another place") from error


def where_known(call: Callable[..., object], *arguments: Any) -> None:
    """Make a call such as chmod or fsync, where the file system knows it: what is written is as good without."""
    try:
        call(*arguments)
    except OSError as error:
        if error.errno not in _NOT_KNOWN:
            raise


def cannot_write(path: Path, error: Exception) -> SamkitError:
    """Return what to tell of a file that the system does not let us write."""
    return SamkitError(f"{path.name} can't be written ({reason_of(error)}); make room, or write elsewhere")


def reason_of(error: Exception) -> str:
    """Return why a file could not be had, where the system says it without the file's name.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "scan.nii"))
    'No such file or directory'
    """
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# --- Locks, and what nobody holds any more ---


def _new_part(parent: Path) -> tuple[Path, int]:
    while True:
        part = parent / f"{_prefix()}{secrets.token_hex(4)}.part"
        # The mode of any new file: no chmod is needed, which not every share knows
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if _lock(handle, part):
            return part, handle


def _new_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(), dir=parent))
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if _lock(handle, folder):
            return folder, handle


def _lock(handle: int, path: Path) -> bool:
    """Take the lock of what was just made; return whether it is still there, and nobody removed it before."""
    with suppress(OSError):  # a share without locks: nobody can take it there, so it is never taken for a leftover
        fcntl.flock(handle, fcntl.LOCK_EX)  # not NB: who removes what it takes for a leftover is to be done with it
    if path.exists():
        return True
    os.close(handle)
    return False


def _remove_leftovers(parent: Path) -> None:
    """Remove what processes of this machine left in a folder that ended before they could."""
    if parent in _swept:
        return
    _swept.add(parent)
    with suppress(OSError):  # whether the folder can be written in is for whoever writes to say
        for path in [*parent.glob(f"{_prefix()}*")]:
            _remove_unless_held(path)


def _remove_unless_held(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # another user's, or gone
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return  # somebody is at work on it
    finally:
        os.close(handle)


@cache
def _prefix() -> str:
    """Return how the names of unfinished files begin on this machine, as long as it runs."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        machine = platform.node()
    return f".samkit-{hashlib.sha256(machine.encode()).hexdigest()[:8]}-"
