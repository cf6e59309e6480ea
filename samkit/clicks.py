"""Simulated clicks: training, validation, parity and benchmarks all click alike.

Masks are boolean (I, J, K) arrays of one grid; a click is a `Point` at a voxel of it. The error region is where
prediction and target differ; a click there is FOREGROUND where the prediction missed the target and BACKGROUND
where it is beyond it. Two policies: `next_click` draws one uniform voxel of the error region, as M-SAM and
SAM-Med3D are trained (arXiv:2403.05912, section 2.3); `central_click` is deterministic, as a careful reader would.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from samkit.prompts import BACKGROUND, FOREGROUND, Point


def first_click(target: np.ndarray, rng: np.random.Generator) -> Point | None:
    """Return one uniform voxel of `target`, None where it is empty."""
    return next_click(np.zeros_like(target), target, rng)


def next_click(prediction: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> Point | None:
    """Return one uniform voxel of the error region, None where no error is left.

    >>> target = np.zeros((4, 4, 4), bool)
    >>> target[1, 2, 3] = True
    >>> next_click(np.zeros_like(target), target, np.random.default_rng(0))
    Point(index=(1.0, 2.0, 3.0), label=1, structure='')
    """
    error = np.flatnonzero(prediction != target)
    if error.size == 0:
        return None
    return _click_at(int(error[rng.integers(error.size)]), target)


def central_click(prediction: np.ndarray, target: np.ndarray) -> Point | None:
    """Return the deepest voxel of the largest connected error, None where no error is left.

    Missed and surplus voxels are never one component. Depth is the Euclidean distance to the nearest voxel outside
    the component, the array's edge included; the first in array order wins a tie.
    """
    largest, size = None, 0
    for error in (target & ~prediction, prediction & ~target):
        components, count = ndimage.label(error)
        sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
        if count and int(sizes.max()) > size:
            largest, size = components == int(sizes.argmax()) + 1, int(sizes.max())
    if largest is None:
        return None
    depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1, 1:-1]
    return _click_at(int(depth.argmax()), target)


def _click_at(flat: int, target: np.ndarray) -> Point:
    i, j, k = (int(v) for v in np.unravel_index(flat, target.shape))
    return Point((float(i), float(j), float(k)), FOREGROUND if target[i, j, k] else BACKGROUND)
