"""Guards the gate: masks are held to limits, and one sentence names all of what failed."""

import math

import pytest

from samkit.benchmarks.accuracy.gate import Deviation, mask_fault
from samkit.benchmarks.accuracy.settings import AccuracySettings
from samkit.benchmarks.record.rows import Identity


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
