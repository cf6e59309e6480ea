"""The header of FreeSurfer's .mgz and .mgh files, judged from its own bytes and told as a NIfTI header.

So one gate judges both formats, and the mask of an .mgz is a NIfTI file with the same affine. Fields are big-endian:
version (1), width, height, depth, frames, type, degrees of freedom (4 bytes each), a flag (2 bytes), and where it is
set, voxel sizes, direction cosines by column, and the centre's world place (15 float32). Voxels begin at byte 284.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header

from samkit.errors import InputRefused

MGH_SUFFIXES = (".mgz", ".mgh")

_VOXELS_AT = 284
_TYPES = {0: np.uint8, 1: np.int32, 3: np.float32, 4: np.int16, 10: np.uint16}
_LONGEST = 2**15 - 1
"""Voxels along an axis that a NIfTI-1 header can state."""


def read_mgh_header(path: Path) -> Nifti1Header:
    """Return a NIfTI header with shape, datatype, offset and affine of an .mgz or .mgh file; raises InputRefused."""
    name = path.name
    try:
        with gzip.open(path, "rb") if name.endswith(".mgz") else path.open("rb") as file:
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
    affine = _affine(block, dims)
    header.set_sform(affine, 1)
    with contextlib.suppress(ValueError, np.linalg.LinAlgError):  # a singular affine is refused by the gate itself
        header.set_qform(affine, 1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = _VOXELS_AT
    return header


def _affine(block: bytes, dims: list[int]) -> np.ndarray:
    """Return the affine (4, 4); a file that does not state its geometry has FreeSurfer's default, 1 mm and coronal."""
    sizes, cosines, centre = np.ones(3), np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]), np.zeros(3)
    if int(np.frombuffer(block, ">i2", 1, 28)[0]) > 0:
        values = np.frombuffer(block, ">f4", 15, 30).astype(np.float64)
        sizes, cosines, centre = values[:3], values[3:12].reshape(3, 3).T, values[12:]
    affine = np.eye(4)
    affine[:3, :3] = cosines * sizes
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(dims[:3]) / 2)
    return affine


_AGAIN = "write it again with FreeSurfer's mri_convert"
