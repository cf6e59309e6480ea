"""What is segmented together: one scan, co-registered scans by sequence, or one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np

from samkit.errors import InputRefused, OptionError
from samkit.geometry import Volume
from samkit.imageio.frames import Doubt
from samkit.imageio.gate import MAX_BYTES
from samkit.imageio.reading import is_picture, read_picture, read_scan
from samkit.imageio.scan import Scan
from samkit.intensities import STORED, Limits


@dataclass(frozen=True)
class Study:
    """Scans by sequence, or a picture, and the files that they came from; all of it has passed the gate."""

    files: Mapping[str, Path]
    """By sequence; the name is empty where the file was given without one. What was given in memory has none here."""
    scans: Mapping[str, Scan]
    """By sequence; empty for a picture."""
    picture: np.ndarray | None
    """(H, W) or (H, W, C) float32, 0..255; None for scans."""
    volume: int | None = None
    """Which volume of files of several was read; None where nobody chose one."""
    assume_ras: bool = False
    """Whether the user vouches for the axes of scans that do not say where their voxels lie."""
    picture_limits: Limits = STORED
    """What became 0 and 255 of the picture."""

    @property
    def scan(self) -> Scan:
        """Return the first scan: what is written has its geometry."""
        return next(iter(self.scans.values()))

    @property
    def image(self) -> Mapping[str, Volume] | np.ndarray:
        """Return what the networks see of it: the volumes by sequence, or the picture."""
        return {name: scan.volume for name, scan in self.scans.items()} if self.picture is None else self.picture

    @property
    def sources(self) -> tuple[Path, ...]:
        """Return all files that were read, or that images in memory came from."""
        return tuple(file for scan in self.scans.values() for file in scan.files) or tuple(self.files.values())

    def __str__(self) -> str:
        """Return names and size, as a person reads them."""
        if self.picture is not None:
            names = ", ".join(path.name for path in self.files.values()) or "the picture given"
        else:
            names = ", ".join(f"{name} {scan.name}".strip() for name, scan in self.scans.items())
        return f"{names}: {self.size}"

    def __repr__(self) -> str:
        """Return what it is; names of files may be a patient's."""
        return f"<Study: {', '.join(filter(None, self.scans)) or ('scan' if self.scans else 'picture')}, {self.size}>"

    @property
    def size(self) -> str:
        """Return the sides of the picture or of the first scan, as a person reads them."""
        if self.picture is not None:
            return f"{self.picture.shape[1]} x {self.picture.shape[0]} pixels"
        return str(self.scan.volume)

    @property
    def doubt(self) -> Doubt | None:
        """Return why left and right are not known; None where they are, one of its scans says so, or the user does."""
        doubts = [scan.doubt for scan in self.scans.values()]
        found = doubts[0] if doubts and None not in doubts else None
        return None if found is not None and self.assume_ras and not found.is_mirrored else found

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what looks unusual in the scans."""
        return tuple(dict.fromkeys(warning for scan in self.scans.values() for warning in scan.warnings))


def read_study(
    files: Mapping[str, Path],
    *,
    volume: int | None = None,
    max_bytes: int = MAX_BYTES,
    assume_ras: bool = False,
    one_slice: bool = False,
) -> Study:
    """Read `files`, by sequence, through the gate; raises InputRefused, also for a picture that is not alone.

    `volume` is which one, from 0 on, of files that hold several, `max_bytes` the most that the voxels of one may take
    as they are stored; `assume_ras` is as in Study, `one_slice` as for `read_scan`.
    """
    pictures = [path for path in files.values() if is_picture(path)]
    if not pictures:
        scans = {
            name: read_scan(path, volume=volume, max_bytes=max_bytes, one_slice=one_slice)
            for name, path in files.items()
        }
        return Study(files, scans, None, volume, assume_ras)
    if len(files) > 1:
        raise InputRefused(
            "pictures", f"{len(files)} inputs are given, and {pictures[0].name} among them is a picture",
            "give one picture with a channel for each sequence",
        )  # fmt: skip
    check_no_volume(volume)
    picture = read_picture(pictures[0])
    return Study(files, {}, picture.array, picture_limits=picture.limits)


def check_volume_number(volume: object) -> None:
    """Raise OptionError for what is no number of a volume."""
    if volume is not None and (isinstance(volume, bool) or not isinstance(volume, Integral)):
        raise OptionError(
            f"{{volume}} is {volume!r:.40}, needed is a whole number, 0 is the first; e.g. {{volume 0}}",
            options=("volume", "volume 0"),
        )


def check_max_bytes(max_bytes: object) -> None:
    """Raise OptionError for what is no number of bytes."""
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, Integral) or int(max_bytes) < 1:
        raise OptionError(
            f"{{max_bytes}} is {max_bytes!r:.40}, needed is a whole number above 0; e.g. {{max_bytes {2 * MAX_BYTES}}}",
            options=("max_bytes", f"max_bytes {2 * MAX_BYTES}"),
        )


def check_no_volume(volume: int | None) -> None:
    """Raise OptionError where a volume is chosen of a picture."""
    if volume is not None:
        raise OptionError("{volume} is for scans, and a picture is given; leave it out", options=("volume",))
