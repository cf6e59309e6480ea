"""Simulated clicks fall on errors and say which kind; the deterministic policy is central."""

import numpy as np
import pytest

from samkit.clicks import central_click, deepest_error, first_click, next_click
from samkit.prompts import BACKGROUND, FOREGROUND, Point


def _cube(low: int, high: int) -> np.ndarray:
    mask = np.zeros((12, 12, 12), bool)
    mask[low:high, low:high, low:high] = True
    return mask


def _voxel(point: Point) -> tuple[int, ...]:
    return tuple(int(v) for v in point.index)


def test_first_click_is_in_the_foreground():
    target = _cube(3, 6)

    points = [first_click(target, np.random.default_rng(seed)) for seed in range(20)]

    assert all(target[_voxel(p)] and p.label == FOREGROUND for p in points)
    assert len({p.index for p in points}) > 10


def test_next_click_is_in_the_error_and_says_which_kind():
    target, prediction = _cube(2, 7), _cube(4, 9)
    labels = set()

    for seed in range(40):
        point = next_click(prediction, target, np.random.default_rng(seed))
        assert target[_voxel(point)] != prediction[_voxel(point)]
        assert point.label == (FOREGROUND if target[_voxel(point)] else BACKGROUND)
        labels.add(point.label)

    assert labels == {FOREGROUND, BACKGROUND}


def test_same_seed_gives_the_same_click():
    first, second = (next_click(_cube(0, 2), _cube(2, 7), np.random.default_rng(4)) for _ in range(2))

    assert first == second


def test_central_click_is_the_middle_of_the_largest_error():
    target = _cube(2, 7)
    target[10, 10, 10] = True

    assert central_click(np.zeros_like(target), target) == Point((4.0, 4.0, 4.0), FOREGROUND)


def test_slice_has_a_deepest_error_of_its_own():
    target = _cube(2, 7)[4]

    assert deepest_error(np.zeros_like(target), target) == (4, 4)
    assert deepest_error(target, target) is None


def test_central_click_marks_surplus_as_background():
    assert central_click(_cube(2, 7), _cube(2, 3)).label == BACKGROUND


def test_central_click_counts_the_arrays_edge_as_border():
    whole = np.ones((5, 5, 5), bool)

    assert central_click(np.zeros_like(whole), whole) == Point((2.0, 2.0, 2.0), FOREGROUND)


@pytest.mark.parametrize("click", [lambda p, t: next_click(p, t, np.random.default_rng(0)), central_click])
def test_no_error_gives_no_click(click):
    assert click(_cube(2, 7), _cube(2, 7)) is None


def test_empty_target_has_no_first_click():
    assert first_click(np.zeros((4, 4, 4), bool), np.random.default_rng(0)) is None
