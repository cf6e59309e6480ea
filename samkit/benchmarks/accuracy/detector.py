"""What every backend's detector finds on the slices of the cases: mAP, and how its boxes differ from PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from samkit.benchmarks.accuracy.gate import GraphCall
from samkit.benchmarks.accuracy.outcome import SAME, worst_parity
from samkit.benchmarks.accuracy.outputs import OutputCheck
from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.record.rows import DETECTOR, AccuracyRow, Identity
from samkit.benchmarks.record.statistics import significant
from samkit.detections import Letterbox, non_max_suppression
from samkit.errors import SamkitError
from samkit.methods._slices import as_rgb
from samkit.metrics import compare_masks
from samkit.runtime.backends.runner import Runner
from samkit.training.box_labels import boxes_of
from samkit.training.detector_metric import detector_scores

_LOW, _SURE = 0.001, 0.25
"""Confidence from which detections count for the mean precision, and from which a user gets them."""


@dataclass
class Detector:
    """One backend's detector, and what it found."""

    identity: Identity
    runner: Runner
    check: OutputCheck | None = None
    """None for PyTorch's own."""
    found: list[np.ndarray] = field(default_factory=list)
    """Per slice, (n, 6) x0, y0, x1, y1, score, class [pixels]."""
    parities: list[dict[str, float | None]] = field(default_factory=list)
    """Per slice, of the boxes that a user gets, filled, against PyTorch's."""

    def to_row(self, wanted: Sequence[np.ndarray]) -> AccuracyRow:
        """Return the row; `wanted` (n, 5) is the truth of each slice."""
        scores = detector_scores(self.found, wanted)
        errors = {} if self.check is None else self.check.errors.get(DETECTOR, {})
        failure = None if self.check is None else self.check.failures.get(DETECTOR)
        return AccuracyRow(
            self.identity,
            worst_parity(self.parities or [{**SAME, "logit_difference": None}], {DETECTOR: errors.get(DETECTOR, 0.0)}),
            reference=self.check is None,
            failures=() if failure is None else (failure.sentence(self.identity),),
            slices_measured=len(wanted),
            map50=significant(scores.map50),
            map50_95=significant(scores.map50_95),
        )


class Detection:
    """Shows slices to the detectors of all backends."""

    def __init__(self, baseline: Detector, candidates: Sequence[Detector], side: int) -> None:
        """`side` is that of the detectors' input [pixels]."""
        self._baseline, self._candidates, self._side = baseline, candidates, side
        self.wanted: list[np.ndarray] = []
        """The truth (n, 5) of each slice that was shown."""

    def show(self, case: Case, channels: np.ndarray, plane: str) -> None:
        """Show every slice that is not empty: `channels` (C, slices, H, W), 0..255, as a session has them."""
        for one in self._candidates:
            if one.check is not None:
                one.check.begin(DETECTOR)
        truth = _truth(case, plane)
        for number in range(channels.shape[1]):
            image = np.ascontiguousarray(channels[:, number].transpose(1, 2, 0))
            if not image.any():
                continue
            self.wanted.append(truth[number])
            letterbox = Letterbox.fit((image.shape[0], image.shape[1]), self._side)
            given = {"image": letterbox.apply(as_rgb(image))[None]}
            expected = GraphCall(DETECTOR, given, self._baseline.runner.run(given))
            self._baseline.found.append(_boxes(expected, letterbox, _LOW))
            shown = _filled(_boxes(expected, letterbox, _SURE), image.shape[:2])
            for one in self._candidates:
                call = GraphCall(DETECTOR, given, one.runner.run(given))
                if one.check is not None:
                    one.check.compare(call, expected, f"{case.name}, slice {number}")
                try:
                    found, sure = (_boxes(call, letterbox, confidence) for confidence in (_LOW, _SURE))
                except SamkitError:  # nan: the check has it already
                    found = sure = np.zeros((0, 6))
                one.found.append(found)
                one.parities.append({**compare_masks(_filled(sure, image.shape[:2]), shown, (1.0, 1.0))})

    def rows(self) -> list[AccuracyRow]:
        """Return a row for each detector; none where nothing was shown."""
        return [one.to_row(self.wanted) for one in (self._baseline, *self._candidates)] if self.wanted else []


def _boxes(call: GraphCall, letterbox: Letterbox, confidence: float) -> np.ndarray:
    """Return detections (n, 6) [pixels of the slice]."""
    found = non_max_suppression(call.outputs["predictions"][0], confidence)
    return np.concatenate([letterbox.boxes_back(found[:, :4]), found[:, 4:]], axis=1)


def _truth(case: Case, plane: str) -> list[np.ndarray]:
    """Return the boxes (n, 5) of each slice: given, or around the components of the targets."""
    if case.boxes is not None:
        return [case.boxes]
    if case.picture is not None:
        return [boxes_of(case.target)]
    return [boxes_of(mask) for mask in case.view(plane).slices(case.target)]


def _filled(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return which pixels (H, W) have their centre in a box."""
    mask = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes[:, :4]:
        rows, columns = (slice(*(max(0, int(np.ceil(end - 0.5))) for end in ends)) for ends in ((y0, y1), (x0, x1)))
        mask[rows, columns] = True
    return mask
