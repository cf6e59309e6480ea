"""What a reader of one kind of file is, and what it tells before a voxel is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import IO

import numpy as np

from samkit.imageio.forms import Forms
from samkit.imageio.pictures import StoredPicture

GZIP = 1100
"""gzip can't shrink anything further than about 1030 times."""
_MOST_BEHIND = 2**26
"""Bytes behind the voxels that are unpacked to reach the end of a stream; more are no part of any format."""
_AT_ONCE = 2**18
"""Values that are converted at a time."""


def read_to_end(file: IO[bytes] | BufferedIOBase, ahead: int = 0) -> None:
    """Read what is left of a compressed stream: its sums of what was unpacked are compared at its end alone.

    `ahead` is how many bytes of voxels are among it. Raises what the stream raises where sums differ or are missing,
    and EOFError where no end comes.
    """
    left = ahead + _MOST_BEHIND
    while left >= 0:
        block = file.read(2**20)
        if not block:
            return
        left -= len(block)
    raise EOFError(f"more than {_MOST_BEHIND} bytes follow the voxels")


def read_array(
    file: IO[bytes] | BufferedIOBase,
    shape: tuple[int, ...],
    dtype: np.dtype,
    *,
    slope: float = 1.0,
    inter: float = 0.0,
) -> np.ndarray:
    """Return the next values of a file as an array of `shape`, the first axis fastest: a part at a time, so that no
    more memory is taken than by what is returned.

    Integers stay as they are where nothing scales them, anything else is float32; what overflows is Inf. Raises
    EOFError where the file ends before.
    """
    is_scaled = (slope, inter) != (1.0, 0.0)
    kept = dtype.newbyteorder("=") if dtype.kind in "iu" and not is_scaled else np.dtype(np.float32)
    out = np.empty(shape, kept, order="F")
    flat = out.reshape(-1, order="F")  # a view
    for begin in range(0, flat.size, _AT_ONCE):
        part = flat[begin : begin + _AT_ONCE]
        raw = file.read(part.size * dtype.itemsize)
        if len(raw) < part.size * dtype.itemsize:
            raise EOFError(f"{begin * dtype.itemsize + len(raw)} bytes of {flat.size * dtype.itemsize}")
        values = np.frombuffer(raw, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            part[:] = values.astype(np.float64) * slope + inter if is_scaled else values
    return out


def in_three(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an array with a third axis: what has two is one slice.

    >>> in_three((256, 192)), in_three((4, 5, 6, 7))
    ((256, 192, 1), (4, 5, 6, 7))
    """
    return (*shape, 1) if len(shape) == 2 else tuple(shape)


@dataclass(frozen=True)
class Stored:
    """A volume in its file or in memory, by its own header; the gate judges this before it asks for the voxels."""

    path: Path | str
    """The file that was named, or what messages call a volume that no file is given for."""
    shape: tuple[int, ...]
    """Along each axis, `in_three` of the file's array; one that is longer than 1 after the third counts volumes."""
    dtype: np.dtype
    """Of the voxels in the file."""
    affine: np.ndarray
    """(4, 4): voxel index to world RAS+, in `unit`; not yet trusted."""
    voxels: Callable[[], np.ndarray]
    """Reads those of the only volume: (I, J, K), or (I, J), integers as they are and anything else float32. May raise
    what it likes."""
    unit: str = "mm"
    """Of the affine; empty where the file does not say, which is taken for mm."""
    forms: Forms | None = None
    """What the file states of the place besides the affine; None where the affine is all."""
    is_placed: bool = True
    """Whether the file states the affine; False where it is a habit, and left and right are not known."""
    holder: Path | None = None
    """The file with the voxels, where it is another one."""
    bytes: int = 0
    """That file holds so many at least, unpacked; 0 where reading itself finds out."""
    shrunk: int = 1
    """How many times smaller the file may be than what it holds: 1, or GZIP."""
    warnings: tuple[str, ...] = ()
    """What this format's header alone shows to be unusual."""
    modality: str = ""
    """CT, MR, ... in DICOM's short words; empty where the file does not say."""
    axes: int = 3
    """Of the file's array: 2 where it has no third one, else 3."""
    voxels_of: Callable[[int], np.ndarray] | None = None
    """Reads, as `voxels`, the volume of a number from 0 on, where there may be several; None where it can't."""

    @property
    def name(self) -> str:
        """Return what messages call it: a file by its name without folders, which may be a patient's."""
        return self.path if isinstance(self.path, str) else self.path.name


@dataclass(frozen=True)
class Reader:
    """One kind of file: how it is called, and how it is read. It gives volumes or pictures."""

    name: str
    suffixes: tuple[str, ...]
    """Ends of file names, in lower case; any case is taken."""
    volume: Callable[[Path], Stored] | None = None
    """Opens a volume; refuses what no file of this format may state. None where the format holds pictures."""
    picture: Callable[[Path], StoredPicture] | None = None
    """Opens a picture; what it is as an image and as a mask is one rule for all formats. None where the format holds
    volumes."""
    files: Callable[[Path], tuple[Path, ...]] = lambda path: (path,)
    """All files that reading touches, the one that was named among them; they need not exist."""
    module: str = ""
    """What has to be installed besides what samkit always has."""
    extra: str = ""
    """Of samkit, which installs `module`."""
    repair: str = "write it again with the place of its voxels"
    """What to do about a file whose geometry is broken."""
