"""How well a detector finds boxes: mean average precision at an IoU of 0.5, and over 0.5 to 0.95.

The way of COCO (Lin et al., arXiv:1405.0312; its 101 recalls), without its limit of boxes per picture and its kinds of
size. Detections of a class go from the surest to the least sure, over all pictures; each takes the box of its picture
and class that it overlaps most and that is still free, and is right where the IoU reaches the threshold. YOLOv5's own
report pairs by overlap first and joins the 101 points by trapezoids, so that it may differ in the third decimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samkit.detections import box_iou

THRESHOLDS = tuple(round(0.5 + 0.05 * n, 2) for n in range(10))
"""IoU from which a detection counts as right."""
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class DetectorScores:
    """Means over the classes that occur; nan where no picture has a box."""

    map50: float
    map50_95: float
    """Mean over THRESHOLDS."""


def detector_scores(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> DetectorScores:
    """Return the scores of what was `found` in each picture against what was `wanted` there.

    `found` (n, 6) x0, y0, x1, y1, score, class, as `non_max_suppression` returns (at a low confidence, 0.001: the
    surer ones don't suffer); `wanted` (m, 5) x0, y0, x1, y1, class.
    """
    pictures = list(zip(found, wanted, strict=True))
    kinds = sorted({int(kind) for boxes in wanted for kind in boxes[:, 4]})
    table = np.array([[_average_precision(pictures, kind, threshold) for threshold in THRESHOLDS] for kind in kinds])
    if not kinds:
        return DetectorScores(float("nan"), float("nan"))
    return DetectorScores(float(table[:, 0].mean()), float(table.mean()))


def _average_precision(pictures: Sequence[tuple[np.ndarray, np.ndarray]], kind: int, threshold: float) -> float:
    """Return the mean, over RECALLS, of the best precision at that recall or more; 0 at recalls never reached."""
    scores, right, boxes = [np.zeros(0)], [np.zeros(0, bool)], 0
    for found, wanted in pictures:
        ours, theirs = found[found[:, 5] == kind], wanted[wanted[:, 4] == kind]
        ours = ours[np.argsort(-ours[:, 4], kind="stable")]
        scores.append(ours[:, 4])
        right.append(_is_right(box_iou(ours[:, :4], theirs[:, :4]), threshold))
        boxes += len(theirs)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits = np.cumsum(np.concatenate(right)[order])
    recall = hits / boxes
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    # A recall of 3/10 must count as reached by the point 0.3.
    return float(best[np.searchsorted(recall, RECALLS - 1e-9)].mean())


def _is_right(overlaps: np.ndarray, threshold: float) -> np.ndarray:
    """Return whether each detection of a picture, surest first, is right: overlaps (n, m) with the boxes wanted."""
    right = np.zeros(len(overlaps), bool)
    free = np.ones(overlaps.shape[1], bool)
    for number, row in enumerate(overlaps):
        candidates = np.where(free, row, 0)
        if candidates.size and candidates.max() >= threshold:
            right[number] = True
            free[candidates.argmax()] = False
    return right
