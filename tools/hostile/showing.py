"""One hostile file shown to one door, in this process: what came of it, and what of that is not as it should be."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tools.hostile.doors import Door, Goods, Stage
from tools.hostile.kind import Case

MOST_SECONDS, MOST_BYTES = 2.0, 200 * 10**6
"""What a file may cost that its header or its size refuses: of the processor, and above what the process has."""
MOST_GRIDS, SLACK = 3, 64 * 2**20
"""What any other may take: float32 grids of its scan, and bytes for the rest of the command."""
LONGEST = 4000
"""Characters of a sentence."""
_BEFORE = b"written before"


@dataclass(frozen=True)
class Shown:
    """What a door made of a file."""

    code: int | None
    """None where an exception came out that is nobody's sentence."""
    lines: tuple[str, ...]
    """Of stderr; of an exception, its traceback."""
    stdout: str
    seconds: float
    """Of the processor."""
    taken: int
    """Bytes of the peak above the start."""
    changed: tuple[str, ...]
    """What in the folder is other than before, or new, or gone."""


def show(case: Case, door: Door, goods: Goods, folder: Path) -> Shown:
    """Make the file of a case in a folder of its own below `folder`, and show it to its door."""
    stage = Stage(Path(tempfile.mkdtemp(dir=folder)), goods)
    for name in (door.where, "out", "work", "tmp"):
        (stage.root / name).mkdir(parents=True)
    path = case.kind.make(stage.root / door.where, case.chance)
    door.beside(stage, path)
    if case.number % 2:
        for name in door.replaces:
            (stage.out / name).write_bytes(_BEFORE)
    words = [os.fspath(word) if isinstance(word, Path) else str(word) for word in door.words(stage, path)]
    before = _seen(stage.root)
    stdout = io.StringIO()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as file:
        with (
            _in_place(stage.root),
            _stderr(file),
            redirect_stdout(stdout),
            _mode_heeded(case.kind.is_unreadable),
            door.within(),
        ):
            _forget_peak()
            held, started = _now(), time.process_time()
            code, trace = _ended(door, words)
            seconds, taken = time.process_time() - started, max(0, _peak() - held)
        file.seek(0)
        lines = (*file.read().splitlines(), *trace)
    differs = sorted({name for name, _ in before.items() ^ _seen(stage.root).items()})
    return Shown(code, lines, stdout.getvalue(), seconds, taken, tuple(differs))


def judge(case: Case, door: Door, shown: Shown) -> list[str]:
    """Return what is not as it should be, in half sentences."""
    kind = case.kind
    others = [line for line in shown.lines if not re.match(door.tells, line)]
    if door.is_list:
        others = [line for line in others if not line.startswith(f"{door.program}: ")] or others[-1:]
    sentence = others[-1] if others else ""
    is_taken = kind.code == 0
    allowed = door.writes if is_taken else ()
    strange = [
        name for name in shown.changed
        if not any(name == f"out/{one}" or (one.endswith("/") and name.startswith(f"out/{one}")) for one in allowed)
    ]  # fmt: skip
    most = MOST_GRIDS * 4 * kind.grid + SLACK if kind.grid else MOST_BYTES
    heard = "\n".join(shown.lines) if is_taken or door.is_list else sentence
    return [
        text
        for is_wrong, text in (
            (shown.code != kind.code, f"ended with {shown.code}, and not {kind.code}"),
            (not is_taken and len(others) != 1, f"{len(others)} lines where one sentence is due"),
            (not is_taken and not sentence.startswith(f"{door.program}: "), "the sentence does not name the command"),
            (len(sentence) > LONGEST, f"the sentence has {len(sentence)} characters"),
            (not re.search(kind.says, heard), f"nothing says {kind.says!r}"),
            (not is_taken and shown.stdout, f"stdout holds {shown.stdout[:60]!r}"),
            (strange, f"changed: {', '.join(strange[:3])}"),
            (shown.seconds > MOST_SECONDS and not kind.grid, f"it took {shown.seconds:.1f} s"),
            (shown.taken > most, f"it took {shown.taken >> 20} MiB"),
        )
        if is_wrong
    ]


def _ended(door: Door, words: list[str]) -> tuple[int | None, tuple[str, ...]]:
    """Return how a command ends, and the traceback of what is no sentence."""
    argv, sys.argv = sys.argv, words
    try:
        import_module(door.main).main()
    except SystemExit as ended:
        return int(ended.code or 0), ()
    except BaseException as error:
        return None, tuple("".join(traceback.format_exception(error)).splitlines())
    finally:
        sys.argv = argv
    return 0, ()


def _seen(root: Path) -> Mapping[str, object]:
    """Return what lies below a folder: times and sizes of all, and the content of what was written before."""
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        facts = path.lstat()
        times = facts.st_mtime_ns if not path.is_dir() or path.is_symlink() else 0
        found[str(path.relative_to(root))] = (facts.st_mode, facts.st_size if times else 0, times)
    return found


@contextmanager
def _in_place(root: Path) -> Iterator[None]:
    """Work in a folder of the case, with temporary files in another: what is left in either is seen."""
    here, kept = Path.cwd(), (tempfile.tempdir, os.environ.get("TMPDIR"))
    logger = logging.getLogger("samkit")
    handlers, level, propagates = list(logger.handlers), logger.level, logger.propagate
    os.chdir(root / "work")
    tempfile.tempdir = os.environ["TMPDIR"] = str(root / "tmp")
    try:
        yield
    finally:
        os.chdir(here)
        tempfile.tempdir = kept[0]
        if kept[1] is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = kept[1]
        logger.handlers[:], logger.propagate = handlers, propagates
        logger.setLevel(level)


@contextmanager
def _stderr(file: io.TextIOWrapper) -> Iterator[None]:
    """Have all that goes to stderr, libraries' own words too, in a file."""
    sys.stderr.flush()
    own, kept = sys.stderr, os.dup(2)
    os.dup2(file.fileno(), 2)
    sys.stderr = file
    try:
        yield
    finally:
        file.flush()
        sys.stderr = own
        os.dup2(kept, 2)
        os.close(kept)


# --- Memory ---


def _forget_peak() -> None:
    with suppress(OSError):  # then the peak of all before counts, which hides what is smaller
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- The superuser ---


@contextmanager
def _mode_heeded(wanted: bool) -> Iterator[None]:
    """Let the superuser be refused as others are: what a file's mode says holds for this thread, too."""
    if not wanted or os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(head, sets):
        raise OSError(ctypes.get_errno(), "capget")
    kept = sets[0]
    sets[0] &= ~_PASSES_MODES
    if libc.capset(head, sets):
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        sets[0] = kept
        libc.capset(head, sets)


_CAPABILITIES_3 = 0x20080522
_PASSES_MODES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
