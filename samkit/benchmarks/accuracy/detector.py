"""What every backend's detector finds on the slices of the cases: mAP, and how its boxes differ from PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from samkit.benchmarks.accuracy.candidates import Candidate, Opened
from samkit.benchmarks.accuracy.outcome import GraphCall
from samkit.benchmarks.record.rows import DETECTOR, AccuracyRow
from samkit.benchmarks.record.statistics import significant
from samkit.detections import Letterbox, non_max_suppression
from samkit.errors import SamkitError
from samkit.methods._slices import as_rgb
from samkit.metrics import compare_masks
from samkit.protocols.case import Case
from samkit.training.box_labels import boxes_of
from samkit.training.detector_metric import detector_scores

_LOW, _SURE = 0.001, 0.25
"""Confidence from which detections count for the mean precision, and from which a user gets them."""


class Detection:
    """Shows slices to the detectors of all backends, and notes what each one finds."""

    def __init__(self, baseline: Opened, candidates: Sequence[Candidate], side: int) -> None:
        """`side` is that of the detectors' input [pixels]."""
        self._baseline, self._candidates, self._side = baseline, candidates, side
        baseline.outcomes[DETECTOR].relative_error[DETECTOR] = 0.0
        self._wanted: list[np.ndarray] = []
        """The truth (n, 5) of each slice that was shown."""
        self._found: list[list[np.ndarray]] = [[] for _ in (baseline, *candidates)]
        """By backend and slice, (n, 6) x0, y0, x1, y1, score, class [pixels]."""

    def show(self, case: Case, channels: np.ndarray, number: int) -> None:
        """Show what is not empty of the case of that number: `channels` (C, slices, H, W), 0..255, of a session."""
        for one in self._candidates:
            one.check.begin(one.outcomes[DETECTOR], number)
        truth = _truth(case)
        for place, image in enumerate(map(np.ascontiguousarray, channels.transpose(1, 2, 3, 0))):
            if not image.any():
                continue
            self._wanted.append(truth[place])
            shape = (image.shape[0], image.shape[1])
            letterbox = Letterbox.fit(shape, self._side)
            given = {"image": letterbox.apply(as_rgb(image))[None]}
            expected = call = GraphCall(DETECTOR, given, self._baseline.runners[DETECTOR].run(given))
            shown = _filled(_boxes(expected, letterbox, _SURE), shape)
            for opened, boxes in zip((self._baseline, *self._candidates), self._found, strict=True):
                if isinstance(opened, Candidate):
                    call = GraphCall(DETECTOR, given, opened.runners[DETECTOR].run(given))
                    opened.check.compare(call, expected, f"{case.name}, slice {place}")
                try:
                    found, sure = (_boxes(call, letterbox, confidence) for confidence in (_LOW, _SURE))
                except SamkitError:  # nan: the check has it already
                    found = sure = np.zeros((0, 6))
                boxes.append(found)
                opened.outcomes[DETECTOR].parities.append(compare_masks(_filled(sure, shape), shown, (1.0, 1.0)))

    def rows(self) -> list[AccuracyRow]:
        """Return a row for each detector; none where nothing was shown."""
        rows = []
        for one, found in zip((self._baseline, *self._candidates), self._found, strict=True):
            if self._wanted:
                outcome, scores = one.outcomes[DETECTOR], detector_scores(found, self._wanted)
                row = AccuracyRow(outcome.identity, outcome.parity, one is self._baseline, failures=outcome.sentences)
                map50, map50_95 = significant(scores.map50), significant(scores.map50_95)
                rows.append(replace(row, slices_measured=len(self._wanted), map50=map50, map50_95=map50_95))
        return rows


def _boxes(call: GraphCall, letterbox: Letterbox, confidence: float) -> np.ndarray:
    """Return detections (n, 6) [pixels of the slice]."""
    found = non_max_suppression(call.outputs["predictions"][0], confidence)
    return np.concatenate([letterbox.boxes_back(found[:, :4]), found[:, 4:]], axis=1)


def _truth(case: Case) -> list[np.ndarray]:
    """Return the boxes (n, 5) of each slice: given, or around the components of the targets."""
    if case.boxes is not None:
        return [case.boxes]
    slices = [case.target] if case.picture is not None else case.view().slices(case.target)
    return [boxes_of(mask) for mask in slices]


def _filled(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return which pixels (H, W) have their centre in a box."""
    mask = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes[:, :4]:
        rows, columns = (slice(*(max(0, int(np.ceil(end - 0.5))) for end in ends)) for ends in ((y0, y1), (x0, x1)))
        mask[rows, columns] = True
    return mask
