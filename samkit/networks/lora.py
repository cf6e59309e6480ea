"""Low-rank updates of linear layers (LoRA), and the plain layers they merge into.

The update is unscaled, as SAMed and M-SAM have it: W x + B A x. A starts Kaiming-uniform, B at zero, so that a fresh
update changes nothing.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn


def _start(first: nn.Linear, second: nn.Linear) -> None:
    nn.init.kaiming_uniform_(first.weight, a=math.sqrt(5))
    nn.init.zeros_(second.weight)


class LoraQKV(nn.Module):
    """The fused q, k, v projection, with updates of those that `targets` names: linear_a_q, linear_b_q and so on."""

    def __init__(self, dim: int, rank: int, targets: str = "qv") -> None:
        super().__init__()
        self.targets = "".join(letter for letter in "qkv" if letter in targets)
        self.qkv = nn.Linear(dim, 3 * dim)
        for letter in self.targets:
            self.add_module(f"linear_a_{letter}", nn.Linear(dim, rank, bias=False))
            self.add_module(f"linear_b_{letter}", nn.Linear(rank, dim, bias=False))
        for letter in self.targets:
            _start(*self._update(letter))

    def _update(self, letter: str) -> tuple[nn.Linear, nn.Linear]:
        """Return A and B of one target."""
        first, second = (self.get_submodule(f"linear_{which}_{letter}") for which in "ab")
        return cast(nn.Linear, first), cast(nn.Linear, second)

    @property
    def bias(self) -> Tensor:
        """Return what the projection gives for a zero token: LoRA adds nothing there."""
        return self.qkv.bias

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.qkv(x).chunk(3, dim=-1))
        for letter in self.targets:
            first, second = self._update(letter)
            parts["qkv".index(letter)] = parts["qkv".index(letter)] + second(first(x))
        return torch.cat(parts, dim=-1)

    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same: W + B A for each target, the others as they are."""
        parts = list(self.qkv.weight.detach().chunk(3))
        for letter in self.targets:
            first, second = self._update(letter)
            parts["qkv".index(letter)] = parts["qkv".index(letter)] + second.weight.detach() @ first.weight.detach()
        return _linear(torch.cat(parts), self.qkv.bias)


class LoraLinear(nn.Linear):
    """A linear layer with an update; its own weight and bias keep the names they have without one."""

    def __init__(self, dim: int, out: int, rank: int) -> None:
        super().__init__(dim, out)
        self.linear_a = nn.Linear(dim, rank, bias=False)
        self.linear_b = nn.Linear(rank, out, bias=False)
        _start(self.linear_a, self.linear_b)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.linear_b(self.linear_a(x))

    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same: W + B A."""
        return _linear(full_weight(self).detach(), self.bias)


def full_weight(layer: nn.Linear) -> Tensor:
    """Return the weight that a linear layer acts with: W, or W + B A where it has an update."""
    if isinstance(layer, LoraLinear):
        return layer.weight + layer.linear_b.weight @ layer.linear_a.weight
    return layer.weight


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    out = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    out.weight, out.bias = nn.Parameter(weight), nn.Parameter(bias.detach().clone())
    return out


def merge_lora(network: nn.Module) -> None:
    """Replace every layer with an update, anywhere in `network`, by one linear layer that computes the same."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraQKV | LoraLinear):
                setattr(parent, name, child.merged())
