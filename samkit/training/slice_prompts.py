"""Simulated prompts on one slice: what training shows the decoder in place of a user.

Masks are boolean (H, W). Points and boxes are pixels (x, y), 0 the centre of the first pixel, float32, of the grid that
the mask lies on; labels are FOREGROUND or BACKGROUND.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from samkit.prompts import BACKGROUND, FOREGROUND, PADDING

MIN_PIXELS = 10
"""Pixels of the smallest component that gets a box of its own."""

_OFFICIAL_SIDE = 1024
_SHIFT_SHARE, _MAX_SHIFT, _SHIFT_SIDE = 0.5, 5, 256
"""SAM-Med2D moves a box by up to half its shorter side, and at most 5 pixels of its 256."""


def components(mask: np.ndarray, min_pixels: int = MIN_PIXELS) -> list[np.ndarray]:
    """Return the 8-connected components (H, W) of at least `min_pixels`, the largest first."""
    labelled, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    return [labelled == number + 1 for number in order if sizes[number] >= min_pixels]


def tight_box(mask: np.ndarray) -> np.ndarray:
    """Return the first and last column and row of a mask that is not empty: x0, y0, x1, y1, both ends inside."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def jittered_box(mask: np.ndarray, rng: np.random.Generator, pixels: tuple[float, float] = (0, 20)) -> np.ndarray:
    """Return the tight box with each side moved out, inside the image (MedSAM's training, train_one_gpu.py).

    Each side moves by its own whole number of `pixels`, uniform, both ends possible; they are pixels of an input of
    1024 and shrink with a smaller one.
    """
    low, high = pixels
    x0, y0, x1, y1 = rng.integers(int(low), int(high) + 1, 4) * np.array([-1, -1, 1, 1])
    height, width = mask.shape
    scale = np.array([width, height, width, height]) / _OFFICIAL_SIDE
    moved = tight_box(mask) + np.array([x0, y0, x1, y1]) * scale
    return np.clip(moved, 0, (width - 1, height - 1, width - 1, height - 1)).astype(np.float32)


def shifted_box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the box of the largest component, moved as a whole (SAM-Med2D's training, get_boxes_from_mask).

    Its last corner is one pixel beyond the component, as upstream's; x and y move by whole pixels from -m to m - 1, m
    being half the shorter side and at most 5. Along an axis longer than 256 they are pixels of the slice shrunk to 256.
    """
    box = tight_box(components(mask, 1)[0]) + np.array([0, 0, 1, 1], np.float32)
    pixel = np.maximum(1, np.array(mask.shape[::-1]) / _SHIFT_SIDE)
    most = min(_MAX_SHIFT, int(((box[2:] - box[:2]) / pixel).min() * _SHIFT_SHARE))
    if most:
        box = box + np.tile(rng.integers(-most, most, 2) * pixel, 2)
    return box.astype(np.float32)


def random_point(mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return one uniform pixel (1, 2) of the mask and its label (1,); of the background where the mask is empty."""
    label = FOREGROUND if mask.any() else BACKGROUND
    return _pixels(np.flatnonzero(mask == bool(label)), mask.shape[1], 1, rng), np.array([label], np.float32)


def error_points(
    prediction: np.ndarray, mask: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` uniform pixels (count, 2) where the two differ, drawn with replacement, and their labels (count,).

    Without an error all are PADDING, as in SAM-Med2D's training (select_random_points).
    """
    wrong = np.flatnonzero(prediction != mask)
    if not wrong.size:
        return np.zeros((count, 2), np.float32), np.full(count, PADDING, np.float32)
    points = _pixels(wrong, mask.shape[1], count, rng)
    x, y = points.astype(int).T
    return points, np.where(mask[y, x], FOREGROUND, BACKGROUND).astype(np.float32)


def _pixels(flat: np.ndarray, width: int, count: int, rng: np.random.Generator) -> np.ndarray:
    chosen = flat[rng.integers(flat.size, size=count)]
    return np.stack([chosen % width, chosen // width], axis=-1).astype(np.float32)
