"""Each term of the 2D losses is the formula of its source, and knows nothing of the others."""

import pytest
import torch
from torch.nn import functional

from samkit.training.recipe_checks import LOSSES
from samkit.training.slice_losses import TERMS, slice_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 8, 8, generator=generator)
    target = (torch.rand(3, 1, 8, 8, generator=generator) > 0.7).float()
    return logits, target, torch.rand(3, generator=generator)


def _term(name, batch):
    return float(TERMS[name](*batch))


def test_recipes_can_name_exactly_these_terms():
    assert set(LOSSES) == set(TERMS)


def test_focal_is_sam_med2ds_sum_over_the_number_of_pixels(batch):
    logits, target, _ = batch
    p = logits.sigmoid()
    positive = -0.25 * target * (1 - p) ** 2 * p.log()
    negative = -0.75 * (1 - target) * p**2 * (1 - p).log()

    assert _term("focal", batch) == pytest.approx(float((positive + negative).sum() / target.numel()), rel=1e-5)


def test_dice_counts_the_whole_batch_and_is_smoothed_by_one(batch):
    logits, target, _ = batch
    p = logits.sigmoid()
    wanted = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)

    assert _term("dice", batch) == pytest.approx(float(wanted), rel=1e-5)


def test_squared_dice_is_medsams_mean_over_masks(batch):
    logits, target, _ = batch
    p = logits.sigmoid()
    shared, both = (p * target).sum((1, 2, 3)), (p**2 + target**2).sum((1, 2, 3))

    assert _term("dice_squared", batch) == pytest.approx(
        float((1 - (2 * shared + 1e-5) / (both + 1e-5)).mean()), rel=1e-5
    )


def test_iou_teaches_the_head_alone(batch):
    logits, target, predicted = batch
    logits.requires_grad_(True)
    predicted.requires_grad_(True)
    p = logits.detach().sigmoid()
    real = (p * target).sum((1, 2, 3)) / (p + target - p * target).sum((1, 2, 3))

    loss = TERMS["iou"](logits, target, predicted)
    loss.backward()

    assert float(loss.detach()) == pytest.approx(float(((predicted.detach() - real) ** 2).mean()), rel=1e-5)
    assert logits.grad is None
    assert predicted.grad.abs().min() > 0


def test_dice_of_classes_is_sameds():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 6, 6, generator=generator)
    labels = torch.randint(0, 4, (2, 1, 6, 6), generator=generator).float()
    scores = logits.softmax(dim=1)
    each = []
    for number in range(4):
        score, target = scores[:, number], (labels[:, 0] == number).float()
        each.append(1 - (2 * (score * target).sum() + 1e-5) / ((score**2).sum() + (target**2).sum() + 1e-5))

    nothing = torch.zeros(2)
    assert float(TERMS["dice_classes"](logits, labels, nothing)) == pytest.approx(float(sum(each) / 4), rel=1e-5)
    wanted = functional.cross_entropy(logits, labels[:, 0].long())
    assert float(TERMS["ce"](logits, labels, nothing)) == pytest.approx(float(wanted))


def test_terms_are_weighted_and_summed(batch):
    total = slice_loss((("focal", 20.0), ("bce", 0.5)), *batch)

    assert float(total) == pytest.approx(20 * _term("focal", batch) + 0.5 * _term("bce", batch), rel=1e-6)
