"""What every backend's detector finds on the slices of the subjects: mAP, and how its boxes differ from PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from samkit.benchmarks.accuracy.gate import Call, CallJudge
from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.record.metrics import compare_masks
from samkit.benchmarks.record.run import Row
from samkit.benchmarks.record.statistics import significant
from samkit.detections import Letterbox, non_max_suppression
from samkit.errors import SamkitError
from samkit.methods._slices import as_rgb
from samkit.planes import PlaneView
from samkit.runtime.backends.runner import Runner
from samkit.training.box_labels import boxes_of
from samkit.training.detector_metric import detector_scores

DETECTOR = "detector"
_LOW = 0.001
"""Confidence from which detections count for the mean precision."""


@dataclass
class DetectorBook:
    """The notes on one backend's detector."""

    identity: Row
    found: list[np.ndarray] = field(default_factory=list)
    """Per slice, (n, 6) x0, y0, x1, y1, score, class [pixels]."""
    worst: dict[str, float] = field(default_factory=lambda: {"dice": 1.0, "flipped_voxels": 0, "hd95_mm": 0.0})
    """Of the boxes that a user gets, filled, against PyTorch's."""

    def to_row(self, wanted: Sequence[np.ndarray], error: float, failures: Sequence[str], is_reference: bool) -> Row:
        """Return the row; `wanted` (n, 5) is the truth of each slice."""
        scores = detector_scores(self.found, wanted)
        return {
            "kind": "accuracy", **self.identity, "graph": DETECTOR, "slices_measured": len(wanted),
            **({"reference": True} if is_reference else {}),
            "map50": significant(scores.map50), "map50_95": significant(scores.map50_95),
            "parity_dice": significant(self.worst["dice"], 7), "parity_hd95_mm": significant(self.worst["hd95_mm"]),
            "flipped_voxels": int(self.worst["flipped_voxels"]), "relative_error": {DETECTOR: significant(error, 3)},
            "failures": list(failures),
        }  # fmt: skip


DetectorRival: TypeAlias = tuple[Runner, CallJudge, DetectorBook]


class DetectorTrial:
    """Shows slices to the detectors of all backends."""

    def __init__(self, runner: Runner, side: int, identity: Row) -> None:
        """`runner` is PyTorch's detector, `side` its input's [pixels]."""
        self._runner, self._side = runner, side
        self.reference = DetectorBook(identity)
        self.wanted: list[np.ndarray] = []

    def show(self, case: Case, channels: np.ndarray, plane: str, rivals: Sequence[DetectorRival]) -> None:
        """Show every slice that is not empty: `channels` (C, slices, H, W), 0..255, as a session has them."""
        truth = _truth(case, plane)
        for number in range(channels.shape[1]):
            image = np.ascontiguousarray(channels[:, number].transpose(1, 2, 0))
            if not image.any():
                continue
            self.wanted.append(truth[number])
            letterbox = Letterbox.fit((image.shape[0], image.shape[1]), self._side)
            feed = {"image": letterbox.apply(as_rgb(image))[None]}
            expected = Call(DETECTOR, feed, self._runner.run(feed))
            self.reference.found.append(_boxes(expected.outputs["predictions"][0], letterbox, _LOW))
            shown = _filled(_boxes(expected.outputs["predictions"][0], letterbox), image.shape[:2])
            for runner, judge, book in rivals:
                call = Call(DETECTOR, feed, runner.run(feed))
                judge.compare(call, expected, f"{case.name}, slice {number}")
                try:
                    found, sure = (_boxes(call.outputs["predictions"][0], letterbox, at) for at in (_LOW, 0.25))
                except SamkitError:  # nan: the judge has it already
                    found = sure = np.zeros((0, 6))
                book.found.append(found)
                parity = compare_masks(_filled(sure, image.shape[:2]), shown, (1.0, 1.0))
                worse = {"dice": min, "flipped_voxels": max, "hd95_mm": max}
                book.worst = {key: pick(book.worst[key], parity[key]) for key, pick in worse.items()}


def _boxes(predictions: np.ndarray, letterbox: Letterbox, confidence: float = 0.25) -> np.ndarray:
    """Return detections (n, 6) [pixels of the slice]."""
    found = non_max_suppression(predictions, confidence)
    return np.concatenate([letterbox.boxes_back(found[:, :4]), found[:, 4:]], axis=1)


def _truth(case: Case, plane: str) -> list[np.ndarray]:
    """Return the boxes (n, 5) of each slice: given, or around the components of the targets."""
    if case.boxes is not None:
        return [case.boxes]
    everything: Any = np.any(list(case.targets.values()), axis=0)
    if case.picture is not None:
        return [boxes_of(everything)]
    i, j, k = everything.shape
    view = PlaneView.of((i, j, k), next(iter(case.volumes.values())).affine, plane)
    return [boxes_of(mask) for mask in view.slices(everything)]


def _filled(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return which pixels (H, W) have their centre in a box."""
    mask = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes[:, :4]:
        mask[_pixels(y0, y1), _pixels(x0, x1)] = True
    return mask


def _pixels(first: float, last: float) -> slice:
    return slice(max(0, int(np.ceil(first - 0.5))), max(0, int(np.ceil(last - 0.5))))
