"""What is no regular file, whatever its name: pipes, folders, devices, links to nowhere, files nobody may read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from tools.hostile.kind import Kind, Make, of_bytes


def fifo(name: str) -> Make:
    """Return what makes a pipe that nobody writes into."""

    def make(folder: Path, chance: Random) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def link(name: str, target: str) -> Make:
    """Return what makes a link."""

    def make(folder: Path, chance: Random) -> Path:
        (folder / name).symlink_to(target)
        return folder / name

    return make


def folder_of(name: str) -> Make:
    """Return what makes a folder where a file should be."""

    def make(folder: Path, chance: Random) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


def unreadable(name: str, content: Callable[[], bytes]) -> Make:
    """Return what makes a file that nobody may read."""

    def make(folder: Path, chance: Random) -> Path:
        path = of_bytes(name, content())(folder, chance)
        path.chmod(0)
        return path

    return make


def absent(name: str) -> Make:
    """Return what only names a file."""
    return lambda folder, chance: folder / name


def no_files(
    name: str, content: Callable[[], bytes], doors: tuple[str, ...], missing: str, code: int = 3
) -> tuple[Kind, ...]:
    """Return kinds that are no regular files, for `doors` that are given the path itself."""
    return tuple(
        Kind(what, make, says, code, doors=doors, is_unreadable=what == "unreadable")
        for what, make, says in (
            ("pipe", fifo(name), "is no regular file"),
            ("folder", folder_of(name), "is no regular file|is a (folder|directory)"),
            ("device", link(name, "/dev/zero"), "is no regular file"),
            ("link in circles", link(name, name), "Too many levels"),
            ("link to nothing", link(name, "nothing"), missing),
            ("absent", absent(name), missing),
            ("long name", absent("x" * 300 + name), "File name too long"),
            ("unreadable", unreadable(name, content), "ermission denied"),
        )
    )
