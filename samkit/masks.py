"""How much two masks agree: what parity, gates and training's validation judge by. Boolean arrays of one grid."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage


def dice(prediction: np.ndarray, target: np.ndarray) -> float:
    """Return the overlap of two boolean masks, 0 to 1; two empty masks agree, 1.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    both = np.count_nonzero(prediction) + np.count_nonzero(target)
    return 1.0 if both == 0 else 2 * np.count_nonzero(prediction & target) / both


def hausdorff95(one: np.ndarray, other: np.ndarray) -> float:
    """Return the 95th percentile of the distances from one mask's surface to the other's, in voxels of their grid.

    Both ways are taken, and the larger one counts. A surface is the voxels of a mask that have a face neighbour
    outside it; beyond the array is outside. Two empty masks are 0 apart, an empty one and another infinitely far.

    >>> hausdorff95(np.arange(8) == 1, np.arange(8) == 3)
    2.0
    """
    if not one.any() or not other.any():
        return 0.0 if one.any() == other.any() else math.inf
    if np.array_equal(one, other):
        return 0.0
    occupied = ndimage.find_objects((one | other).astype(np.uint8))[0]
    masks = [np.pad(mask[occupied], 1) for mask in (one, other)]
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    away = [ndimage.distance_transform_edt(~surface) for surface in surfaces]
    return float(max(np.percentile(away[1 - side][surfaces[side]], 95) for side in (0, 1)))
