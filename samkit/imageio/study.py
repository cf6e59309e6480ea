"""What is segmented together: one scan, co-registered scans by sequence, or one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samkit.errors import InputRefused
from samkit.geometry import Volume
from samkit.imageio.reading import is_picture, read_picture, read_scan
from samkit.imageio.scan import Scan


@dataclass(frozen=True)
class Study:
    """Scans by sequence, or a picture, and the files that they came from."""

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
    def image(self) -> Mapping[str, Volume] | np.ndarray:
        """Return what a session is given: the volumes by sequence, or the picture."""
        return {name: scan.volume for name, scan in self.scans.items()} if self.picture is None else self.picture

    @property
    def sources(self) -> tuple[Path, ...]:
        """Return all files that were read."""
        return tuple(file for scan in self.scans.values() for file in scan.files) or tuple(self.files.values())

    def __str__(self) -> str:
        """Return names and size, as a person reads them."""
        if self.picture is not None:
            (path,) = self.files.values()
            return f"{path.name}: {self.picture.shape[1]} x {self.picture.shape[0]} pixels"
        names = ", ".join(f"{name} {scan.path.name}".strip() for name, scan in self.scans.items())
        volume = self.scan.volume
        return f"{names}: {_by(volume.array.shape)} voxels of {_by(volume.spacing)} mm"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what looks unusual in the scans."""
        return tuple(dict.fromkeys(warning for scan in self.scans.values() for warning in scan.warnings))


def _by(sides: tuple[float, ...]) -> str:
    return " x ".join(f"{side:g}" for side in sides)


def read_study(files: Mapping[str, Path]) -> Study:
    """Read `files`, by sequence, through the gate; raises InputRefused, also for a picture that is not alone."""
    pictures = [path for path in files.values() if is_picture(path)]
    if not pictures:
        return Study(files, {name: read_scan(path) for name, path in files.items()}, None)
    if len(files) > 1:
        raise InputRefused(
            "pictures", f"{len(files)} inputs are given, and {pictures[0].name} among them is a picture",
            "give one picture with a channel for each sequence",
        )  # fmt: skip
    return Study(files, {}, read_picture(pictures[0]))
