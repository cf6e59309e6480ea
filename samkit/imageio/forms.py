"""Where a mask's file will say that its voxels lie: NIfTI's two forms, as the scan's own file states them.

A NIfTI header states a place twice, each time with a code that says in which space: as a matrix (sform) and as a
rotation with voxel sizes (qform). A mask takes both over bit for bit, so that every program that finds the scan by
either of them finds the mask there, too. Of a format that states one affine, both forms are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


@dataclass(frozen=True)
class Forms:
    """Both forms of one file: numbers as they are stored, float32 or float64."""

    sform_code: int
    """In which space the sform places voxels; 0 where there is no sform."""
    srow_x: np.ndarray
    """(4,): how R [mm] follows from i, j, k and 1; `srow_y` and `srow_z` are A and S."""
    srow_y: np.ndarray
    srow_z: np.ndarray
    qform_code: int
    """In which space the qform places voxels; 0 where there is no qform."""
    quatern_b: np.ndarray
    """Rotation of the qform, the last three numbers of a unit quaternion."""
    quatern_c: np.ndarray
    quatern_d: np.ndarray
    qoffset_x: np.ndarray
    """Where the qform places the first voxel [mm]."""
    qoffset_y: np.ndarray
    qoffset_z: np.ndarray
    pixdim: np.ndarray
    """(4,): -1 where the qform mirrors the third axis, else 1, and the voxel size [mm] along I, J, K."""
    xyzt_units: int
    """The unit of space, which is 2 (mm) or 0 (not said), and above it the unit of time."""
    version: int
    """Of NIfTI that holds these numbers as they are: 1 is float32, 2 is float64."""

    @classmethod
    def of_header(cls, header: Nifti1Header) -> Forms:
        """Return what a NIfTI header states."""
        fields: dict[str, Any] = {name: np.array(header[name]) for name in _FIELDS}
        fields |= {name: int(fields[name]) for name in ("sform_code", "qform_code", "xyzt_units")}
        version = 2 if isinstance(header, Nifti2Header) else 1
        return cls(**fields, pixdim=np.array(header["pixdim"][:4]), version=version)

    @classmethod
    def of_affine(cls, affine: np.ndarray) -> Forms:
        """Return both forms of `affine` (4, 4), in scanner space and mm; a qform states no shear and leaves it out."""
        header = Nifti1Header()
        header.set_sform(affine, 1)
        header.set_qform(affine, 1)
        header.set_xyzt_units("mm")
        return cls.of_header(header)

    @property
    def qform(self) -> np.ndarray | None:
        """Return the qform (4, 4), whatever its code; None where its numbers are no place and rotation."""
        try:
            affine: np.ndarray = self.header((1, 1, 1), np.dtype(np.uint8)).get_qform()
        except (ValueError, HeaderDataError):
            return None
        is_place = bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine[:3, :3])) > 0
        return affine if is_place else None

    def header(self, shape: tuple[int, ...], dtype: np.dtype) -> Nifti1Header:
        """Return a new header of an array, with these forms and no text of anybody's."""
        header = (Nifti2Header if self.version == 2 else Nifti1Header)()
        header.set_data_dtype(dtype)
        header.set_data_shape(shape)
        for name in _FIELDS:
            header[name] = getattr(self, name)
        header["pixdim"][:4] = self.pixdim
        header["scl_slope"], header["scl_inter"] = 1, 0
        return header
