"""Guards the detector's scores against values counted by hand."""

import math

import numpy as np
import pytest

from samkit.training.detector_metric import detector_scores

NOTHING = np.zeros((0, 6))


def found(*rows):
    return np.array(rows, np.float64).reshape(-1, 6)


def wanted(*rows):
    return np.array(rows, np.float64).reshape(-1, 5)


SQUARE, OTHER = (0, 0, 10, 10), (50, 50, 60, 60)


def test_perfect_detections_score_one():
    scores = detector_scores([found((*SQUARE, 0.9, 0))], [wanted((*SQUARE, 0))])
    assert scores.map50 == scores.map50_95 == 1


def test_nothing_found_scores_zero():
    scores = detector_scores([NOTHING, NOTHING], [wanted((*SQUARE, 0)), wanted()])
    assert scores.map50 == scores.map50_95 == 0


def test_pictures_without_boxes_have_no_score():
    scores = detector_scores([found((*SQUARE, 0.9, 0))], [wanted()])
    assert math.isnan(scores.map50)
    assert math.isnan(scores.map50_95)


def test_half_of_the_boxes_found_scores_half():
    """Precision 1 up to a recall of 0.5, so at 51 of 101 points."""
    scores = detector_scores([found((*SQUARE, 0.9, 0))], [wanted((*SQUARE, 0), (*OTHER, 0))])
    assert scores.map50 == pytest.approx(51 / 101)


@pytest.mark.parametrize(("score", "expected"), [(0.95, 0.5), (0.1, 1.0)])
def test_a_false_alarm_costs_only_what_is_less_sure(score, expected):
    false_alarm = found((*OTHER, score, 0))  # in another picture
    scores = detector_scores([found((*SQUARE, 0.9, 0)), false_alarm], [wanted((*SQUARE, 0)), wanted()])
    assert scores.map50 == pytest.approx(expected)


def test_a_second_detection_of_one_box_is_wrong():
    twice = found((*SQUARE, 0.9, 0), (*SQUARE, 0.8, 0), (*OTHER, 0.7, 0))
    scores = detector_scores([twice], [wanted((*SQUARE, 0), (*OTHER, 0))])
    # right, wrong, right: precision 1 up to recall 0.5 (51 points), then 2/3 (50 points)
    assert scores.map50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_stricter_thresholds_drop_what_overlaps_less():
    shifted = found((0, 0, 10, 7.2, 0.9, 0))  # IoU 0.72: right at 0.5, 0.55, 0.6, 0.65, 0.7
    scores = detector_scores([shifted], [wanted((*SQUARE, 0))])
    assert scores.map50 == 1
    assert scores.map50_95 == pytest.approx(0.5)


def test_classes_count_alike():
    """Class 0 is found, class 4 is taken for class 0: there a false alarm of lower score, here a miss."""
    scores = detector_scores(
        [found((*SQUARE, 0.9, 0), (*OTHER, 0.8, 0))],
        [wanted((*SQUARE, 0), (*OTHER, 4))],
    )
    assert scores.map50 == pytest.approx(0.5)


def test_detection_takes_the_box_it_overlaps_most():
    boxes = wanted((0, 0, 10, 10, 0), (4, 0, 14, 10, 0))
    both = found((3.5, 0, 13.5, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0))  # the surer one overlaps either by 0.48, 0.9
    assert detector_scores([both], [boxes]).map50 == 1
