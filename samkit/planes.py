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

from samkit.errors import InputRefused, OptionError
from samkit.geometry import Index, Triple, as_numbers, check_affine, spacing_of

PLANES = ("axial", "coronal", "sagittal")

# For each plane the world axes (0 x, 1 y, 2 z) along slices, rows and columns, and whether each runs downwards.
_AXES = {
    "axial": ((2, False), (1, True), (0, True)),
    "coronal": ((1, False), (2, True), (0, True)),
    "sagittal": ((0, False), (2, True), (1, True)),
}


def checked_plane(plane: object) -> str:
    """Return the name of a plane; raises OptionError for what is none."""
    if isinstance(plane, str) and plane in PLANES:
        return plane
    raise OptionError(f"the plane {plane!r:.80} is not known; give {{plane}} {', '.join(PLANES)}", options=("plane",))


def checked_intensities(intensities: object) -> tuple[float, float]:
    """Return what becomes black and what white as floats; raises OptionError for what are no such two numbers."""
    numbers = as_numbers(intensities, 2)
    if numbers is None or not numbers[0] < numbers[1]:
        example = "intensities -160,240"
        raise OptionError(
            f"{{intensities}} are {intensities!r:.80}, needed are two numbers, what becomes black and, above it, what "
            f"becomes white; e.g. {{{example}}}",
            options=("intensities", example),
        )
    return numbers[0], numbers[1]


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

    @classmethod
    def chosen(cls, shape: Index, affine: np.ndarray, asked: str | None, default: str) -> Self:
        """Return the view along the plane that is asked for, else along `default`; of one slice the view on that slice.

        Raises InputRefused where one slice is asked for along another plane, GeometryError for a singular affine.
        """
        view = cls.of(shape, affine, default if asked is None else asked)
        single = [plane for plane in PLANES if cls.of(shape, affine, plane).count == 1]
        if not single or view.plane in single:
            return view
        if asked is None:
            return cls.of(shape, affine, single[0])
        raise InputRefused(
            "one-slice",
            f"the scan is {' x '.join(map(str, shape))}, one {single[0]} slice, and {asked} slices are asked for",
            f"leave {{plane}} out, or give {{plane {single[0]}}}",
            options=("plane", f"plane {single[0]}"),
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

    def part(self, number: int, values: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
        """Return the region of the volume's array that slice `number` is, and its `values` (H, W) in the array's order.

        >>> view = PlaneView.of((4, 5, 6), np.diag([-1.0, 1.0, 1.0, 1.0]), "sagittal")
        >>> region, values = view.part(0, np.zeros((6, 5)))
        >>> region[0], values.shape
        (slice(3, 4, None), (1, 5, 6))
        """
        across, first = self.axes[0], self.file_index(number)
        sides = [slice(0, side) for side in self.file_shape]
        sides[across] = slice(first, first + 1)
        return tuple(sides), self.volume(values[None])

    def to_slices(self, points_voxel: np.ndarray) -> np.ndarray:
        """Return voxel indices (N, 3) of the array as (N, 3): slice, x (column), y (row), all continuous."""
        along = np.asarray(points_voxel, np.float64)[:, self.axes]
        last = np.array([self.file_shape[axis] - 1 for axis in self.axes])
        placed: np.ndarray = np.where(self.flipped, last - along, along)[:, [0, 2, 1]]
        return placed

    def to_voxel(self, number: int, x: float, y: float) -> Triple:
        """Return the array's voxel index of column `x`, row `y` in slice `number`: the inverse of `to_slices`."""
        index = [0.0, 0.0, 0.0]
        for axis, is_flipped, place in zip(self.axes, self.flipped, (number, y, x), strict=True):
            index[axis] = self.file_shape[axis] - 1 - place if is_flipped else float(place)
        return index[0], index[1], index[2]

    def file_index(self, number: int) -> int:
        """Return the index, along the array's own axis, of slice `number`; the same call leads back."""
        return self.count - 1 - number if self.flipped[0] else number

    @property
    def _flipped_axes(self) -> tuple[int, ...]:
        return tuple(axis for axis, is_flipped in enumerate(self.flipped) if is_flipped)


@dataclass(frozen=True)
class Window:
    """The same rectangle of every slice of a volume; it may reach over the slices' edges."""

    slice_shape: tuple[int, int]
    """Height and width of a slice [pixels]."""
    shape: tuple[int, int]
    """Height and width of the rectangle."""
    origin: tuple[int, int]
    """Row and column of the slice where it begins; negative where it begins before the slice."""

    @classmethod
    def whole(cls, slice_shape: tuple[int, int]) -> Self:
        """Return the window that leaves a slice as it is."""
        return cls(slice_shape, slice_shape, (0, 0))

    @classmethod
    def around(cls, slices: np.ndarray, shape: tuple[int, int]) -> Self:
        """Return the window of `shape` in the middle of what is not zero in `slices` (slices, H, W).

        In the middle of the slices where all is zero.
        """
        covered = slices.any(axis=0)
        middle = []
        for axis, (side, wanted) in enumerate(zip(covered.shape, shape, strict=True)):
            used = np.flatnonzero(covered.any(axis=1 - axis))
            first, last = (int(used[0]), int(used[-1])) if used.size else (0, side - 1)
            middle.append((first + last + 1 - wanted) // 2)
        return cls((covered.shape[0], covered.shape[1]), shape, (middle[0], middle[1]))

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Return the window's part of a slice (H, W, ...), zeros where it reaches over the slice's edge.

        A window that is the whole slice returns the array itself: a picture may have gigabytes.
        """
        if self == self.whole(self.slice_shape):
            return image
        out = np.zeros((*self.shape, *image.shape[2:]), image.dtype)
        inside, here = self._overlap
        out[here] = image[inside]
        return out

    def paste(self, part: np.ndarray, fill: float) -> np.ndarray:
        """Return values of the window (h, w) on the slice (H, W), `fill` around it: the inverse of `cut`, as frugal."""
        if self == self.whole(self.slice_shape):
            return part
        out = np.full(self.slice_shape, fill, part.dtype)
        inside, here = self._overlap
        out[inside] = part[here]
        return out

    @property
    def _overlap(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return what slice and window share: rows and columns of the slice, then of the window."""
        inside, here = [], []
        for begin, size, side in zip(self.origin, self.shape, self.slice_shape, strict=True):
            first = min(max(begin, 0), side)
            last = max(min(begin + size, side), first)
            inside.append(slice(first, last))
            here.append(slice(first - begin, last - begin))
        return (inside[0], inside[1]), (here[0], here[1])
