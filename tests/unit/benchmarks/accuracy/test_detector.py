"""Guards the comparison of detectors: mAP of what each one finds, and how its boxes differ from PyTorch's."""

import math

import numpy as np
import pytest

from samkit.benchmarks.accuracy.candidates import BACKENDS, Candidate, Opened
from samkit.benchmarks.accuracy.detector import Detection
from samkit.benchmarks.accuracy.outcome import Outcome
from samkit.benchmarks.accuracy.outputs import OutputCheck, Recording
from samkit.benchmarks.record.rows import DETECTOR, Identity, read_row, to_dict
from samkit.geometry import Volume
from samkit.methods import get_method
from samkit.protocols.case import Case
from samkit.runtime.backends.runner import HostRunner

METHOD = get_method("medsam-yolo")
CONFIG = METHOD.sizes["tiny"]
SPEC = next(graph for graph in METHOD.graphs(CONFIG) if graph.name == DETECTOR)
SIDE = CONFIG.detector.image
IDENTITY = Identity("medsam-yolo", "onnxruntime", "cpu", "fp32", graph=DETECTOR)


class Finds(HostRunner):
    """Finds the bright square of a picture as large as its input, moved and enlarged."""

    graph = SPEC
    providers = ("numpy",)

    def __init__(self, moved=0.0, score=0.9):
        self.moved, self.score = moved, score

    def run(self, inputs):
        rows, columns = np.nonzero(inputs["image"][0, 0] > 0.5)
        x, y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
        box = [x + self.moved, y, np.ptp(columns) + 1, np.ptp(rows) + 1, 1.0, self.score]
        return {"predictions": np.array([[box]], np.float32)}


@pytest.fixture
def subject():
    """Four slices of the detector's own side; two hold a square of 20 pixels, one is dim but not empty."""
    target = np.zeros((SIDE, SIDE, 4), bool)
    target[30:50, 40:60, 1:3] = True
    scan = Volume(np.where(target, 255, 0).astype(np.float32), np.diag([-1.0, -1, 1, 1]))
    return Case("case 1", {"": scan}, {"": target}, "axial")


def opened(runner):
    """Return what stands in a record of an opened export."""
    return BACKENDS["onnxruntime"], None, {DETECTOR: runner}, {DETECTOR: Outcome(IDENTITY)}


def shown(case, *runners):
    """Return the rows of PyTorch's detector and those of `runners` after all slices were shown."""
    checks = [OutputCheck(Recording(), {DETECTOR: SPEC}, "fp32") for _ in runners]
    candidates = [Candidate(*opened(runner), check) for runner, check in zip(runners, checks, strict=True)]
    detection = Detection(Opened(*opened(Finds())), candidates, SIDE)
    channels = case.volumes[""].array.transpose(2, 1, 0)[None].repeat(3, axis=0)
    detection.show(case, channels, 0)
    return detection.rows()


def test_detector_that_finds_what_pytorchs_finds_is_equal(subject):
    baseline, row = shown(subject, Finds())
    assert read_row(to_dict(row)) == row
    assert row.slices_measured == 2  # slices that are empty are not shown
    assert (row.map50, row.map50_95, row.parity.dice, row.parity.flipped_voxels) == (1.0, 1.0, 1.0, 0)
    assert row.failures == ()
    assert (baseline.reference, baseline.parity) == (True, row.parity)


def test_moved_box_is_found_out(subject):
    _, row = shown(subject, Finds(moved=5.0))
    # 15 of 20 columns are shared: an IoU of 0.6, right at 0.50, 0.55 and 0.60
    assert (row.map50, row.map50_95) == (1.0, 0.3)
    assert (row.parity.dice, row.parity.flipped_voxels, row.parity.hd95_mm) == (0.75, 200, 5.0)
    (sentence,) = row.failures
    assert "case 1, slice 1: " in sentence


def test_unsure_box_counts_for_the_mean_precision_alone(subject):
    _, row = shown(subject, Finds(score=0.1))
    assert (row.map50, row.parity.dice) == (1.0, 0.0)


def test_nan_finds_nothing_and_breaks(subject):
    _, row = shown(subject, Finds(moved=math.nan))
    assert row.map50 == 0
    assert "relative error of nan" in row.failures[0]


def test_boxes_of_a_picture_are_the_truth_where_they_are_given(subject):
    picture = np.zeros((SIDE, SIDE, 3), np.float32)
    picture[30:50, 40:60] = 255
    boxed = Case("case 1", {}, {}, picture=picture, boxes=np.array([[0, 0, 9, 9, 0]], np.float32))
    detection = Detection(Opened(*opened(Finds())), [], SIDE)
    detection.show(boxed, picture.transpose(2, 0, 1)[:, None], 0)
    (row,) = detection.rows()
    assert (row.reference, row.map50) == (True, 0.0)
