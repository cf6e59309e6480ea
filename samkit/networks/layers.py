"""Small layers that the 2D and 3D networks share; parameter names are the official ones."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.networks.network import Foldable


class ChannelNorm(Foldable):
    """Norm over the channels of each pixel or voxel, (B, C, ...) to the same shape, biased variance, eps 1e-6.

    Upstream calls it LayerNorm2d and LayerNorm3d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            # One LayerNormalization node, which runtimes recognise and keep from squaring in FP16.
            normed = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, 1e-6)
            return normed.movedim(-1, 1)
        centred = x - x.mean(1, keepdim=True)
        normed = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        along = (-1, *(1,) * (x.ndim - 2))
        return self.weight.view(along) * normed + self.bias.view(along)


class MLPBlock(nn.Module):
    """Two linear layers around an activation, on the last axis."""

    def __init__(self, dim: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(self.act(self.lin1(x)))
        return out


class MLP(nn.Module):
    """Linear layers with ReLU between them: the hypernetworks and the IoU head."""

    def __init__(self, dim: int, hidden: int, out: int, depth: int = 3) -> None:
        super().__init__()
        sizes = [dim] + [hidden] * (depth - 1) + [out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


def log_sum_exp(x: Tensor, dim: int = -1) -> Tensor:
    """Return log(sum(exp(x))) along `dim`. Written out, because TensorRT's operator does not subtract the maximum."""
    top = x.amax(dim=dim, keepdim=True)
    return (top + (x - top).exp().sum(dim=dim, keepdim=True).log()).squeeze(dim)


def log_add_exp(x: Tensor, y: Tensor) -> Tensor:
    """Return log(exp(x) + exp(y)) without overflow; written out for the same reason."""
    return torch.maximum(x, y) + (1 + (-(x - y).abs()).exp()).log()


def append_value(values: Tensor, constant: Tensor) -> Tensor:
    """Return the values (B, h, n, e) of n keys and of one more, which is `constant` (h, 1, e) in every row.

    It is added to zeros made of the first key, not expanded: TensorRT would compute the size of an Expand.
    """
    return torch.cat([values, values[:, :, :1] * 0 + constant], dim=2)
