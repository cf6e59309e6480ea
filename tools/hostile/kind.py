"""What a hostile file is: how it is made, what the command that is given it has to answer, and at which cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TypeAlias

Make: TypeAlias = Callable[[Path, Random], Path]
"""Makes the input in a folder, which is there and is empty of it, and returns its path."""


@dataclass(frozen=True)
class Kind:
    """A way in which an input is hostile."""

    name: str
    make: Make
    says: str
    """What the sentence holds, a regular expression; of an input that is taken, what a warning holds."""
    code: int = 3
    """The exit code: 3 refused, 2 usage, 1 a stage failed, 0 taken."""
    count: int = 1
    """How many files of it are made, each from a seed of its own."""
    grid: int = 0
    """Voxels of the scan where these have to be read; 0 where the header, or the size, is enough."""
    doors: tuple[str, ...] = ()
    """Only these of the doors that take such an input; empty for all."""
    is_unreadable: bool = False
    """Whether it is refused for its mode, which the superuser does not heed."""


@dataclass(frozen=True)
class Case:
    """One hostile file on its way to one door."""

    kind: Kind
    door: str
    number: int
    seed: int

    @property
    def name(self) -> str:
        """Return what it is called in tables, and by `--only`."""
        return f"{self.kind.name}.{self.number} > {self.door}"

    @cached_property
    def chance(self) -> Random:
        """Return what decides where it is cut, and which bits are turned: the same for every door."""
        return Random(f"{self.seed} {self.kind.name} {self.number}")  # noqa: S311  # no secret


def of_bytes(name: str, content: Callable[[Random], bytes] | bytes) -> Make:
    """Return what makes a file of that name and content."""

    def make(folder: Path, chance: Random) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content(chance))
        return path

    return make


def changed(content: Callable[[], bytes], *changes: Change) -> Callable[[Random], bytes]:
    """Return good content, changed in one way after the other."""

    def made(chance: Random) -> bytes:
        data = content()
        for change in changes:
            data = change(data, chance)
        return data

    return made


Change: TypeAlias = Callable[[bytes, Random], bytes]


def cut(data: bytes, chance: Random) -> bytes:
    """Return the beginning of `data`."""
    return data[: chance.randrange(len(data) // 10, len(data) * 9 // 10)]


def flip(data: bytes, chance: Random, *, start: float = 0.2, end: float = 0.9) -> bytes:
    """Return `data` with one bit of its middle turned."""
    at = chance.randrange(int(len(data) * start), int(len(data) * end))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def put(at: int, content: bytes) -> Change:
    """Return what puts `content` in the place of what is at byte `at`."""
    return lambda data, chance: data[:at] + content + data[at + len(content) :]


HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 93735728\n"
OTHERS: Sequence[tuple[str, bytes]] = (
    ("empty", b""), ("html", HTML), ("lfs", LFS), ("zeros", bytes(4096)), ("text", b"patient 4711\n" * 40),
    ("zip", b"PK\3\4" + bytes(200)), ("pickle", b"\x80\2}q\0."), ("elf", b"\x7fELF\2\1\1" + bytes(500)),
)  # fmt: skip
"""What downloads and mistakes leave under any name."""
