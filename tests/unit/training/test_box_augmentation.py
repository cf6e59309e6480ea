"""Boxes stay on what they mark: an image that is bright in its boxes alone still is after every change."""

import numpy as np
import pytest

from samkit.training.box_augmentation import FILL, flip_boxes, jitter_colour, mosaic


def marked(height, width, boxes):
    image = np.full((height, width, 3), 40.0, np.float32)
    for x0, y0, x1, y1, _ in boxes:
        image[y0:y1, x0:x1] = 240.0
    return image, np.array(boxes, np.float32).reshape(-1, 5)


@pytest.mark.parametrize("axis", [0, 1])
def test_flipped_boxes_stay_on_their_marks(axis):
    image, boxes = marked(20, 30, [(3, 5, 9, 16, 0), (20, 0, 30, 4, 2)])
    flipped, moved = flip_boxes(image, boxes, axis)
    expected, _ = marked(20, 30, moved.astype(int))
    np.testing.assert_array_equal(flipped, expected)
    np.testing.assert_array_equal(moved[:, 4], [0, 2])
    back = flip_boxes(flipped, moved, axis)
    np.testing.assert_array_equal(back[0], image)
    np.testing.assert_array_equal(back[1], boxes)


def test_mosaic_moves_boxes_with_their_images():
    parts = [
        marked(60, 80, [(30, 20, 60, 50, 0)]),
        marked(80, 80, [(10, 40, 40, 70, 1)]),
        marked(80, 40, [(5, 5, 30, 30, 2)]),
        marked(40, 50, []),
    ]
    seen = set()
    for seed in range(30):
        image, boxes = mosaic(parts, 96, np.random.default_rng(seed))
        assert image.shape == (96, 96, 3)
        assert boxes.dtype == np.float32
        bright = image[..., 0] > 140
        inside = np.zeros_like(bright)
        for x0, y0, x1, y1, kind in boxes:
            seen.add(int(kind))
            assert 0 <= x0 < x1 <= 96
            assert 0 <= y0 < y1 <= 96
            core = bright[int(np.ceil(y0)) + 2 : int(y1) - 2, int(np.ceil(x0)) + 2 : int(x1) - 2]
            assert core.all()
            inside[max(0, int(y0) - 2) : int(np.ceil(y1)) + 2, max(0, int(x0) - 2) : int(np.ceil(x1)) + 2] = True
        # what is bright and has no box is the rest of one that was cut: a narrow strip, or a small part of its area
        assert np.count_nonzero(bright & ~inside) < 300
    assert seen == {0, 1, 2}


def test_mosaic_fills_with_grey_and_repeats_by_seed():
    parts = [marked(30, 60, []), *[marked(60, 30, [])] * 3]
    one, two = (mosaic(parts, 64, np.random.default_rng(4))[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert set(np.unique(one)) == {40.0, FILL}


def test_mosaic_of_one_channel_keeps_it():
    parts = [(image[..., :1], boxes) for image, boxes in [marked(30, 30, [(2, 2, 20, 20, 0)])] * 4]
    assert mosaic(parts, 32, np.random.default_rng(0))[0].shape == (32, 32, 1)


def test_colour_changes_within_range_and_grey_stays_grey():
    rng = np.random.default_rng(0)
    colour = rng.uniform(0, 255, (8, 9, 3)).astype(np.float32)
    grey = np.repeat(colour[..., :1], 3, axis=-1)
    for seed in range(10):
        for image in (colour, grey, colour[..., :1]):
            changed = jitter_colour(image, np.random.default_rng(seed))
            assert changed.shape == image.shape
            assert changed.dtype == np.float32
            assert changed.min() >= 0
            assert changed.max() <= 255
        still = jitter_colour(grey, np.random.default_rng(seed))
        assert (still == still[..., :1]).all()
    assert np.abs(jitter_colour(colour, np.random.default_rng(1)) - colour).mean() > 5
