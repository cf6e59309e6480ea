"""Guards the rows of accuracy: worst and mean over cases, clicks to a Dice and their drift, limits, what broke."""

import math

import pytest

from samkit.benchmarks.accuracy.outcome import SAME, Deviation, GraphCall, Outcome, mask_fault
from samkit.benchmarks.accuracy.settings import AccuracySettings
from samkit.benchmarks.record.rows import Absent, ClickFigures, Identity, read_row, to_dict

IDENTITY = Identity("sam", "onnxruntime", "cpu", "fp32", stage="masks", policy="centre")


def outcome(dice, own=None, parity=SAME):
    """Return the outcome of cases with those Dice after each click."""
    made = Outcome(IDENTITY)
    for case, values in dice.items():
        for click, value in enumerate(values, start=1):
            figures = {"dice": value, "hd95_mm": 1 / value if value else math.inf}
            made.steps[case].append(ClickFigures(click, figures, parity))
            made.parities.append(parity)
    made.own_dice = {case: list(values) for case, values in (own or dice).items()}
    return made


def test_figures_are_of_the_last_click_and_worst_by_direction():
    made = outcome({"case 1": [0.1, 0.5], "case 2": [0.9, 0.25]})
    row = made.to_row(made, 2)
    assert read_row(to_dict(row)).identity == row.identity
    dice, distance = row.figures["dice"], row.figures["hd95_mm"]
    assert (dice.mean.value, dice.mean.low, dice.mean.high) == (0.375, 0.25, 0.5)
    assert (dice.worst, distance.worst) == (0.25, 4.0)
    assert row.dice_by_click == ((0.1, 0.9), (0.5, 0.25))


def test_infinite_distance_is_counted_and_kept_out_of_the_mean():
    made = outcome({"case 1": [0.5], "case 2": [0.0]})
    distance = made.to_row(made, 1).figures["hd95_mm"]
    assert (distance.mean.value, distance.worst, distance.not_finite) == (2.0, math.inf, 1)
    made = outcome({"case 1": [0.0]})
    assert made.to_row(made, 1).figures["hd95_mm"].mean.value == math.inf


def test_case_that_was_done_sooner_keeps_its_last_dice():
    made = outcome({"case 1": [0.7, 0.8, 0.9], "case 2": [1.0]})
    assert made.to_row(made, 3).dice_by_click == ((0.7, 1.0), (0.8, 1.0), (0.9, 1.0))


def test_parity_is_the_worst_of_all_clicks():
    made = outcome({"case 1": [0.5]})
    made.parities += [
        {"dice": 0.9, "flipped_voxels": 3, "hd95_mm": 0.5, "logit_difference": None},
        {"dice": 0.95, "flipped_voxels": 7, "hd95_mm": math.inf, "logit_difference": 0.25},
    ]
    row = made.to_row(outcome({"case 1": [0.5]}), 1)
    found = [row.parity.dice, row.parity.flipped_voxels, row.parity.hd95_mm, row.parity.logit_difference]
    assert found == [0.9, 7, math.inf, 0.25]


def test_logit_that_is_no_number_is_the_worst():
    made = outcome({"case 1": [0.5]}, parity=SAME | {"logit_difference": math.nan})
    made.parities.append(SAME)
    assert math.isnan(made.to_row(outcome({"case 1": [0.5]}), 1).parity.logit_difference)


@pytest.mark.parametrize(
    ("own", "clicks", "drift"),
    [
        ([0.7, 0.85, 0.95], {"0.80": [2], "0.85": [2], "0.90": [3]}, {"0.80": 0.0, "0.85": 0.0, "0.90": math.inf}),
        ([0.85, 0.86, 0.87], {"0.80": [1], "0.85": [1], "0.90": [None]}, {"0.80": 1.0, "0.85": 1.0, "0.90": None}),
        ([0.1, 0.2, 0.3], {"0.80": [None], "0.85": [None], "0.90": [None]}, {"0.80": math.inf, "0.90": None}),
    ],
)
def test_clicks_to_a_dice_are_of_the_backends_own_errors(own, clicks, drift):
    theirs = {"case 1": [0.7, 0.86, 0.87]}
    row = outcome(theirs, {"case 1": own}).to_row(outcome(theirs), 3)
    assert row.clicks_to == {key: tuple(value) for key, value in clicks.items()}
    assert drift.items() <= row.click_drift.items()


def test_case_that_was_not_clicked_on_to_the_end_has_no_drift():
    theirs = outcome({"case 1": [0.7, 0.95], "case 2": [0.7, 0.95]})
    row = outcome({"case 1": [0.7, 0.95], "case 2": [0.7]}, own={"case 1": [0.7, 0.95]}).to_row(theirs, 2)
    assert (row.clicks_to["0.90"], row.click_drift["0.90"]) == ((2,), 0.0)
    assert row.clicks_done == (2, 1)


def test_automatic_policy_has_no_clicks_to_anything():
    made = outcome({"case 1": [0.9]})
    made.own_dice = {}
    row = made.to_row(made, 1)
    assert (row.clicks_to["0.80"], row.click_drift["0.80"]) == ((), None)


def test_row_of_pytorch_says_that_it_is_the_reference():
    made = outcome({"case 1": [0.9]})
    row = made.to_row(made, 1)
    assert (row.reference, row.parity.dice, row.parity.flipped_voxels) == (True, 1.0, 0)
    assert not outcome({"case 1": [0.9]}).to_row(made, 1).reference


def test_first_break_of_each_kind_and_graph_is_told():
    made = outcome({"case 1": [0.9]})
    for number, where in enumerate(("case 3, click 1", "case 4, click 1"), start=2):
        made.fail(Deviation(where, "mask_decoder", "too far", GraphCall("mask_decoder", {}, {})), number)
        made.fail(Deviation(where, "mask_decoder", "the mask moved"), number)
    row = made.to_row(outcome({"case 1": [0.9]}), 1)
    assert row.failed_case == 3
    assert row.failures == (
        "sam, mask_decoder on onnxruntime (fp32, cpu), case 3, click 1: too far",
        "sam, mask_decoder on onnxruntime (fp32, cpu), case 3, click 1: the mask moved",
    )


def test_backend_that_never_answered_has_an_error_in_place_of_figures():
    made = Outcome(IDENTITY)
    made.fail(Deviation("case 1, click 1", "the session", "it failed"), 0)
    row = made.to_row(outcome({"case 1": [0.9]}), 1)
    assert read_row(to_dict(row)).identity == row.identity
    assert isinstance(row, Absent)
    assert (row.reason, row.is_failure) == (row.failures[0], True)


@pytest.mark.parametrize(
    ("dice", "flipped", "distance", "size", "found"),
    [
        (0.99991, 900, 1.0, 10**6, None),
        (0.9998, 90, 0.0, 10**6, "Dice 0.99980 against PyTorch's, needed is at least 0.9999"),
        (0.9, 5, 2.0, 100, None),
        (0.9, 6, 2.0, 100, "6 voxels other than PyTorch's 100, needed are at most 5"),
        (0.99991, 9, 2.1, 10**6, "HD95 2.1 mm against PyTorch's, needed is at most 2 mm"),
        (0.0, 3, math.inf, 0, "HD95 inf mm against PyTorch's, needed is at most 2 mm"),
    ],
)
def test_mask_is_held_to_limits(dice, flipped, distance, size, found):
    parity = {"dice": dice, "flipped_voxels": flipped, "hd95_mm": distance}
    assert mask_fault(parity, size, AccuracySettings(()).tolerance("fp32", (1.0, 1.0, 2.0))) == found


def test_limits_that_are_given_are_used():
    tolerance = AccuracySettings((), min_parity_dice=0.4, max_parity_hd95=7.0).tolerance("fp16", (1.0, 1.0))
    assert (tolerance.min_dice, tolerance.max_hd95) == (0.4, 7.0)
    assert AccuracySettings(()).tolerance("fp16", (1.0, 1.0)).min_dice == 0.995


def test_sentence_names_everything():
    identity = Identity("m-sam", "onnxruntime", "cpu", "fp16")
    found = Deviation("case 1, click 2", "mask_decoder", "the mask has Dice 0.9", node="MatMul_3")
    assert found.sentence(identity) == (
        "m-sam, mask_decoder on onnxruntime (fp16, cpu), case 1, click 2: the mask has Dice 0.9; the first node that "
        "is not finite is MatMul_3"
    )


def test_limits_can_be_read():
    said = AccuracySettings((), min_parity_dice=0.99, max_parity_hd95=1.5).limits

    assert "at least 0.99 in fp32, 0.99 in fp16" in said
    assert said.endswith("HD95 at most 1.5 mm")
