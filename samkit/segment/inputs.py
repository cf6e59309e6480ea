"""What `-i` may name: a scan, co-registered sequences one by one or in a folder, or a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from samkit.errors import InputRefused
from samkit.imageio.nifti import SCAN_SUFFIXES, Scan, read_scan, scan_files
from samkit.imageio.pictures import SUFFIXES, is_picture, read_picture
from samkit.methods.method import Method, SliceMethod
from samkit.sequences import choose, sequence_of, sort_files


@dataclass(frozen=True)
class Given:
    """What is to be segmented: scans by sequence, or a picture."""

    files: Mapping[str, Path]
    """By sequence; the name is empty where the file was given without one."""
    scans: Mapping[str, Scan]
    """The same, read; empty for a picture."""
    picture: np.ndarray | None
    """(H, W, C) float32, 0..255; None for scans."""

    @property
    def scan(self) -> Scan:
        """Return the first scan: what is written has its geometry."""
        return next(iter(self.scans.values()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what looks unusual in the scans."""
        return tuple(dict.fromkeys(warning for scan in self.scans.values() for warning in scan.warnings))


def find_inputs(texts: Sequence[str], method: Method, config: Any, patterns: Mapping[str, str]) -> dict[str, Path]:
    """Return the files that `-i` names, by sequence; the name is empty for a file given without one.

    Raises InputRefused where the method can't use what was given, click.UsageError for what is no such option.
    """
    wanted = method.sequences(config) if isinstance(method, SliceMethod) else ()
    named = [_split(text) for text in texts]
    if patterns and not (len(named) == 1 and named[0][1].is_dir()):
        raise click.UsageError(
            "--sequence says which file of a folder is meant; give a folder with -i, or -i NAME=FILE"
        )
    if len(named) == 1 and not named[0][0]:
        ((_, path),) = named
        if path.is_dir():
            return _in_folder(path, method.name, wanted, patterns)
        return {"": path}
    if without := [path.name for name, path in named if not name]:
        raise click.UsageError(
            f"of several -i each names its sequence, and {without[0]} does not; e.g. -i t1c=a.nii.gz -i t2w=b.nii.gz"
        )
    files: dict[str, Path] = {}
    for said, path in named:
        name = said if said in wanted else sequence_of(said) or said
        if name in files:
            raise click.UsageError(f"-i names {name} twice, {files[name].name} and {path.name}; give one of them")
        files[name] = path
    return files


def read_inputs(files: Mapping[str, Path], method: Method) -> Given:
    """Read what `find_inputs` found; raises InputRefused."""
    pictures = [path for path in files.values() if is_picture(path)]
    if not pictures:
        return Given(files, {name: read_scan(path) for name, path in files.items()}, None)
    if not isinstance(method, SliceMethod):
        raise InputRefused(
            "picture", f"{pictures[0].name} is a picture, and {method.name} works on volumes", "give a scan of 3D NIfTI"
        )
    if len(files) > 1:
        raise InputRefused(
            "pictures", f"{len(files)} inputs are given, and {pictures[0].name} among them is a picture",
            "give one picture with a channel for each sequence",
        )  # fmt: skip
    return Given(files, {}, read_picture(pictures[0]))


def source_files(path: Path) -> tuple[Path, ...]:
    """Return all files that reading `path` touches; raises InputRefused for what can't be an image by its name."""
    if is_picture(path):
        return (path,)
    if not path.name.endswith(SCAN_SUFFIXES):
        raise InputRefused(
            "not-nifti", f"{path.name} is not a NIfTI file by its name",
            f"needed is one of {', '.join((*SCAN_SUFFIXES, *SUFFIXES))}",
        )  # fmt: skip
    return scan_files(path)


def _split(text: str) -> tuple[str, Path]:
    """Return sequence and file of `NAME=FILE`; a file that is there may have any name."""
    name, found, rest = text.partition("=")
    if not found or not re.fullmatch(r"\w+", name) or Path(text).exists():
        return "", Path(text)
    return name.lower(), Path(rest)


def _in_folder(folder: Path, method: str, wanted: Sequence[str], patterns: Mapping[str, str]) -> dict[str, Path]:
    if not wanted:
        raise InputRefused(
            "folder", f"{folder.name} is a folder, and {method} takes one scan or picture", "give the file itself"
        )
    found = sort_files((path for path in folder.iterdir() if path.name.endswith(SCAN_SUFFIXES)), patterns)
    return dict(zip(wanted, choose(found, wanted), strict=True))
