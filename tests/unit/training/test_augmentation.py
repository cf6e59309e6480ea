"""Image and labels change together, by what the generator says and nothing else."""

import numpy as np
import pytest

from samkit.training.augmentation import (
    AUGMENTATIONS,
    augment,
    brightness_contrast,
    mirror,
    place_anew,
    rot90_flip_or_rotate,
)


@pytest.fixture
def pair():
    """An image whose first channel is its label, so that one must follow the other; zeros outside a disc."""
    y, x = np.mgrid[:32, :32]
    labels = np.where(np.hypot(y - 14, x - 17) < 9, 1 + x // 4, 0).astype(np.uint8)
    return np.stack([labels * 20.0, labels * 10.0], axis=-1).astype(np.float32), labels


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_repeat_by_seed_and_change_nothing_given(name, pair):
    image, labels = pair
    before = image.copy(), labels.copy()
    first = [augment([name], image, labels, np.random.default_rng(seed)) for seed in range(8)]
    again = [augment([name], image, labels, np.random.default_rng(seed)) for seed in range(8)]
    for (a, b), (c, d) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)
        assert (a.dtype, b.dtype, a.shape, b.shape) == (np.float32, np.uint8, image.shape, labels.shape)
    assert len({a.tobytes() for a, _ in first}) > 1
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.parametrize("function", [rot90_flip_or_rotate, mirror])
def test_labels_follow_the_image(function, pair):
    image, labels = pair
    for seed in range(20):
        moved, moved_labels = function(image, labels, np.random.default_rng(seed))
        np.testing.assert_array_equal(moved[..., 0], moved_labels * 20.0)  # nearest neighbour: no value in between


def test_samed_flips_half_turns_a_quarter_and_leaves_a_quarter_alone():
    labels = np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)  # so large that one degree shows
    image = labels[..., None].astype(np.float32)
    flips = {np.flip(np.rot90(labels, k), axis).tobytes() for k in range(4) for axis in range(2)}
    kinds = {"flip": 0, "turn": 0, "same": 0}
    for seed in range(400):
        moved = rot90_flip_or_rotate(image, labels, np.random.default_rng(seed))[1]
        same, flip = moved.tobytes() == labels.tobytes(), moved.tobytes() in flips
        kinds["same" if same else "flip" if flip else "turn"] += 1
    assert 160 < kinds["flip"] < 240
    assert 60 < kinds["turn"] < 140
    assert 60 < kinds["same"] < 140


def test_quarter_turns_fit_pictures_that_are_not_square(pair):
    image, labels = pair[0][:20], pair[1][:20]
    shapes = {rot90_flip_or_rotate(image, labels, np.random.default_rng(s))[0].shape[:2] for s in range(30)}
    assert shapes == {(20, 32), (32, 20)}


def test_brightness_keeps_zeros_and_range(pair):
    image, labels = pair
    for seed in range(20):
        changed, same = brightness_contrast(image * 1.2, labels, np.random.default_rng(seed))
        assert same is labels
        assert not changed[labels == 0].any()
        assert changed.min() >= 0
        assert changed.max() <= 255
        assert np.abs(changed - image * 1.2)[labels > 0].max() > 1


def test_place_anew_moves_image_and_labels_alike():
    labels = np.zeros((40, 48), np.uint8)
    labels[12:24, 20:36] = 3
    image = np.repeat((labels > 0)[..., None], 2, axis=2).astype(np.float32) * 100
    moved, moved_labels = place_anew(image, labels, np.random.default_rng(2))
    assert moved.dtype == np.float32
    assert set(np.unique(moved_labels)) == {0, 3}
    assert (moved_labels != labels).any()
    assert ((moved[..., 0] > 50) == (moved_labels > 0)).mean() > 0.98
    again, _ = place_anew(image, labels, np.random.default_rng(2))
    np.testing.assert_array_equal(moved, again)
