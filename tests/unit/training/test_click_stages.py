"""The loop feeds newest point and last logits, sums the loss over stages, and upsamples as torch does."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from samkit.methods import get_method
from samkit.prompts import Point
from samkit.training.click_samples import Sample
from samkit.training.click_stages import _upsample, dice_per_click, refine, refinement_loss

CONFIG = get_method("m-sam").sizes["tiny"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return get_method("m-sam").build(CONFIG)


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    target = np.zeros((32, 32, 32), bool)
    target[10:20, 8:18, 12:22] = True
    image = rng.normal(size=target.shape).astype(np.float32)
    return [Sample(image, target, Point((15.0, 12.0, 16.0), 1), key, "a") for key in range(2)]


def _rngs():
    return [np.random.default_rng(n) for n in range(2)]


def test_upsampling_is_torchs_trilinear():
    low = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))

    expected = functional.interpolate(low, scale_factor=4, mode="trilinear", align_corners=False)

    torch.testing.assert_close(_upsample(low), expected)


def test_each_stage_sees_the_newest_point_and_the_last_logits(network, samples, monkeypatch):
    calls = []
    decode = network.decode

    def spy(embeddings, coords, labels, mask_input):
        low, iou, updated = decode(embeddings, coords, labels, mask_input)
        calls.append((embeddings, coords, labels, mask_input, low, updated))
        return low, iou, updated

    monkeypatch.setattr(network, "decode", spy)
    logits = list(refine(network, samples, _rngs(), 3, "recurrent"))

    assert calls[0][3].abs().max() == 0
    for before, call in pairwise(calls):
        assert call[1].shape == (2, 1, 3)
        torch.testing.assert_close(call[3], before[4].detach())
        assert not call[3].requires_grad
        assert call[0] is before[5]
    prediction = (logits[0][0, 0] > 0).numpy()
    voxel = tuple(int(v) for v in calls[1][1][0, 0])
    assert prediction[voxel] != samples[0].target[voxel]
    assert calls[1][2][0, 0] == float(samples[0].target[voxel])


def test_anchored_gives_every_stage_the_encoders_output(network, samples, monkeypatch):
    seen = []
    decode = network.decode
    monkeypatch.setattr(network, "decode", lambda e, *rest: (seen.append(e), decode(e, *rest))[1])

    list(refine(network, samples, _rngs(), 3, "anchored"))

    assert seen[0] is seen[1] is seen[2]


def test_loss_is_the_sum_of_half_dice_and_half_cross_entropy(network, samples):
    target = torch.from_numpy(np.stack([s.target for s in samples]))[:, None].float()
    expected = 0.0
    for logits in refine(network, samples, _rngs(), 2, "recurrent"):
        p = logits.sigmoid()
        overlap = (p * target).sum((1, 2, 3, 4))
        dice = 1 - (2 * overlap + 1e-5) / ((p**2 + target**2).sum((1, 2, 3, 4)) + 1e-5)
        entropy = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
        expected = expected + 0.5 * dice.mean() + 0.5 * entropy

    loss = refinement_loss(network, samples, _rngs(), 2, "recurrent")

    torch.testing.assert_close(loss, expected)


def test_a_perfect_prediction_goes_on_with_foreground_clicks(samples):
    class Perfect(torch.nn.Module):
        config = replace(CONFIG, adapter=None)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.labels = []

        def encode(self, image):
            return image

        def decode(self, embeddings, coords, labels, mask_input):
            self.labels += labels.flatten().tolist()
            return torch.full((2, 1, 8, 8, 8), 10.0), None, None

    whole = [replace(sample, target=np.ones((32, 32, 32), bool)) for sample in samples]
    network = Perfect()

    rows = dice_per_click(network, whole, _rngs(), "anchored", 3)

    assert rows.tolist() == [[1.0] * 3] * 2
    assert network.labels == [1.0] * 6
