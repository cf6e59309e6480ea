"""From a scan's own array to the network's grid and back, exactly.

Three frames, all IJK order (nibabel's: the first index moves along the patient's x for a RAS array), all
continuous voxel indices with 0 at the centre of the first voxel:

    file    the array as it lies in the file, any orientation
    grid    axes flipped and swapped to RAS (no rotation), resampled to the network's spacing
    crop    a patch-sized box of the grid; it may reach over the grid's edge and holds zeros there

The grid covers the same box of space as the file's array: its first voxel *corner*, not centre, coincides with
the array's, so index j of the grid is index (j + 0.5) * spacing_grid / spacing_file - 0.5 of the RAS array.
Interpolation is linear without smoothing, as SAM-Med3D was trained (TorchIO `Resample`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from scipy import ndimage

from samkit.errors import GeometryError

Triple: TypeAlias = tuple[float, float, float]
Index: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Volume:
    """A scan: `array` (I, J, K) and `affine` (4, 4), voxel index to world RAS+ [mm]."""

    array: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> Triple:
        """Return the voxel size [mm] along I, J, K: the affine's column norms, right for oblique scans too."""
        return spacing_of(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Return the volume of one voxel [mL]."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0


def spacing_of(affine: np.ndarray) -> Triple:
    """Return the voxel size [mm] along the three array axes of `affine` (4, 4)."""
    a, b, c = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    return float(a), float(b), float(c)


def check_affine(affine: np.ndarray) -> None:
    """Raise GeometryError unless `affine` (4, 4) is finite and can be inverted."""
    matrix = np.asarray(affine, np.float64)[:3, :3]
    if not np.isfinite(affine).all():
        raise GeometryError("the affine holds NaN or Inf; repair the file's sform or qform first")
    # Scale-free: a sheared or flat voxel box has a determinant far below the product of its edges.
    edges = math.prod(spacing_of(affine))
    if edges == 0.0 or abs(np.linalg.det(matrix)) < 1e-3 * edges:
        raise GeometryError(
            f"the affine is singular (voxel edges {spacing_of(affine)} mm span no volume); "
            "repair the file's sform or qform first"
        )


def world_to_voxel(affine: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Return world points (N, 3) [mm, RAS+] as continuous voxel indices of the array `affine` belongs to."""
    return np.asarray(points_mm, np.float64) @ np.linalg.inv(affine[:3, :3]).T - np.linalg.solve(
        affine[:3, :3], affine[:3, 3]
    )


def voxel_to_world(affine: np.ndarray, points_voxel: np.ndarray) -> np.ndarray:
    """Return continuous voxel indices (N, 3) as world points [mm, RAS+]."""
    return np.asarray(points_voxel, np.float64) @ affine[:3, :3].T + affine[:3, 3]


def resample_linear(
    array: np.ndarray, step: Triple, start: Triple, shape: Index, *, fill: float | None = None
) -> np.ndarray:
    """Return `array` (I, J, K) sampled at `start + index * step` [its voxels] for every index of `shape`.

    Samples beyond the edge repeat it, or are `fill` where that is given. float32 in, float32 out.
    """
    mode = "nearest" if fill is None else "constant"
    return ndimage.affine_transform(
        np.asarray(array, np.float32),
        np.asarray(step, np.float64),
        offset=np.asarray(start, np.float64),
        output_shape=shape,
        order=1,
        mode=mode,
        cval=0.0 if fill is None else fill,
    )


@dataclass(frozen=True)
class Grid:
    """The network's view of one scan: RAS axes, own spacing; converts arrays and points both ways."""

    file_shape: Index
    file_affine: np.ndarray
    spacing: Triple
    """Voxel size [mm] of the grid."""
    shape: Index
    """Shape of the whole grid."""
    orientation: np.ndarray
    """nibabel's (3, 2) array: for each file axis the RAS axis it becomes, and 1 or -1."""

    @classmethod
    def over(cls, file_shape: Index, file_affine: np.ndarray, spacing: Triple) -> Grid:
        """Return the grid of `spacing` [mm] over a scan of `file_shape` and `file_affine`.

        Raises GeometryError for a singular affine and for a spacing that is not positive.
        """
        check_affine(file_affine)
        if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
            raise GeometryError(f"spacing is {spacing}, it must be three positive numbers [mm]; e.g. 1.5,1.5,1.5")
        orientation = io_orientation(file_affine)
        order = _file_axis_of_ras(orientation)
        ras_shape = [file_shape[axis] for axis in order]
        ras_spacing = [spacing_of(file_affine)[axis] for axis in order]
        # A round-off of 1e-6 voxel must not add a plane, so that all orientations of a scan get one shape.
        shape = [
            max(1, math.ceil(n * s / t - 1e-3)) for n, s, t in zip(ras_shape, ras_spacing, spacing, strict=True)
        ]
        return cls(file_shape, file_affine, spacing, (shape[0], shape[1], shape[2]), orientation)

    @property
    def _order(self) -> list[int]:
        return _file_axis_of_ras(self.orientation)

    @property
    def step(self) -> Triple:
        """Return how many voxels of the RAS array one voxel of the grid spans, per RAS axis."""
        sizes = [spacing_of(self.file_affine)[axis] for axis in self._order]
        a, b, c = (t / s for t, s in zip(self.spacing, sizes, strict=True))
        return a, b, c

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """Return a file array (I, J, K) on the grid, float32."""
        ras = apply_orientation(np.asarray(array, np.float32), self.orientation)
        step = self.step
        start = (0.5 * step[0] - 0.5, 0.5 * step[1] - 0.5, 0.5 * step[2] - 0.5)
        if np.allclose(step, 1.0, atol=1e-6) and ras.shape == self.shape:
            return np.ascontiguousarray(ras)
        return resample_linear(ras, step, start, self.shape)

    def to_file(self, box: np.ndarray, origin: Index, *, fill: float) -> np.ndarray:
        """Return values on a box of the grid, whose first voxel is `origin`, on the file's own array.

        Linear between voxels of the box; `fill` where the file's array lies outside the box.
        """
        step = np.asarray(self.step)
        ras_shape = np.array([self.file_shape[axis] for axis in self._order])
        # Grid index of RAS voxel r is (r + 0.5) / step - 0.5; only RAS voxels within half a grid voxel of the box
        # are sampled, the rest of the scan is `fill`.
        low = np.asarray(origin)
        high = low + np.asarray(box.shape)
        first = np.clip(np.ceil(low * step - 0.5 - 1e-6), 0, ras_shape).astype(int)
        last = np.clip(np.floor(high * step - 0.5 + 1e-6) + 1, first, ras_shape).astype(int)
        ras = np.full(ras_shape, fill, np.float32)
        if (last > first).all():
            start = (first + 0.5) / step - 0.5 - low
            a, b, c = (int(n) for n in last - first)
            inverse = 1.0 / step
            ras[tuple(slice(f, e) for f, e in zip(first, last, strict=True))] = resample_linear(
                box, (inverse[0], inverse[1], inverse[2]), (start[0], start[1], start[2]), (a, b, c)
            )
        back = np.transpose(ras, np.argsort(self._order))
        flipped = [axis for axis in range(3) if self.orientation[axis, 1] < 0]
        return np.ascontiguousarray(np.flip(back, flipped))

    def points_from_file(self, points_voxel: np.ndarray) -> np.ndarray:
        """Return voxel indices (N, 3) of the file's array as indices of the grid."""
        points = np.array(points_voxel, np.float64).reshape(-1, 3)
        for axis in range(3):
            if self.orientation[axis, 1] < 0:
                points[:, axis] = self.file_shape[axis] - 1 - points[:, axis]
        return (points[:, self._order] + 0.5) / np.asarray(self.step) - 0.5

    def points_to_file(self, points_grid: np.ndarray) -> np.ndarray:
        """Return indices (N, 3) of the grid as voxel indices of the file's array."""
        ras = (np.array(points_grid, np.float64).reshape(-1, 3) + 0.5) * np.asarray(self.step) - 0.5
        points = ras[:, np.argsort(self._order)]
        for axis in range(3):
            if self.orientation[axis, 1] < 0:
                points[:, axis] = self.file_shape[axis] - 1 - points[:, axis]
        return points


def _file_axis_of_ras(orientation: np.ndarray) -> list[int]:
    """Return, for R, A, S in turn, the file axis that runs along it."""
    return [int(axis) for axis in np.argsort(orientation[:, 0])]


def crop_origin(centre: np.ndarray, patch: int) -> Index:
    """Return the first voxel of the cubic crop that puts the voxel nearest `centre` (3,) at index patch // 2."""
    i, j, k = (int(v) - patch // 2 for v in np.floor(np.asarray(centre, np.float64) + 0.5))
    return i, j, k


def crop(array: np.ndarray, origin: Index, patch: int) -> np.ndarray:
    """Return the cubic box (patch, patch, patch) of `array` (I, J, K) that starts at `origin`, zeros outside."""
    out = np.zeros((patch,) * 3, array.dtype)
    inside = [(max(o, 0), min(o + patch, n)) for o, n in zip(origin, array.shape, strict=True)]
    if all(low < high for low, high in inside):
        target = tuple(slice(low - o, high - o) for (low, high), o in zip(inside, origin, strict=True))
        out[target] = array[tuple(slice(low, high) for low, high in inside)]
    return out


def upsample(logits: np.ndarray, factor: int) -> np.ndarray:
    """Return a cube (n, n, n) enlarged `factor` times, trilinear, as torch's `align_corners=False`."""
    side = logits.shape[0] * factor
    step, start = 1.0 / factor, 0.5 / factor - 0.5
    return resample_linear(logits, (step, step, step), (start, start, start), (side, side, side))
