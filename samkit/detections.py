"""From a picture to a detector's input, and from its predictions to boxes of that picture. numpy only.

Boxes are (n, 4) x0, y0, x1, y1 [pixels, continuous: 0 is the left or upper edge of the first pixel, W and H the far
edges]. Steps and constants are those of YOLOv5's published pipeline (letterbox, confidence 0.25, IoU 0.45).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samkit.errors import TensorMismatchError
from samkit.placement import resize_bilinear

STRIDE = 32
"""Pixels of the input per cell of the coarsest grid: sides are multiples of it."""
BORDER = 114
"""The grey around a letterboxed picture, of 0..255: what YOLOv5 was trained with."""
CLASS_OFFSET = 7680.0
"""Distance [pixels] that keeps boxes of different classes apart; larger than any picture."""
CANDIDATES = 30_000
"""Most boxes that compete; the surest ones are taken."""


@dataclass(frozen=True)
class Letterbox:
    """How a picture lies in a detector's input: scaled alike along both axes, in the middle, grey around it."""

    shape: tuple[int, int]
    """Height and width of the picture [pixels]."""
    scaled: tuple[int, int]
    """Height and width of the picture in the input."""
    size: tuple[int, int]
    """Height and width of the input."""
    corner: tuple[int, int]
    """Row and column of the input where the picture begins."""

    @classmethod
    def fit(cls, shape: tuple[int, int], side: int = 640, *, minimal: bool = False) -> Letterbox:
        """Return the letterbox of a picture of `shape` (H, W) in a square of `side` [pixels].

        `minimal` leaves whole strides of border away: the smallest rectangle whose sides are multiples of 32.
        """
        if min(shape) < 1 or side < STRIDE or side % STRIDE:
            raise TensorMismatchError(
                f"a picture of {shape} pixels can't be letterboxed to {side}; needed are at least 1 x 1 pixels, and "
                f"a side that {STRIDE} divides"
            )
        gain = min(side / n for n in shape)
        height, width = (max(1, round(n * gain)) for n in shape)
        spare = [side - height, side - width]
        if minimal:
            spare = [n % STRIDE for n in spare]
        top, left = (round(n / 2 - 0.1) for n in spare)  # an odd pixel goes below and to the right
        return cls(shape, (height, width), (height + spare[0], width + spare[1]), (top, left))

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the input (3, h, w) from 0 to 1, float32, of a picture (H, W, 3) from 0 to 255.

        Bilinear between pixel centres without smoothing, edges repeated, as OpenCV's INTER_LINEAR; pictures of whole
        numbers stay whole numbers, which differ from OpenCV's by one at most.
        """
        if image.shape != (*self.shape, 3):
            raise TensorMismatchError(
                f"the picture has shape {image.shape}, this letterbox was made for {(*self.shape, 3)}; "
                "fit one to this picture, with three channels last"
            )
        scaled = resize_bilinear(image.transpose(2, 0, 1), self.scaled)
        if np.issubdtype(image.dtype, np.integer):
            scaled = np.floor(scaled + 0.5)
        (top, left), (height, width) = self.corner, self.scaled
        out = np.full((3, *self.size), BORDER, np.float32)
        out[:, top : top + height, left : left + width] = scaled
        return out / np.float32(255)

    def boxes(self, picture: np.ndarray) -> np.ndarray:
        """Return boxes (n, 4) of the picture as boxes of the input."""
        return np.asarray(picture, np.float64).reshape(-1, 4) * self._gains + self._shifts

    def boxes_back(self, found: np.ndarray) -> np.ndarray:
        """Return boxes (n, 4) of the input as boxes of the picture, cut off at its edges."""
        height, width = self.shape
        back = (np.asarray(found, np.float64).reshape(-1, 4) - self._shifts) / self._gains
        return np.clip(back, 0, [width, height, width, height])

    @property
    def _gains(self) -> np.ndarray:
        """Return pixels of the input per pixel of the picture along x, y, x, y; rounding makes the two differ a bit."""
        down, along = (new / old for old, new in zip(self.shape, self.scaled, strict=True))
        return np.array([along, down, along, down])

    @property
    def _shifts(self) -> np.ndarray:
        top, left = self.corner
        return np.array([left, top, left, top], np.float64)


def non_max_suppression(
    predictions: np.ndarray, confidence: float = 0.25, iou: float = 0.45, max_detections: int = 1000
) -> np.ndarray:
    """Return the boxes that a detector found, (n, 6) x0, y0, x1, y1 [pixels of the input], score, class; surest first.

    `predictions` (rows, 5 + classes), one picture's, as Yolo.detect describes them. A box's score is that of its best
    class, objectness times probability; it must exceed `confidence`, as must the objectness. Of two boxes of one
    class that overlap by more than `iou`, the surer one stays.
    """
    if predictions.ndim != 2 or predictions.shape[1] < 6:
        raise TensorMismatchError(
            f"predictions have shape {predictions.shape}, needed are one picture's, (rows, 5 + classes); "
            "pass one entry of the batch"
        )
    if not np.isfinite(predictions).all():
        raise TensorMismatchError("predictions hold NaN or Inf; run the detector in float32")
    rows = np.asarray(predictions, np.float64)
    rows = rows[rows[:, 4] > confidence]
    scores = rows[:, 5:] * rows[:, 4:5]
    kinds = scores.argmax(1)
    best = scores[np.arange(len(rows)), kinds]
    order = np.argsort(-best, kind="stable")
    order = order[best[order] > confidence][:CANDIDATES]
    centre, half = rows[order, :2], rows[order, 2:4] / 2
    boxes = np.concatenate([centre - half, centre + half], 1)
    apart = boxes + CLASS_OFFSET * kinds[order, None]
    kept: list[int] = []
    rivals = np.arange(len(order))
    while len(rivals) and len(kept) < max_detections:
        first, rivals = int(rivals[0]), rivals[1:]
        kept.append(first)
        rivals = rivals[box_iou(apart[first][None], apart[rivals])[0] <= iou]
    return np.concatenate([boxes[kept], best[order][kept, None], kinds[order][kept, None]], 1)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how much boxes `a` (n, 4) and `b` (m, 4) overlap, intersection over union (n, m); 0 for empty boxes.

    >>> box_iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6]])).round(3).tolist()
    [[0.333, 0.0]]
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    shared = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    intersection = np.prod(np.maximum(shared, 0), -1)
    union = _areas(a)[:, None] + _areas(b)[None] - intersection
    return intersection / np.where(union > 0, union, 1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), -1)
