"""Parameters of a network by name: its outline, made without numbers, and whether a state dict fits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from samkit.errors import CheckpointError
from samkit.methods.method import State
from samkit.networks.config import NetworkConfig

if TYPE_CHECKING:
    from torch import Tensor

    from samkit.networks.network import Network

_QUICK = 64
"""Copies of a layer that are outlined in no time: SAM's largest encoder has 32."""


def outline(build: Callable[[Any], Network], config: NetworkConfig, tensors: int | None = None) -> Mapping[str, Tensor]:
    """Return the parameters of a network by name, with shapes and without numbers.

    `tensors` are how many a file has: a network with more layers than that is not even outlined.
    """
    if tensors is not None and config.copies > max(tensors, _QUICK):
        raise CheckpointError(
            f"the config repeats a layer {config.copies} times and the file holds {tensors} tensors; restore both from "
            "the training run"
        )
    try:
        return _outline(build, config)
    except (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"this network can't be built ({error}); correct its config") from error


@lru_cache(maxsize=16)
def _outline(build: Callable[[Any], Network], config: NetworkConfig) -> Mapping[str, Tensor]:
    import torch

    with torch.device("meta"):
        return build(config).state_dict()


def outermost(build: Callable[[Any], Network], config: NetworkConfig, parts: tuple[str, ...]) -> frozenset[str]:
    """Return the outermost modules of a network without those parts: what none of its parameters is outside of."""
    return frozenset(n.partition(".")[0] for n in _outline(build, config) if not n.startswith(parts))


def fill_network(network: Network, state: State, file: str, what: str) -> None:
    """Copy `state` into `network`; one CheckpointError lists everything that does not fit."""
    check_fit(network.state_dict(), state, file, what)
    network.load_state_dict(state)


def check_fit(wanted: Mapping[str, Tensor], state: State, file: str, what: str) -> None:
    """Raise CheckpointError unless `state` has the names, shapes and kinds of numbers of `wanted`; it lists all."""
    import torch

    both = sorted(set(wanted) & set(state))
    kinds = [
        f"{name} is {state[name].dtype}, needed {wanted[name].dtype}"
        for name in both
        # Counters of batch norm are whole numbers, and whole files are often turned to float16.
        if not state[name].is_floating_point()
        and (wanted[name].is_floating_point() or state[name].dtype == torch.bool or state[name].is_complex())
    ]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, needed {tuple(wanted[name].shape)}"
        for name in both
        if state[name].shape != wanted[name].shape
    ]
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        for kind, names in (
            ("missing", sorted(set(wanted) - set(state))),
            ("unexpected", sorted(set(state) - set(wanted))),
            ("misshapen", shapes),
            ("of another type", [one.replace("torch.", "") for one in kinds]),
            ("with NaN or Inf", sorted(name for name, tensor in state.items() if not torch.isfinite(tensor).all())),
        )
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{file} does not fit {what}: {'; '.join(parts)}. Is it a checkpoint of another method? "
            "`sam-export --list` names them"
        )
