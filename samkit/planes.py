"""A volume as a stack of slices, and back, exactly.

A slice is an image (H, W) as a reader of scans expects it, whatever the array order of the file: axial slices have
anterior on top and the patient's right on the left, coronal ones superior on top and right on the left, sagittal ones
superior on top and anterior on the left. Slices are counted towards the patient's superior, anterior or right. Nothing
is resampled: the file's axes are swapped and flipped, which is undone exactly.

A pixel is (x, y), column and row, continuous; 0 is the centre of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from nibabel.orientations import io_orientation

from samkit.errors import InputRefused
from samkit.geometry import Index, check_affine, spacing_of

PLANES = ("axial", "coronal", "sagittal")

# For each plane the world axes (0 x, 1 y, 2 z) along slices, rows and columns, and whether each runs downwards.
_AXES = {
    "axial": ((2, False), (1, True), (0, True)),
    "coronal": ((1, False), (2, True), (0, True)),
    "sagittal": ((0, False), (2, True), (1, True)),
}


@dataclass(frozen=True)
class PlaneView:
    """How the slices of one volume lie in its array."""

    plane: str
    file_shape: Index
    axes: tuple[int, int, int]
    """The array axes along slices, rows and columns."""
    flipped: tuple[bool, bool, bool]
    """Whether slices, rows and columns run against the array's index."""
    pixel_mm: tuple[float, float]
    """Distance of rows and of columns [mm]."""
    slice_mm: float
    """Distance of slices [mm]."""

    @classmethod
    def of(cls, shape: Index, affine: np.ndarray, plane: str) -> Self:
        """Return the view on an array of `shape` (I, J, K); raises GeometryError for a singular affine."""
        check_affine(affine)
        orientation = io_orientation(affine)  # per array axis: the world axis nearest to it, and its direction
        world = [int(axis) for axis in orientation[:, 0]]
        axes = tuple(world.index(axis) for axis, _ in _AXES[plane])
        flipped = tuple(bool(orientation[world.index(axis), 1] < 0) != down for axis, down in _AXES[plane])
        spacing = spacing_of(affine)
        return cls(
            plane,
            shape,
            (axes[0], axes[1], axes[2]),
            (flipped[0], flipped[1], flipped[2]),
            (spacing[axes[1]], spacing[axes[2]]),
            spacing[axes[0]],
        )

    @property
    def count(self) -> int:
        """Return how many slices there are."""
        return self.file_shape[self.axes[0]]

    @property
    def shape(self) -> tuple[int, int]:
        """Return height and width of a slice."""
        return self.file_shape[self.axes[1]], self.file_shape[self.axes[2]]

    def slices(self, array: np.ndarray) -> np.ndarray:
        """Return `array` (I, J, K) as (slices, H, W), a view."""
        return np.flip(array.transpose(self.axes), self._flipped_axes)

    def volume(self, slices: np.ndarray) -> np.ndarray:
        """Return (slices, H, W) as the volume's array (I, J, K), a view: the inverse of `slices`."""
        return np.flip(slices, self._flipped_axes).transpose(np.argsort(self.axes))

    def to_slices(self, points_voxel: np.ndarray) -> np.ndarray:
        """Return voxel indices (N, 3) of the array as (N, 3): slice, x (column), y (row), all continuous."""
        along = np.asarray(points_voxel, np.float64)[:, self.axes]
        last = np.array([self.file_shape[axis] - 1 for axis in self.axes])
        placed: np.ndarray = np.where(self.flipped, last - along, along)[:, [0, 2, 1]]
        return placed

    @property
    def _flipped_axes(self) -> tuple[int, ...]:
        return tuple(axis for axis, is_flipped in enumerate(self.flipped) if is_flipped)


def scale_intensities(array: np.ndarray, name: str) -> np.ndarray:
    """Return a volume with its 0.5 to 99.5 percentile mapped to 0..255, float32; zeros stay 0.

    The percentiles are those of the voxels that are not zero (MedSAM's preparation of MR; methods A000-18 and A001-5).
    Raises InputRefused, naming the volume, where there is no contrast.
    """
    values = np.asarray(array, np.float32)
    tissue = values[values != 0]
    low, high = np.percentile(tissue, (0.5, 99.5)) if tissue.size else (0.0, 0.0)
    if not high > low:
        raise InputRefused(
            "constant",
            f"{name} has no contrast: its voxels that are not zero lie between {low:g} and {high:g}",
            "give an image, not a mask or an empty scan",
        )
    scaled = (np.clip(values, low, high) - low) * np.float32(255 / (high - low))
    scaled[values == 0] = 0
    return scaled
