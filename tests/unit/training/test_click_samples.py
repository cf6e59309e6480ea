"""Patches come from inference's own preprocessing, hold the first click, and depend on nothing but their key."""

from dataclasses import replace

import numpy as np
import pytest

from samkit.methods import get_method
from samkit.training.click_cases import check_cases, find_cases
from samkit.training.click_samples import GridCase, TrainingSamples, cache_cases, validation_samples
from samkit.training.keys import KeySampler

METHOD = get_method("m-sam")
CONFIG = replace(METHOD.sizes["tiny"], spacing=(1.0, 1.0, 1.0))
RECIPE = replace(METHOD.recipes["tiny"], samples_per_epoch=12)


def _samples(data, **changes):
    checked = check_cases(find_cases(data), None, "all")
    return TrainingSamples(cache_cases(checked.cases, CONFIG, "all"), METHOD, CONFIG, replace(RECIPE, **changes))


@pytest.mark.parametrize("crop", ["click", "label"])
def test_first_click_is_in_the_target_and_the_patch_is_z_scored(data, crop):
    samples = _samples(data, crop=crop)

    for key in range(12):
        sample = samples[key]
        index = tuple(int(v) for v in sample.first.index)
        assert sample.image.shape == sample.target.shape == (32, 32, 32)
        assert sample.target[index]
        assert sample.image.dtype == np.float32
        bright = sample.image[sample.target].mean()
        assert bright > 1 > abs(sample.image[~sample.target].mean())


def test_half_of_the_click_crops_are_centred_on_the_first_click(data):
    samples = _samples(data)
    # A flip takes the centre voxel 16 of 32 to 15.
    centred = [all(v in (15, 16) for v in samples[key].first.index) for key in range(60)]

    assert 15 < sum(centred) < 45


def test_a_key_gives_the_same_sample_again_and_another_key_another(data):
    first, again = _samples(data)[5], _samples(data)[5]

    assert np.array_equal(first.image, again.image)
    assert first.first == again.first
    assert not np.array_equal(first.image, _samples(data)[5 + 12].image)


def test_every_case_is_drawn_once_before_any_is_drawn_twice(data):
    samples = _samples(data, samples_per_epoch=10)

    names = [samples[key].name for key in range(10)]

    assert sorted(names[:5]) == sorted(names[5:]) == [f"case{n}" for n in range(5)]


def test_replicas_share_an_epochs_keys_evenly():
    samplers = [KeySampler(7, rank, 2) for rank in range(2)]
    for sampler in samplers:
        sampler.set_epoch(3)

    assert [list(sampler) for sampler in samplers] == [[21, 23, 25], [22, 24, 26]]


def test_validation_crops_are_centred_on_their_first_click(data):
    checked = check_cases(find_cases(data), None, "all")
    cases = cache_cases(checked.cases, CONFIG, "all")

    samples = validation_samples(cases, METHOD, CONFIG, seed=1)

    assert len(samples) == 5
    assert all(sample.first.index == (16.0, 16.0, 16.0) and sample.target[16, 16, 16] for sample in samples)


def test_a_crop_without_contrast_is_drawn_again():
    rng = np.random.default_rng(0)
    image = np.zeros((96, 40, 40), np.float32)
    image[:40] = rng.uniform(1, 100, (40, 40, 40))
    target = np.zeros(image.shape, bool)
    target[10:13, 20, 20] = target[80, 20, 20] = True  # the last lies where the scan is empty
    samples = TrainingSamples([GridCase("half", image, (target,))], METHOD, CONFIG, RECIPE)

    assert all(np.isfinite(samples[key].image).all() for key in range(12))


def test_a_case_is_loaded_once(data, monkeypatch):
    samples = _samples(data)
    monkeypatch.setattr(
        "samkit.training.click_samples.read_case", lambda case: pytest.fail(f"{case.name} is read again")
    )

    assert [samples[key].name for key in range(12)]
