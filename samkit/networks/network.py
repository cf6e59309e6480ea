"""Network: what every network offers to training, export and the torch runner."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from samkit.networks.config import NetworkConfig


class Foldable(nn.Module):
    """A layer with two formulations of one function: upstream's own, and a fast one with equal results."""

    folded: bool = True
    """Whether `forward` runs the fast form."""

    def freeze(self) -> None:
        """Compute once what depends on the weights alone, for export; they must not change afterwards."""


class Network(nn.Module):
    """A network as its exported graphs see it: one function per graph."""

    GRAPHS: ClassVar[dict[str, str]]
    """Graph name to the method that computes it; its parameters are the graph's inputs, in order."""
    config: NetworkConfig

    def run_graph(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the graph called `name`, in the order of its GraphSpec.

        An output that this network does not have is None where the method returns it, and left out here.
        """
        outputs: Any = getattr(self, self.GRAPHS[name])(*inputs)
        return tuple(o for o in outputs if o is not None) if isinstance(outputs, tuple) else (outputs,)

    def merge_lora(self) -> None:
        """Replace every low-rank update by one linear layer that computes the same; nothing where there is none."""

    def set_folded(self, folded: bool) -> None:
        """Choose the formulation of every layer that has two."""
        for module in self.modules():
            if isinstance(module, Foldable):
                module.folded = folded

    def freeze(self) -> None:
        """Compute once what depends on the weights alone, for export; they must not change afterwards."""
        for module in self.modules():
            if isinstance(module, Foldable):
                module.freeze()
