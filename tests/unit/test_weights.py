"""Demonstration weights are there, say what they are, and follow the clicks on a phantom they have never seen."""

import numpy as np
import pytest

from samkit.checkpoints import load_network
from samkit.errors import CheckpointError, MissingDependencyError
from samkit.geometry import crop, crop_origin
from samkit.methods import get_method
from samkit.phantoms import make_phantom
from samkit.prompts import Point
from samkit.weights import demo_checkpoint, find_demo


def test_a_method_without_weights_is_told_which_have():
    with pytest.raises(CheckpointError, match=r"m-sam, .*sam-med3d"):
        demo_checkpoint("sam-med4d")


def test_where_none_are_installed_it_says_how(monkeypatch):
    monkeypatch.setattr("samkit.weights._PACKAGE", "no_such_package")

    assert find_demo("m-sam") is None
    with pytest.raises(MissingDependencyError, match=r"are not installed; pip install .* or give .* checkpoint"):
        demo_checkpoint("m-sam")


@pytest.mark.parametrize("name", ["m-sam", "sam-med3d"])
def test_which_lesion_is_meant_is_learnt_from_the_clicks(name):
    from samkit.training.click_samples import Sample
    from samkit.training.click_stages import dice_per_click

    method = get_method(name)
    loaded = load_network(demo_checkpoint(name), method)
    patch = loaded.info.config.patch
    phantom = make_phantom(12, (96, 96, 96), sequences=("flair",))
    samples = []
    for number in range(1, int(phantom.lesions.max()) + 1):
        target = phantom.lesion(number)
        origin = crop_origin(np.argwhere(target).mean(axis=0), patch)
        image = method.preprocess(crop(phantom.sequences["flair"].array, origin, patch), loaded.info.config)
        mask = crop(target, origin, patch)
        inside = np.argwhere(mask)
        nearest = inside[np.abs(inside - patch // 2).sum(axis=1).argmin()]
        first = Point((float(nearest[0]), float(nearest[1]), float(nearest[2])), 1)
        samples.append(Sample(image, mask, first, number, "phantom"))

    rngs = [np.random.default_rng(n) for n in range(len(samples))]
    rows = dice_per_click(loaded.network, samples, rngs, loaded.info.refinement, 5)

    assert rows[:, 4].mean() > 0.4
