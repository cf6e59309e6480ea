"""Whether volumes lie on one another: several sequences of a patient are segmented as one array. Needs numpy alone."""

from __future__ import annotations

from collections.abc import Mapping

from samkit.errors import GeometryError, InputRefused
from samkit.geometry import MAX_SHIFT, Volume, corner_shift


def check_co_registered(volumes: Mapping[str, Volume]) -> None:
    """Raise InputRefused, naming the sequence, unless all volumes have the grid of the first one.

    Raises GeometryError for an array that has not three axes.
    """
    first_name, first = next(iter(volumes.items()))
    for name, volume in volumes.items():
        shape = volume.array.shape
        if volume.array.ndim != 3 or min(shape) < 1:
            raise GeometryError(f"a volume has three axes (I, J, K), this one is {shape}; pass one scan")
        if shape != first.array.shape:
            raise InputRefused(
                "not-co-registered",
                f"{name} has {' x '.join(str(n) for n in shape)} voxels and {first_name} "
                f"{' x '.join(str(n) for n in first.array.shape)}, so they are not co-registered",
                f"resample {name} onto {first_name}",
            )
        if volume is first:
            continue
        i, j, k = shape
        shift = corner_shift((i, j, k), first.affine, volume.affine)
        if not shift <= MAX_SHIFT:
            raise InputRefused(
                "not-co-registered",
                f"{name} lies {shift:.3g} voxels off {first_name} by their affines, so they are not co-registered",
                f"resample {name} onto {first_name}",
            )
