"""The end of SAM's mask decoders: the image map upscaled by four, and one mask for each token's kernel.

Two formulations of one function:

official  two transposed convolutions, then a product of the kernels with every pixel.
folded    kernel and stride are equal, so a transposed convolution is one product of channels, whose outputs lie side
          by side. They stay there, channels last, until after the product with the kernels: instead of an eighth of
          the channels, K masks are shuffled into place.

The same in two and three dimensions; parameter names are the official ones.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.networks.layers import MLP, ChannelNorm
from samkit.networks.network import Foldable

_TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class Upscaling(nn.Sequential, Foldable):
    """An image map to masks of four times its side: C channels, C/4 and C/8 on the way."""

    def __init__(self, channels: int, axes: int) -> None:
        convolution = _TRANSPOSED[axes]
        super().__init__(
            convolution(channels, channels // 4, 2, 2),
            ChannelNorm(channels // 4),
            nn.GELU(),
            convolution(channels // 4, channels // 8, 2, 2),
            nn.GELU(),
        )
        self._frozen: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def masks(self, image: Tensor, kernels: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Return logits (B, K, 4g, ...) of kernels (B, K, C/8) and the image's tokens (B, N, C) on a grid (g, ...)."""
        batch, count = kernels.shape[0], kernels.shape[1]
        if not self.folded:
            features = self(image.transpose(1, 2).reshape(image.shape[0], -1, *grid))
            return (kernels @ features.flatten(2)).reshape(batch, count, *features.shape[2:])
        first, first_bias, second, second_bias = self._weights()
        norm = cast(ChannelNorm, self[1])
        hidden = F.linear(image, first, first_bias).unflatten(2, (-1, norm.weight.shape[0])).flatten(1, 2)
        hidden = F.gelu(F.layer_norm(hidden, norm.weight.shape, norm.weight, norm.bias, 1e-6))
        features = F.gelu(F.linear(hidden, second, second_bias))
        features = features.unflatten(2, (-1, kernels.shape[2])).flatten(1, 2)  # (B, 16 N or 64 N, C/8)
        masks = (kernels @ features.transpose(1, 2)).flatten(0, 1)
        for _ in range(2):
            masks, grid = _shuffle(masks, grid), tuple(2 * side for side in grid)
        return masks.reshape(batch, count, *grid)

    def freeze(self) -> None:
        """Arrange the weights once, for export; later changes are not seen any more."""
        with torch.no_grad():
            first, first_bias, second, second_bias = self._weights()
            self._frozen = (first.contiguous(), first_bias, second.contiguous(), second_bias)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return weight and bias of both convolutions as linear layers whose outputs are the parts, each with D."""
        if self._frozen is not None:
            return self._frozen
        return (*_as_linear(self[0]), *_as_linear(self[3]))


def _as_linear(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = cast(Tensor, convolution.weight), cast(Tensor, convolution.bias)  # (C, D, 2, 2) or (C, D, 2, 2, 2)
    return weight.movedim(1, -1).flatten(1).transpose(0, 1), bias.repeat(math.prod(weight.shape[2:]))


def _shuffle(masks: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return masks (M, 2g * ... * rest) whose pixels lie row by row, of ones whose doublings lie within each pixel.

    `masks` is (M, g * ... * 2 * ... * rest). One doubling at a time, because TensorRT knows eight axes.
    """
    axes = len(grid)
    parts = masks.reshape(masks.shape[0], *grid, *(2,) * axes, -1)
    order = [axis for pair in range(axes) for axis in (1 + pair, 1 + axes + pair)]
    return parts.permute(0, *order, 1 + 2 * axes).flatten(1)


class Hypernetworks(nn.ModuleList, Foldable):
    """One MLP for each mask token, which makes its kernel; folded, the first `used` of them are one batched product."""

    def __init__(self, count: int, channels: int, used: int) -> None:
        super().__init__(MLP(channels, channels, channels // 8) for _ in range(count))
        self.used = used
        self._frozen: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Return kernels (B, K, C/8) of mask tokens (B, K, C); folded, K is `used` in what is returned."""
        if not self.folded:
            return torch.stack([mlp(tokens[:, number]) for number, mlp in enumerate(self)], dim=1)
        x, layers = tokens[:, : self.used].unsqueeze(2), self._layers()
        for depth, (weight, bias) in enumerate(layers):
            x = x @ weight + bias
            if depth < len(layers) - 1:
                x = F.relu(x)
        return x.squeeze(2)

    def freeze(self) -> None:
        """Stack the weights once, for export; later changes are not seen any more."""
        with torch.no_grad():
            self._frozen = self._layers()

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Return the weight (K, in, out) and the bias (K, 1, out) of each layer of all MLPs."""
        if self._frozen is not None:
            return self._frozen
        each = [list(cast(MLP, mlp).layers) for mlp in self][: self.used]
        return [
            (
                torch.stack([cast(nn.Linear, layer).weight.transpose(0, 1) for layer in layers]),
                torch.stack([cast(nn.Linear, layer).bias for layer in layers])[:, None],
            )
            for layers in zip(*each, strict=True)
        ]
