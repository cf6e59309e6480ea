"""Slices to train on follow from their key, hold what their prompts point at, and lie where inference puts them."""

from dataclasses import replace

import numpy as np
import pytest

from samkit.errors import InputRefused
from samkit.methods import get_method
from samkit.placement import Placement
from samkit.planes import Window
from samkit.prompts import BOX_FIRST, BOX_LAST, FOREGROUND
from samkit.training.slice_cases import LoadedCase, SliceCase
from samkit.training.slice_samples import (
    SliceSamples,
    SliceStore,
    labels_on_input,
    objects_of,
    validation_prompts,
)

METHOD = get_method("sam-med2d")
CONFIG = METHOD.sizes["tiny"]
RECIPE = replace(METHOD.recipes["tiny"], prompts=("shifted_box", "point"))


def _case(name="a", slices=6, channels=1, empty=(0, 5)):
    """Return a case whose slices hold two bright objects with the values 1 and 2."""

    def load(case):
        rng = np.random.default_rng(3)
        labels = np.zeros((slices, 60, 70), np.uint8)
        for number in range(slices):
            if number not in empty:
                labels[number, 10 : 20 + number, 12:30] = 1
                labels[number, 40:52, 40 + number : 60] = 2
        images = rng.uniform(20, 60, (slices, 60, 70, channels)).astype(np.float32) + 100 * (labels > 0)[..., None]
        return LoadedCase(images, labels, (1.0, 1.0))

    return SliceCase(name, "", (), (), load, tuple(range(slices)), plane="axial")


def _samples(recipe=RECIPE, method=METHOD, config=CONFIG, label=None, case=None, **changes):
    store = SliceStore([case or _case()], method, config, label)
    return SliceSamples(store, [range(6)], method, config, replace(recipe, **changes))


def test_a_key_gives_the_same_sample_again_and_another_key_another_one():
    first, again = _samples(augment=("mirror",))[7], _samples(augment=("mirror",))[7]

    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.points[0], again.points[0])
    assert any(not np.array_equal(first.image, _samples()[key].image) for key in range(8, 14))


def test_an_epoch_draws_every_slice_with_a_target_once():
    samples = _samples()

    assert len(samples) == 4
    assert sorted(samples[key].where[1] for key in range(4)) == [1, 2, 3, 4]


def test_prompts_point_at_their_object_on_the_input():
    samples = _samples(masks_per_image=3)

    for key in range(8):
        sample = samples[key]
        target = labels_on_input(sample.labels, sample.placement, CONFIG.image)
        assert len(sample.points) == len(target) == 3
        for mask, points in zip(target, sample.points, strict=True):
            rows, columns = np.nonzero(mask)
            if points[0, 2] == FOREGROUND:
                x, y = np.rint(points[0, :2]).astype(int)
                assert mask[y, x]
            else:
                assert points[:, 2].tolist() == [BOX_FIRST, BOX_LAST]
                wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.abs(points[:, :2].ravel() - wanted).max() <= 5


def test_a_label_value_that_is_asked_for_is_the_only_target():
    sample = _samples(label=2, masks_per_image=2)[0]

    assert all(mask.sum() == sample.labels[0].sum() for mask in sample.labels)
    assert sample.labels[0, :40].sum() == 0


def test_automatic_methods_see_empty_slices_as_often_as_the_recipe_says():
    method = get_method("brainseg-dmif")
    config = replace(method.sizes["tiny"], sequences=("t1c",))
    samples = _samples(method.recipes["tiny"], method, config, foreground_share=0.5, samples_per_epoch=200)

    filled = [bool(samples[key].labels.any()) for key in range(200)]

    assert 0.6 < np.mean(filled) < 0.95  # half of the draws, and four of six slices in the other half
    assert samples[0].points[0].shape == (0, 3)
    assert samples[0].labels.shape == (1, 60, 70)


def test_the_paper_of_lora_sam_trains_on_every_slice_once_an_epoch():
    method = get_method("lora-sam")
    samples = _samples(method.recipes["paper"], method, method.sizes["tiny"])

    assert sorted(samples[key].where[1] for key in range(len(samples))) == [0, 1, 2, 3, 4, 5]


def test_classes_keep_their_numbers_and_the_methods_window():
    method = get_method("lora-sam")
    sample = _samples(method.recipes["tiny"], method, method.sizes["tiny"])[0]

    assert sample.labels.shape == (1, *method.window(method.sizes["tiny"]))
    assert set(np.unique(sample.labels)) == {0, 1, 2}
    # the window is that of the whole volume, as the runtime lays it
    images = _case().load().images[..., 0]
    window = Window.around(images, (112, 128))
    np.testing.assert_array_equal(sample.labels[0], window.cut(_case().load().labels[sample.where[1]]))


def test_channels_that_the_network_does_not_take_are_refused():
    method = get_method("brainseg-dmif")

    with pytest.raises(InputRefused, match="a has 1 channels, brainseg-dmif takes 4: t1n"):
        _samples(method.recipes["tiny"], method, method.sizes["tiny"])


def test_nothing_to_train_on_is_refused():
    with pytest.raises(InputRefused, match="holds any of the target"):
        _samples(label=9)


def test_labels_move_with_the_slice():
    labels = np.zeros((40, 50), np.uint8)
    labels[10:20, 5:25] = 3
    centred = labels_on_input(labels, Placement.centred((40, 50), 64), 64)
    stretched = labels_on_input(labels, Placement.stretched((40, 50), 80), 40)
    longest = labels_on_input(labels, Placement.longest_side((40, 50), 100), 100)

    np.testing.assert_array_equal(centred[12:52, 7:57], labels)
    assert centred.sum() == labels.sum()
    np.testing.assert_array_equal(np.unique(np.nonzero(stretched)[0]), np.arange(10, 20))
    np.testing.assert_array_equal(longest[:80], labels.repeat(2, 0).repeat(2, 1))
    assert not longest[80:].any()


def test_labels_lie_on_the_input_where_their_pixels_do_also_with_aligned_ends():
    placement = Placement.stretched((5, 9), 17, ends_aligned=True)
    labels = np.arange(45, dtype=np.uint8).reshape(5, 9)
    centres = np.argwhere(labels >= 0)[:, ::-1]

    on_input = labels_on_input(labels, placement, 17)

    x, y = placement.points_to_network(centres).astype(int).T
    np.testing.assert_array_equal(on_input[y, x], labels.ravel())


def test_every_component_of_every_value_is_an_object_and_small_ones_are_together():
    labels = np.zeros((30, 30), np.uint8)
    labels[:5, :5], labels[:5, 20:25], labels[20:25, 20:25] = 1, 1, 2
    labels[10, 0:30:4] = 3  # eight single pixels

    assert [int(mask.sum()) for mask in objects_of(labels)] == [25, 25, 25, 8]


def test_held_back_slices_are_asked_with_tight_boxes_or_one_fixed_click():
    labels = np.zeros((30, 30), np.uint8)
    labels[3:10, 5:15] = 1

    (box,) = validation_prompts(labels, RECIPE, (0, 0)).boxes
    assert (box.x0, box.y0, box.x1, box.y1) == (5, 3, 14, 9)
    clicks = [validation_prompts(labels, replace(RECIPE, prompts=("point",)), (0, 0)).points for _ in range(2)]
    assert clicks[0] == clicks[1]
    assert labels[int(clicks[0][0].y), int(clicks[0][0].x)]
    assert not validation_prompts(labels, replace(RECIPE, prompts=("none",)), (0, 0))
