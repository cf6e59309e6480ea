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
    place = deepest_error(prediction, target)
    return None if place is None else _click_at(int(np.ravel_multi_index(place, target.shape)), target)


def deepest_error(prediction: np.ndarray, target: np.ndarray) -> tuple[int, ...] | None:
    """Return where `central_click` clicks, the index of a voxel or, on slices (H, W), of a pixel."""
    largest, size, origin = None, 0, np.zeros(target.ndim, int)
    for error in (target & ~prediction, prediction & ~target):
        boxes = ndimage.find_objects(error.astype(np.uint8))
        if not boxes:
            continue
        components, count = ndimage.label(error[boxes[0]])
        sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
        if int(sizes.max()) > size:
            largest, size = components == int(sizes.argmax()) + 1, int(sizes.max())
            origin = np.array([side.start for side in boxes[0]])
    if largest is None:
        return None
    # What lies outside the component's box is outside the component
    around = ndimage.find_objects(largest.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(largest[around], 1))[(slice(1, -1),) * target.ndim]
    inside = np.unravel_index(int(depth.argmax()), depth.shape)
    return tuple(int(at + side.start + first) for at, side, first in zip(inside, around, origin, strict=True))


def _click_at(flat: int, target: np.ndarray) -> Point:
    i, j, k = (int(v) for v in np.unravel_index(flat, target.shape))
    return Point((float(i), float(j), float(k)), FOREGROUND if target[i, j, k] else BACKGROUND)
