"""The refinement loop under simulated clicks: its loss for training, its Dice for validation.

Each stage is given the newest point alone and the raw low-resolution logits of the stage before (zeros at first), as
the paper trains and as the runtime runs. `recurrent` feeds each stage's updated embedding to the next, `anchored` the
encoder's output to all.

Our choices where the sources are silent or differ: the mask the next click is drawn from is logits > 0 (what a user
sees; upstream takes 0.5); the mask prompt carries no gradient, so each stage learns from a given mask, while the
updated embedding of `recurrent` does carry it, as it is a hidden state; SAM-Med3D's two stages without a point are left
out, because no user refines without clicking. A sample without error left is clicked again in its foreground.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional

from samkit.clicks import first_click, next_click
from samkit.masks import dice
from samkit.networks.sam3d import Sam3D
from samkit.networks.sam3d_config import LOGIT_STRIDE
from samkit.prompts import Point
from samkit.training.click_samples import Sample

REPORTED_CLICKS = (1, 3, 5, 10)

_dice_loss = DiceLoss(sigmoid=True, squared_pred=True)


def refine(
    network: Sam3D, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], stages: int, refinement: str
) -> Iterator[Tensor]:
    """Yield the logits (B, 1, P, P, P) of each stage; the clicks of the next follow from them."""
    device = next(network.parameters()).device
    images = torch.from_numpy(np.stack([sample.image for sample in samples])[:, None]).to(device)
    side = network.config.logits
    embeddings = network.encode(images)
    mask_input = torch.zeros(len(samples), 1, side, side, side, device=device)
    points = [sample.first for sample in samples]
    for stage in range(stages):
        coords = torch.tensor([[point.index] for point in points], device=device)
        labels = torch.tensor([[float(point.label)] for point in points], device=device)
        low, _, updated = network.decode(embeddings, coords, labels, mask_input)
        logits = _upsample(low.float())
        yield logits
        if stage + 1 < stages:
            mask_input = low.detach().float()
            if refinement == "recurrent" and updated is not None:
                embeddings = updated
            masks = (logits.detach()[:, 0] > 0).cpu().numpy()
            points = [_click(mask, sample, rng) for mask, sample, rng in zip(masks, samples, rngs, strict=True)]


def refinement_loss(
    network: Sam3D, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], stages: int, refinement: str
) -> Tensor:
    """Return 0.5 Dice + 0.5 binary cross-entropy on the patch, summed over the stages (paper, equation 3)."""
    device = next(network.parameters()).device
    target = torch.from_numpy(np.stack([sample.target for sample in samples])[:, None]).to(device, torch.float32)
    total = torch.zeros((), device=device)
    for logits in refine(network, samples, rngs, stages, refinement):
        entropy = functional.binary_cross_entropy_with_logits(logits, target)
        total = total + 0.5 * _dice_loss(logits, target) + 0.5 * entropy
    return total


def dice_per_click(
    network: Sam3D, samples: Sequence[Sample], rngs: Sequence[np.random.Generator], refinement: str, clicks: int
) -> np.ndarray:
    """Return the Dice of each sample after each click, (B, clicks), of logits > 0 on the patch."""
    rows = []
    with torch.no_grad():
        for logits in refine(network, samples, rngs, clicks, refinement):
            masks = (logits[:, 0] > 0).cpu().numpy()
            rows.append([dice(mask, sample.target) for mask, sample in zip(masks, samples, strict=True)])
    return np.asarray(rows).T


def _upsample(low: Tensor) -> Tensor:
    """Return logits (B, 1, n, n, n) on the patch (B, 1, P, P, P): trilinear, `align_corners=False`.

    Done as one small matrix along each axis, because torch's own backward is the most expensive operation of a small
    network's training on CPU, and not deterministic on CUDA.
    """
    side = low.shape[-1]
    identity = torch.eye(side, device=low.device)[None]
    matrix = functional.interpolate(identity, scale_factor=LOGIT_STRIDE, mode="linear", align_corners=False)[0]
    rows = low @ matrix  # (B, 1, n, n, P)
    planes = matrix.T @ rows  # (B, 1, n, P, P)
    batch, patch = low.shape[0], matrix.shape[1]
    return (matrix.T @ planes.reshape(batch, 1, side, patch * patch)).reshape(batch, 1, patch, patch, patch)


def _click(mask: np.ndarray, sample: Sample, rng: np.random.Generator) -> Point:
    return next_click(mask, sample.target, rng) or first_click(sample.target, rng) or sample.first
