"""BrainSegDMIF: SAM for co-registered sequences and no prompts (arXiv:2505.06133, section 3).

One ViT for each sequence. After every layer i, DMIF fuses the token maps f (B, M, N, D) of the M sequences into one:

    interaction  f'' = W2 GELU(norm(W1 f))                       along M; Eq. 1, 2
    weights      w = softmax over M of V2 GELU(V1 f'')           Eq. 3, 4
    aggregation  f_fus = sum of f'' w + enhance(all f) + mean f  Eq. 5 to 7

and f_fus goes back into every sequence's stream (section 3), through a learned factor that starts at zero: f_fus
holds the mean of the streams, so a plain sum would double them in every layer and undo SAM's weights at once. The last
f_fus passes SAM's neck. The prompt generator (3.2) is SAM's two-way transformer on learned tokens, and the
layer-by-layer upsampling decoder (3.3) reads its first token.

The paper is silent on sizes; the config's defaults are the ones that agree with its 354 M parameters and 311 GFLOP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.models.dmif_config import DmifConfig
from samkit.models.layers import MLP, ChannelNorm, MLPBlock
from samkit.models.network import Foldable, Network
from samkit.models.sam2d_config import STRIDE

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Of SAM's red, green and blue, on 0..255."""

UPSAMPLINGS = (2, 4, 8)
"""Kernel and stride of the three transposed convolutions (Eq. 10); the last gives the grid where they are added."""


class GreyPatchEmbed(Foldable):
    """SAM's patch embedding for grey pixels: (B, 1, S, S), 0..255, to tokens (B, S/16, S/16, D).

    plain   the pixels three times as red, green and blue, normalised with SAM's mean and deviation, then convolved.
    folded  one convolution of the pixels as they are; exact, because the kernel never leaves the image.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(len(PIXEL_MEAN), width, STRIDE, STRIDE)
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(PIXEL_MEAN).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(PIXEL_STD).reshape(1, -1, 1, 1), persistent=False)
        self._frozen: tuple[Tensor, Tensor] | None = None

    def forward(self, image: Tensor) -> Tensor:
        if self.folded:
            weight, bias = self._frozen or self._grey()
            tokens = F.conv2d(image, weight, bias, STRIDE)
        else:
            tokens = self.proj((image - self._mean) / self._std)
        return tokens.permute(0, 2, 3, 1)

    def freeze(self) -> None:
        """Compute the grey kernel once, for export; later changes of the weights are not seen any more."""
        with torch.no_grad():
            self._frozen = self._grey()

    def _grey(self) -> tuple[Tensor, Tensor]:
        """Return the kernel (D, 1, 16, 16) and the bias (D) for raw pixels."""
        scaled = self.proj.weight / self._std
        bias: Tensor = self.proj.bias  # type: ignore[assignment]
        return scaled.sum(1, keepdim=True), bias - (scaled * self._mean).sum((1, 2, 3))


class Dmif(nn.Module):
    """Dynamic modal interactive fusion of one layer: (B, M, N, D) to (B, N, D)."""

    def __init__(self, config: DmifConfig) -> None:
        super().__init__()
        count = len(config.sequences)
        hidden = config.hidden * count
        # Linear layers along M, written as 1 x 1 convolutions: every token and channel is a pixel of its own.
        self.interaction = nn.Sequential(
            nn.Conv2d(count, hidden, 1), ChannelNorm(hidden), nn.GELU(), nn.Conv2d(hidden, count, 1)
        )
        self.scores = nn.Sequential(nn.Conv2d(count, hidden, 1), nn.GELU(), nn.Conv2d(hidden, count, 1))
        self.enhancement = nn.Sequential(
            nn.Linear(count * config.width, config.bottleneck), nn.GELU(), nn.Linear(config.bottleneck, config.width)
        )

    def forward(self, features: Tensor) -> Tensor:
        mixed = self.interaction(features)
        fused = (mixed * self.scores(mixed).softmax(dim=1)).sum(dim=1)
        side_by_side = features.transpose(1, 2).flatten(2)  # (B, N, M * D)
        out: Tensor = fused + self.enhancement(side_by_side) + features.mean(dim=1)
        return out


class UpsamplingDecoder(nn.Module):
    """The layer-by-layer upsampling decoder (3.3): image map (B, C, g, g) and token (B, C) to logits (B, 1, S, S)."""

    def __init__(self, config: DmifConfig) -> None:
        super().__init__()
        self.side = config.image
        channels, upscaled = config.channels, config.upscaled
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(channels, upscaled, factor, factor),
                ChannelNorm(upscaled),
                nn.GELU(),
                nn.Conv2d(upscaled, upscaled, 3, padding=1),
                nn.GELU(),
            )
            for factor in UPSAMPLINGS
        )
        self.hypernetworks = nn.ModuleList(MLP(channels, channels, upscaled) for _ in UPSAMPLINGS)

    def forward(self, image: Tensor, token: Tensor) -> Tensor:
        half = self.side // 2
        levels = [
            # The sum over channels commutes with the resizing of Eq. 12 and comes first: one channel instead of 64.
            _resize((branch(image) * hypernetwork(token)[..., None, None]).sum(dim=1, keepdim=True), half)
            for branch, hypernetwork in zip(self.branches, self.hypernetworks, strict=True)
        ]
        return _resize(sum(levels[1:], start=levels[0]), self.side)


def _resize(x: Tensor, side: int) -> Tensor:
    """Return a square map (B, C, ...) with another side, bilinear; as it is where it has that side."""
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
