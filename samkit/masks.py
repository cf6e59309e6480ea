"""How much two masks agree: what parity, gates and training's validation judge by. Boolean arrays of one grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage, spatial


def dice(prediction: np.ndarray, target: np.ndarray) -> float:
    """Return the overlap of two boolean masks, 0 to 1; two empty masks agree, 1.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    both = np.count_nonzero(prediction) + np.count_nonzero(target)
    return 1.0 if both == 0 else 2 * np.count_nonzero(prediction & target) / both


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Return the indices (n, dimensions) of a mask's surface: the voxels that have a face neighbour outside it.

    Beyond the array is outside.

    >>> surface_voxels(np.arange(8) // 4 == 1).tolist()
    [[4], [7]]
    """
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return np.zeros((0, mask.ndim), np.intp)
    part = np.pad(mask[boxes[0]], 1)
    corner = [side.start - 1 for side in boxes[0]]
    return np.argwhere(part & ~ndimage.binary_erosion(part)) + corner


def nearest_distances(voxels: np.ndarray, others: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Return how far each of `voxels` (n, dimensions) lies from the nearest of `others`, centre to centre, float64.

    The unit is that of `spacing`, the voxel's edge along each axis, or voxels where there is none; `others` holds one
    voxel at least.
    """
    scale = np.ones(others.shape[1]) if spacing is None else np.asarray(spacing, np.float64)
    # A tree of the surface, and no map of distances, which would be taken for every voxel of a large volume
    away, _ = spatial.KDTree(others * scale, leafsize=32).query(voxels * scale)
    return np.asarray(away, np.float64)


def hausdorff95(one: np.ndarray, other: np.ndarray, spacing: Sequence[float] | None = None) -> float:
    """Return the 95th percentile of the distances from one mask's surface to the other's.

    Both ways are taken, and the larger one counts. The unit is that of `spacing`, or voxels of the masks' grid.
    `surface_voxels` says what a surface is. Two empty masks are 0 apart, an empty one and another infinitely far.

    >>> hausdorff95(np.arange(8) == 1, np.arange(8) == 3)
    2.0
    """
    if not one.any() or not other.any():
        return 0.0 if one.any() == other.any() else math.inf
    if np.array_equal(one, other):
        return 0.0
    surfaces = [surface_voxels(mask) for mask in (one, other)]
    ways = [nearest_distances(surfaces[side], surfaces[1 - side], spacing) for side in (0, 1)]
    return float(max(np.percentile(away, 95) for away in ways))
