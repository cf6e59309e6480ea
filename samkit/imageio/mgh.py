"""The header of FreeSurfer's .mgz and .mgh files, judged from its own bytes and told as a NIfTI header.

So one gate judges both formats, and the mask of an .mgz is a NIfTI file with the same affine. Fields are big-endian:
version (1), width, height, depth, frames, type, degrees of freedom (4 bytes each), a flag (2 bytes), and where it is
set, voxel sizes, direction cosines by column, and the centre's world place (15 float32). Voxels begin at byte 284.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.nifti1 import Nifti1Header

from samkit.errors import GeometryError, InputRefused
from samkit.geometry import check_affine

MGH_SUFFIXES = (".mgz", ".mgh")

_VOXELS_AT = 284
_TYPES = {0: np.uint8, 1: np.int32, 3: np.float32, 4: np.int16, 10: np.uint16}
_LONGEST = 2**15 - 1
"""Voxels along an axis that a NIfTI-1 header can state."""


def read_mgh_header(path: Path) -> Nifti1Header:
    """Return a NIfTI header with shape, datatype, offset and affine of an .mgz or .mgh file; raises InputRefused."""
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
    header = Nifti1Header()
    header.set_data_dtype(_TYPES[kind])
    header.set_data_shape(dims if dims[3] > 1 else dims[:3])
    affine = _affine(block, dims, name)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = _VOXELS_AT
    return header


def read_mgh_voxels(path: Path, header: Nifti1Header) -> np.ndarray:
    """Return the values (I, J, K) of the volume that `header` tells of, in the file's own type; EOFError if cut off."""
    shape, dtype = header.get_data_shape()[:3], header.get_data_dtype()
    with _open(path) as file:
        file.seek(_VOXELS_AT)
        raw = file.read(size := int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    if len(raw) < size:
        raise EOFError(f"{len(raw)} bytes of {size}")
    return np.frombuffer(raw, dtype.newbyteorder(">")).astype(dtype).reshape(shape, order="F")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".mgz") else path.open("rb")  # type: ignore[return-value]


def _affine(block: bytes, dims: list[int], name: str) -> np.ndarray:
    """Return the affine (4, 4); raises InputRefused for none, or for one that spans no volume."""
    if int(np.frombuffer(block, ">i2", 1, 28)[0]) <= 0:
        raise InputRefused("no-geometry", f"{name} does not say where its voxels lie", _AGAIN)
    values = np.frombuffer(block, ">f4", 15, 30).astype(np.float64)
    sizes, cosines, centre = values[:3], values[3:12].reshape(3, 3).T, values[12:]
    affine = np.eye(4)
    affine[:3, :3] = cosines * sizes
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(dims[:3]) / 2)
    try:
        check_affine(affine)
    except GeometryError as error:
        raise InputRefused("singular-affine", f"{name}: {str(error).partition('; ')[0]}", _AGAIN) from error
    return affine


_AGAIN = "write it again with FreeSurfer's mri_convert"
