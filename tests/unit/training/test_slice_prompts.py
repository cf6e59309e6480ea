"""Simulated prompts lie where a user's would, and are those that the published trainings draw."""

import numpy as np
import pytest

from samkit.prompts import BACKGROUND, FOREGROUND, PADDING
from samkit.training.slice_prompts import components, error_points, jittered_box, random_point, shifted_box, tight_box


@pytest.fixture
def mask():
    mask = np.zeros((128, 256), bool)
    mask[30:50, 100:160] = True
    return mask


def test_jittered_sides_move_out_by_their_own_whole_pixels_of_1024(mask):
    tight = tight_box(mask)
    np.testing.assert_array_equal(tight, [100, 30, 159, 49])
    moves = np.array([jittered_box(mask, np.random.default_rng(s)) - tight for s in range(600)]) * (-1, -1, 1, 1)
    pixels = moves * 1024 / np.array([256, 128, 256, 128])
    for side in range(4):
        assert set(np.rint(pixels[:, side]).astype(int)) == set(range(21))
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-3)
    assert abs(np.corrcoef(pixels[:, 0], pixels[:, 2])[0, 1]) < 0.15


def test_jittered_box_stays_in_the_image_and_may_not_move_at_all():
    full = np.ones((64, 64), bool)
    np.testing.assert_array_equal(jittered_box(full, np.random.default_rng(0)), [0, 0, 63, 63])
    full[0] = False
    np.testing.assert_array_equal(jittered_box(full, np.random.default_rng(0), (0, 0)), [0, 1, 63, 63])


def test_shifted_box_is_the_largest_components_and_keeps_its_size(mask):
    mask[100:104, 10:16] = True
    boxes = np.array([shifted_box(mask, np.random.default_rng(s)) for s in range(300)])
    shifts = boxes - [100, 30, 160, 50]
    np.testing.assert_array_equal(shifts[:, :2], shifts[:, 2:])
    assert set(shifts[:, 0]) == set(shifts[:, 1]) == set(range(-5, 5))


def test_shifts_on_a_large_slice_are_pixels_of_256(mask):
    large = mask.repeat(4, axis=0).repeat(2, axis=1)  # 512 x 512
    shifts = np.array([shifted_box(large, np.random.default_rng(s)) for s in range(300)]) - [200, 120, 320, 200]
    assert set(shifts[:, 0]) == set(shifts[:, 1]) == set(range(-10, 10, 2))


def test_shift_shrinks_with_the_box():
    small = np.zeros((20, 20), bool)
    small[5:9, 5:12] = True
    shifts = {tuple(shifted_box(small, np.random.default_rng(s))[:2] - [5, 5]) for s in range(200)}
    assert {s for pair in shifts for s in pair} == {-2, -1, 0, 1}
    small[:] = False
    small[5, 7] = True
    np.testing.assert_array_equal(shifted_box(small, np.random.default_rng(0)), [7, 5, 8, 6])


def test_random_point_is_in_the_mask_or_says_background(mask):
    for seed in range(50):
        points, labels = random_point(mask, np.random.default_rng(seed))
        x, y = points[0].astype(int)
        assert mask[y, x]
        assert labels.tolist() == [FOREGROUND]
    points, labels = random_point(np.zeros((4, 9), bool), np.random.default_rng(0))
    assert points.shape == (1, 2)
    assert labels.tolist() == [BACKGROUND]


def test_error_points_say_which_kind_of_error(mask):
    prediction = np.roll(mask, 20, axis=1)
    points, labels = error_points(prediction, mask, np.random.default_rng(0), 40)
    x, y = points.astype(int).T
    assert points.shape == (40, 2)
    assert (prediction[y, x] != mask[y, x]).all()
    np.testing.assert_array_equal(labels, mask[y, x])
    assert set(labels) == {FOREGROUND, BACKGROUND}


def test_no_error_gives_padding(mask):
    points, labels = error_points(mask, mask, np.random.default_rng(0), 3)
    assert labels.tolist() == [PADDING] * 3
    assert np.isfinite(points).all()


def test_components_touch_at_corners_and_small_ones_are_left_out():
    mask = np.zeros((20, 20), bool)
    mask[0:3, 0:3] = True
    mask[3:5, 3:5] = True  # touches at a corner: 13 pixels together
    mask[10:13, 10:13] = True  # 9 pixels
    mask[15:19, 0:5] = True  # 20 pixels
    assert [int(part.sum()) for part in components(mask)] == [20, 13]
    assert [int(part.sum()) for part in components(mask, 9)] == [20, 13, 9]
    assert components(np.zeros((4, 4), bool)) == []
