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

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeAlias

import numpy as np
from nibabel.orientations import io_orientation

from samkit.errors import GeometryError

Triple: TypeAlias = tuple[float, float, float]
Index: TypeAlias = tuple[int, int, int]

MAX_SHIFT = 0.1
"""How far [voxels] a corner of one array may lie from the same corner of another that is said to be co-registered with
it: round-off, but no other place or orientation."""
_SMALLEST, _LARGEST = 1e-6, 1e4
"""Edges of a voxel [mm]: from a nanometre of an electron microscope to ten metres."""
_LAST_ROW = (0.0, 0.0, 0.0, 1.0)
"""Of an affine: anything else there is a translation in the wrong place, which would be lost."""


@dataclass(frozen=True)
class Volume:
    """A scan: `array` (I, J, K) of any real dtype and `affine` (4, 4), voxel index to world RAS+ [mm]."""

    array: np.ndarray
    affine: np.ndarray

    def __str__(self) -> str:
        """Return shape and voxel size, as a person reads them."""
        return f"{by(self.array.shape)} voxels of {by(self.spacing)} mm"

    def __repr__(self) -> str:
        """Return the same and the voxels' type: nobody wants to read the voxels."""
        return f"<Volume: {self}, {self.array.dtype}>"

    @property
    def spacing(self) -> Triple:
        """Return the voxel size [mm] along I, J, K: the affine's column norms, right for oblique scans too."""
        return spacing_of(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Return the volume of one voxel [mL]."""
        return voxel_ml_of(self.affine)


def by(sides: Sequence[float]) -> str:
    """Return sides as a person reads them.

    >>> by((1.5, 1.5, 3))
    '1.5 x 1.5 x 3'
    """
    return " x ".join(str(side) if isinstance(side, Integral) else f"{side:g}" for side in sides)


def spacing_of(affine: np.ndarray) -> Triple:
    """Return the voxel size [mm] along the three array axes of `affine` (4, 4)."""
    a, b, c = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    return float(a), float(b), float(c)


def as_numbers(values: object, count: int) -> tuple[float, ...] | None:
    """Return `values` as floats where they are `count` finite numbers in a row, else None; a text holds none.

    What has no order, such as a set, is no row.

    >>> as_numbers([1, 2.5], 2), as_numbers("12", 2), as_numbers(1, 1)
    ((1.0, 2.5), None, None)
    """
    if isinstance(values, Set | Mapping | Iterator):
        return None
    try:
        row: tuple[object, ...] = tuple(values)  # type: ignore[arg-type]  # what is no row is told by the error
        numbers = tuple(float(one) for one in row if isinstance(one, Real) and not isinstance(one, bool))
    except (TypeError, OverflowError):  # a whole number of hundreds of digits is no float
        return None
    return numbers if len(row) == len(numbers) == count and all(math.isfinite(one) for one in numbers) else None


def checked_spacing(spacing: object) -> Triple:
    """Return a voxel size [mm] as three floats; raises GeometryError for what is none."""
    numbers = as_numbers(spacing, 3)
    if numbers is None or min(numbers) <= 0:
        example = "spacing 1.5,1.5,1.5"
        raise GeometryError(
            f"{{spacing}} is {spacing!r:.80}, needed are three positive numbers [mm]; e.g. {{{example}}}",
            options=("spacing", example),
        )
    a, b, c = numbers
    return a, b, c


def voxel_ml_of(affine: np.ndarray) -> float:
    """Return the volume of one voxel [mL] of an array with `affine` (4, 4)."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000.0


def check_affine(affine: np.ndarray) -> None:
    """Raise GeometryError unless `affine` is (4, 4), finite, can be inverted, and has 0, 0, 0, 1 as its last row.

    Voxels have to be of a size that something in a scanner can have, too.
    """
    if np.shape(affine) != (4, 4):
        raise GeometryError(
            f"the affine has the shape {np.shape(affine)}, needed is (4, 4); write all four of its rows"
        )
    matrix = np.asarray(affine, np.float64)[:3, :3]
    if not np.isfinite(affine).all():
        raise GeometryError("the affine holds NaN or Inf; repair the file's sform or qform first")
    # Scale-free: a sheared or flat voxel box has a determinant far below the product of its edges.
    edges = math.prod(spacing_of(affine))
    if edges == 0.0 or abs(np.linalg.det(matrix)) < 1e-3 * edges:
        raise GeometryError(
            f"the affine is singular (voxel edges of {by(spacing_of(affine))} mm span no volume); "
            "repair the file's sform or qform first"
        )
    if not all(_SMALLEST <= edge <= _LARGEST for edge in spacing_of(affine)):
        raise GeometryError(
            f"voxel edges of {by(spacing_of(affine))} mm are no scan's; repair the file's sform or qform first"
        )
    if not np.allclose(affine[3], _LAST_ROW, rtol=0, atol=1e-6):
        is_turned = np.allclose(np.asarray(affine)[:, 3], _LAST_ROW, rtol=0, atol=1e-6)
        raise GeometryError(
            f"the affine's last row is {', '.join(f'{value:g}' for value in affine[3])} and not 0, 0, 0, 1"
            f"{', as if it were transposed' * is_turned}; the translation is its last column"
        )


def world_to_voxel(affine: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Return world points (N, 3) [mm, RAS+] as continuous voxel indices of the array `affine` belongs to."""
    return np.asarray(points_mm, np.float64) @ np.linalg.inv(affine[:3, :3]).T - np.linalg.solve(
        affine[:3, :3], affine[:3, 3]
    )


def voxel_to_world(affine: np.ndarray, points_voxel: np.ndarray) -> np.ndarray:
    """Return continuous voxel indices (N, 3) as world points [mm, RAS+]."""
    return np.asarray(points_voxel, np.float64) @ affine[:3, :3].T + affine[:3, 3]


def corner_shift(shape: Index, affine: np.ndarray, other: np.ndarray) -> float:
    """Return how far [voxels] a corner of an array (I, J, K) moves at most when `other` replaces `affine`."""
    corners = np.array(list(itertools.product(*((-0.5, side - 0.5) for side in shape))))
    moved = world_to_voxel(affine, voxel_to_world(other, corners))
    return float(np.linalg.norm(moved - corners, axis=1).max())


def resample_linear(
    array: np.ndarray, step: Triple, start: Triple, shape: Index, *, fill: float | None = None
) -> np.ndarray:
    """Return `array` (I, J, K) sampled at `start + index * step` [its voxels] for every index of `shape`, float32.

    Samples beyond the centres of the outermost voxels repeat the edge, or are `fill` where that is given.
    """
    # Linear interpolation on a regular lattice is separable. The axis that shrinks most goes first, the last one
    # among equals, so that what lies between stays small.
    out = np.asarray(array, np.float32)
    outside = []
    for axis in sorted(range(3), key=lambda a: (shape[a] / array.shape[a], -a)):
        last = array.shape[axis] - 1
        at = start[axis] + step[axis] * np.arange(shape[axis])
        # A sample within 1e-6 of a voxel is meant to be that voxel, so that round-off changes nothing.
        at = np.where(np.abs(at - np.rint(at)) < 1e-6, np.rint(at), at)
        outside.append((axis, (at < 0) | (at > last)))
        at = np.clip(at, 0, last)
        low = np.floor(at).astype(int)
        weight = (at - low).astype(np.float32)
        lower = np.take(out, low, axis)
        if weight.any():
            difference = np.take(out, np.minimum(low + 1, last), axis)
            difference -= lower
            difference *= np.expand_dims(weight, [other for other in range(3) if other != axis])
            lower += difference
        out = lower
    if fill is not None:
        for axis, beyond in outside:
            np.moveaxis(out, axis, 0)[beyond] = fill
    return np.ascontiguousarray(out)


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

        Raises GeometryError for a singular affine, for a spacing that is not positive, and where the whole scan is
        one voxel of the grid.
        """
        check_affine(file_affine)
        spacing = checked_spacing(spacing)
        orientation = io_orientation(file_affine)
        order = _file_axis_of_ras(orientation)
        ras_shape = [file_shape[axis] for axis in order]
        ras_spacing = [spacing_of(file_affine)[axis] for axis in order]
        # A round-off of 1e-6 voxel must not add a plane, so that all orientations of a scan get one shape.
        shape = [max(1, math.ceil(n * s / t - 1e-3)) for n, s, t in zip(ras_shape, ras_spacing, spacing, strict=True)]
        if max(shape) == 1 < max(file_shape):
            sides = [n * s for n, s in zip(file_shape, spacing_of(file_affine), strict=True)]
            raise GeometryError(
                f"the whole scan, {by(sides)} mm by its affine, is one voxel of the network's grid of {by(spacing)} "
                "mm; write the affine in millimetres (is it in metres?), or give {spacing}",
                options=("spacing",),
            )
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
        return self.box_from_file(array, (0, 0, 0), self.shape)

    def box_from_file(self, array: np.ndarray, origin: Index, shape: Index) -> np.ndarray:
        """Return the box of the grid that starts at `origin`, float32, zeros where it reaches over the grid's edge.

        The same values as a crop of `from_file`, but only this box is ever resampled: the grid of a large scan
        may not fit in memory.
        """
        out = np.zeros(shape, np.float32)
        low = np.clip(origin, 0, self.shape)
        high = np.clip(np.add(origin, shape), low, self.shape)
        if not (high > low).all():
            return out
        ras = self._as_ras(array)
        step = np.asarray(self.step)
        if np.allclose(step, 1.0, atol=1e-6) and ras.shape == self.shape:
            values = np.asarray(ras[box_slices(low, high)], np.float32)
        else:
            start = (low + 0.5) * step - 0.5
            end = (high - 0.5) * step - 0.5
            # The neighbours on both sides of every sample, and no more, are read from the scan.
            first = np.clip(np.floor(start - 1e-6), 0, np.subtract(ras.shape, 1)).astype(int)
            last = np.clip(np.ceil(end + 1e-6) + 1, first + 1, ras.shape).astype(int)
            values = resample_linear(
                ras[box_slices(first, last)], _triple(step), _triple(start - first), as_index(high - low)
            )
        out[box_slices(low - origin, high - origin)] = values
        return out

    def _as_ras(self, array: np.ndarray) -> np.ndarray:
        """Return a view of a file array with axes flipped and swapped to RAS."""
        flipped = [axis for axis in range(3) if self.orientation[axis, 1] < 0]
        return np.transpose(np.flip(array, flipped), self._order)

    def region_to_file(self, box: np.ndarray, origin: Index) -> tuple[tuple[slice, slice, slice], np.ndarray]:
        """Return the region of the file's array that `box` covers, and the box's values there, float32."""
        step = np.asarray(self.step)
        ras_shape = np.array([self.file_shape[axis] for axis in self._order])
        # Grid index of RAS voxel r is (r + 0.5) / step - 0.5; the RAS voxels whose centre lies in the box are
        # sampled.
        low = np.asarray(origin)
        high = low + np.asarray(box.shape)
        first = np.clip(np.ceil(low * step - 0.5 - 1e-6), 0, ras_shape).astype(int)
        last = np.clip(np.floor(high * step - 0.5 - 1e-6) + 1, first, ras_shape).astype(int)
        if (last > first).all():
            start = (first + 0.5) / step - 0.5 - low
            ras = resample_linear(box, _triple(1.0 / step), _triple(start), as_index(last - first))
        else:
            last = first
            ras = np.zeros((0, 0, 0), np.float32)
        values = np.transpose(ras, np.argsort(self._order))
        region = []
        for axis in range(3):
            ras_axis = int(self.orientation[axis, 0])
            begin, end = int(first[ras_axis]), int(last[ras_axis])
            if self.orientation[axis, 1] < 0:
                values = np.flip(values, axis)
                begin, end = self.file_shape[axis] - end, self.file_shape[axis] - begin
            region.append(slice(begin, end))
        return (region[0], region[1], region[2]), values

    def points_from_file(self, points_voxel: np.ndarray) -> np.ndarray:
        """Return voxel indices (N, 3) of the file's array as indices of the grid."""
        points = np.array(points_voxel, np.float64).reshape(-1, 3)
        for axis in range(3):
            if self.orientation[axis, 1] < 0:
                points[:, axis] = self.file_shape[axis] - 1 - points[:, axis]
        return (points[:, self._order] + 0.5) / np.asarray(self.step) - 0.5


def box_slices(low: np.ndarray, high: np.ndarray) -> tuple[slice, ...]:
    """Return the slices of the box from voxel `low` (3,) up to, not including, `high` (3,)."""
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def _triple(values: np.ndarray) -> Triple:
    a, b, c = (float(v) for v in values)
    return a, b, c


def as_index(values: np.ndarray) -> Index:
    """Return three whole numbers (3,) as the tuple that shapes and origins are."""
    a, b, c = (int(v) for v in values)
    return a, b, c


def _file_axis_of_ras(orientation: np.ndarray) -> list[int]:
    """Return, for R, A, S in turn, the file axis that runs along it."""
    return [int(axis) for axis in np.argsort(orientation[:, 0])]


def crop_origin(centre: np.ndarray, patch: int) -> Index:
    """Return the first voxel of the cubic crop that puts the voxel nearest `centre` (3,) at index patch // 2."""
    # Centres halfway between two voxels are common (a scan at twice the grid's spacing) and arrive with round-off;
    # they all go up, so that the same click finds the same crop in every orientation of a scan.
    i, j, k = (int(v) - patch // 2 for v in np.floor(np.asarray(centre, np.float64) + 0.5 + 1e-3))
    return i, j, k


def crop(array: np.ndarray, origin: Index, patch: int) -> np.ndarray:
    """Return the cubic box (patch, patch, patch) of `array` (I, J, K) that starts at `origin`, zeros outside."""
    out = np.zeros((patch,) * 3, array.dtype)
    low = np.clip(origin, 0, array.shape)
    high = np.clip(np.add(origin, patch), low, array.shape)
    out[box_slices(low - origin, high - origin)] = array[box_slices(low, high)]
    return out


def upsample(logits: np.ndarray, factor: int) -> np.ndarray:
    """Return a cube (n, n, n) enlarged `factor` times, trilinear, as torch's `align_corners=False`."""
    side = logits.shape[0] * factor
    step, start = 1.0 / factor, 0.5 / factor - 0.5
    return resample_linear(logits, (step, step, step), (start, start, start), (side, side, side))
