"""FreeSurfer's .mgz and .mgh files, judged from their own bytes.

Fields are big-endian: version (1), width, height, depth, frames, type, degrees of freedom (4 bytes each), a flag (2
bytes), and where it is set, voxel sizes, direction cosines by column, and the centre's world place (15 float32).
Voxels begin at byte 284.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from samkit.errors import InputRefused
from samkit.imageio.reader import GZIP, Reader, Stored, read_array, read_to_end

_VOXELS_AT = 284
_TYPES = {0: np.uint8, 1: np.int32, 3: np.float32, 4: np.int16, 10: np.uint16}
_LONGEST = 2**15 - 1
"""Voxels along an axis; a brain has a hundredth of it."""
_AGAIN = "write it again with FreeSurfer's mri_convert"


def _open_volume(path: Path) -> Stored:
    """Return what a file states; raises InputRefused."""
    name = path.name
    try:
        with _open(path) as file:
            block = file.read(_VOXELS_AT)
    except (OSError, EOFError, zlib.error) as error:
        raise InputRefused("not-mgh", f"{name} is not an .mgz file: its start can't be read", _AGAIN) from error
    if len(block) < _VOXELS_AT:
        raise InputRefused("truncated", f"{name} ends within its header ({len(block)} bytes)", "copy the file again")
    version, *dims, kind = (int(value) for value in np.frombuffer(block, ">i4", 6))
    if version != 1:
        raise InputRefused("not-mgh", f"{name} is not an .mgz file: its version is {version}, not 1", _AGAIN)
    if kind not in _TYPES:
        raise InputRefused("bad-datatype", f"{name} states the unknown datatype {kind}", _AGAIN)
    if not all(0 < side <= _LONGEST for side in dims):
        raise InputRefused("bad-header", f"{name} states impossible dimensions {dims}", "write the file again")
    dtype, shape = np.dtype(_TYPES[kind]).newbyteorder(">"), tuple(dims)

    def read(number: int) -> np.ndarray:
        return _read_voxels(path, shape[:3], dtype, number, shape[3])

    return Stored(
        path,
        shape if dims[3] > 1 else shape[:3],
        dtype,
        _affine(block, shape[:3], name),
        lambda: read(0),
        voxels_of=read,
        bytes=math.prod(shape[:3]) * dtype.itemsize + _VOXELS_AT,
        shrunk=GZIP if _is_packed(path) else 1,
    )


def _read_voxels(path: Path, shape: tuple[int, ...], dtype: np.dtype, number: int, frames: int) -> np.ndarray:
    """Return the values (I, J, K) of a frame, as `read_array` does; raises where it is cut off or damaged."""
    size = math.prod(shape) * dtype.itemsize
    with _open(path) as file:
        file.seek(_VOXELS_AT + number * size)
        array = read_array(file, shape, dtype)
        if _is_packed(path):
            read_to_end(file, (frames - number - 1) * size)
    return array


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if _is_packed(path) else path.open("rb")  # type: ignore[return-value]


def _is_packed(path: Path) -> bool:
    return path.name.lower().endswith(".mgz")


def _affine(block: bytes, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return the affine (4, 4); raises InputRefused where the file states none."""
    if int(np.frombuffer(block, ">i2", 1, 28)[0]) <= 0:
        raise InputRefused("no-geometry", f"{name} does not say where its voxels lie", _AGAIN)
    affine = np.eye(4)
    with np.errstate(invalid="ignore"):  # NaN and Inf are the gate's to refuse
        values = np.frombuffer(block, ">f4", 15, 30).astype(np.float64)
        sizes, cosines, centre = values[:3], values[3:12].reshape(3, 3).T, values[12:]
        affine[:3, :3] = cosines * sizes
        affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) / 2)
    return affine


READER = Reader("FreeSurfer (.mgz, .mgh)", (".mgz", ".mgh"), volume=_open_volume, repair=_AGAIN)
