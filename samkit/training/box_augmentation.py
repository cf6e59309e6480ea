"""Random changes of an image and its boxes, for the detector; YOLOv5's defaults where it has them.

An image is (H, W, C) float32, 0..255; boxes are (n, 5): x0, y0, x1, y1 [pixels from the image's corner, 0..W and 0..H]
and the class. Functions never change what they are given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

FILL = 114.0
"""Grey of what no image covers, as YOLOv5's letterbox."""

_HUE, _SATURATION, _VALUE = 0.015, 0.7, 0.4
_MIN_EDGE, _MIN_AREA = 2.0, 0.1
"""A box that a mosaic cuts is kept if an edge of more than 2 pixels and a tenth of its area are left."""


def flip_boxes(image: np.ndarray, boxes: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both upside down (axis 0) or with left and right exchanged (axis 1)."""
    first, last = (1, 3) if axis == 0 else (0, 2)
    flipped = boxes.copy()
    flipped[:, [first, last]] = image.shape[axis] - boxes[:, [last, first]]
    return np.ascontiguousarray(np.flip(image, axis)), flipped


def jitter_colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image with hue, saturation and value each multiplied by its own factor, within 0..255.

    Of an image that has not three channels the value alone changes. Colours are rounded to 8 bits on the way.
    """
    hue, saturation, value = 1 + rng.uniform(-1, 1, 3) * (_HUE, _SATURATION, _VALUE)
    if image.shape[-1] != 3:
        return np.clip(image * np.float32(value), 0, 255)
    picture = Image.fromarray(np.rint(image).astype(np.uint8)).convert("HSV")
    hsv = np.asarray(picture, np.float32) * (hue, saturation, value)
    hsv = np.clip(np.stack([hsv[..., 0] % 256, hsv[..., 1], hsv[..., 2]], axis=-1), 0, 255).astype(np.uint8)
    return np.asarray(Image.frombytes("HSV", picture.size, hsv.tobytes()).convert("RGB"), np.float32)


def mosaic(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return four images around a random centre, as one (side, side, C), and their boxes.

    As YOLOv5's: each image is enlarged to a longer edge of `side` and placed with a corner at one point in the middle
    half of a canvas twice as large, what reaches beyond is cut; the canvas is then scaled by 0.5 to 1.5, moved by up to
    a tenth of `side`, and its middle cut out. Linear interpolation, edges repeat.
    """
    centre = rng.uniform(0.5 * side, 1.5 * side, 2)  # x, y on the canvas
    gain = rng.uniform(0.5, 1.5)
    shift = rng.uniform(-0.1, 0.1, 2) * side
    # canvas to output: its middle lands in the output's, then all moves by `shift`
    low = (0 - side) * gain + side / 2 + shift  # the canvas's first corner, in the output
    high = (2 * side - side) * gain + side / 2 + shift
    middle = (centre - side) * gain + side / 2 + shift
    channels = parts[0][0].shape[-1]
    out = np.full((side, side, channels), FILL, np.float32)
    kept = [np.zeros((0, 5), np.float32)]
    for number, (image, boxes) in enumerate(parts):
        height, width = image.shape[:2]
        scale = side / max(height, width) * gain
        size = np.array([width, height]) * scale
        right, below = number % 2, number // 2
        begin = np.where((right, below), middle, middle - size)
        first = np.maximum(begin, np.where((right, below), middle, low)).clip(0, side)
        last = np.minimum(begin + size, np.where((right, below), high, middle)).clip(0, side)
        _paste(out, image, begin, scale, first, last)
        moved = boxes.astype(np.float64)
        moved[:, :4] = moved[:, :4] * scale + np.tile(begin, 2)
        kept.append(_cut(moved, first, last))
    return out, np.concatenate(kept)


def _paste(
    out: np.ndarray, image: np.ndarray, begin: np.ndarray, scale: float, first: np.ndarray, last: np.ndarray
) -> None:
    """Draw `image`, scaled and with its corner at `begin`, on the pixels of `out` whose centres are in first..last."""
    x0, y0 = (int(v) for v in np.ceil(first - 0.5))
    x1, y1 = (int(v) for v in np.ceil(last - 0.5))
    if x1 <= x0 or y1 <= y0:
        return
    offset = (np.array([y0, x0]) + 0.5 - begin[::-1]) / scale - 0.5
    for channel in range(image.shape[-1]):
        ndimage.affine_transform(
            image[..., channel], np.full(2, 1 / scale), offset, (y1 - y0, x1 - x0), out[y0:y1, x0:x1, channel], order=1,
            mode="nearest",
        )  # fmt: skip


def _cut(boxes: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the boxes cut at first..last (x, y), without those of which too little is left."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    cut = boxes.copy()
    cut[:, :4] = np.clip(boxes[:, :4], np.tile(first, 2), np.tile(last, 2))
    width, height = cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1]
    left = (width > _MIN_EDGE) & (height > _MIN_EDGE) & (width * height > _MIN_AREA * area)
    return cut[left].astype(np.float32)
