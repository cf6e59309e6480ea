"""Where a training starts: a fresh network, or one with the weights of `--init`; and what of it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samkit.checkpoints import (
    CheckpointInfo,
    read_info,
    read_part,
    read_weights,
    resolve_checkpoint,
)
from samkit.errors import CheckpointError
from samkit.manifest import file_sha256
from samkit.methods import get_method
from samkit.methods.method import Method, State
from samkit.networks.network import Network
from samkit.parameters import fill_network
from samkit.training.plan import TrainingPlan, part_of


@dataclass(frozen=True)
class Start:
    """What `--init` gives: parameters, and what describes them."""

    info: CheckpointInfo
    state: State
    sha256: str
    name: str
    parts: tuple[str, ...] = ()
    """Prefixes of the method's parts that the file holds."""


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a network, as the papers count them."""

    total: int
    tunable: int
    adapter: int

    @property
    def tunable_share(self) -> float:
        """Return the share that trains, 0 to 1."""
        return self.tunable / self.total

    @property
    def tunable_share_without_adapter(self) -> float:
        """Return the share that would train without the adapter (Table 3, 'w/o MEA')."""
        return (self.tunable - self.adapter) / (self.total - self.adapter)

    def to_text(self) -> str:
        """Return one line for people."""
        text = (
            f"{self.total / 1e6:.2f} M parameters, {self.tunable / 1e6:.2f} M of them tunable "
            f"({100 * self.tunable_share:.2f} %)"
        )
        if self.adapter:
            text += f"; without the adapter {100 * self.tunable_share_without_adapter:.2f} %"
        return text


def load_start(path: Path, method: Method, *, part: str = "", base: Path | None = None, weights: str = "") -> Start:
    """Return what the file of `--init` holds: the method's own weights, or those of the network it builds on.

    `part` asks for that part of the method alone; `base` is the companion of an official file that needs one; `weights`
    says which is meant where such a file holds several sets.
    """
    if part:
        described, state = read_part(path, method, part_of(method, part), weights)
        info = CheckpointInfo(method.name, "full", described, method.refinements[0], part=part)
        own = read_info(resolve_checkpoint(path))
        info = own if own is not None and own.part == part else info
        return Start(info, state, file_sha256(resolve_checkpoint(path)), path.name)
    others = {"base": base} if base is not None else {}
    own = read_info(resolve_checkpoint(path))
    if method.base is not None and own is not None and own.method == method.base:
        return _whole(path, get_method(method.base), weights)
    if own is not None and own.method != method.name:
        raise CheckpointError(
            f"{path.name} was trained for '{own.method}'; {method.name} starts from weights of "
            f"{' or '.join(name for name in (method.name, method.base) if name)}, give one of those with {{init}}",
            options=("init",),
        )
    try:
        info, state, sha256 = read_weights(path, method, others, weights)
    except CheckpointError as error:
        if own is not None or method.base is None:
            raise
        try:  # an official file of the base
            return _whole(path, get_method(method.base), weights)
        except CheckpointError as other:
            raise CheckpointError(
                f"{path.name} starts neither {method.name} ({error.text}) nor its base {method.base} ({other.text})",
                options=(*error.options, *other.options),
            ) from other
    held = tuple(p.prefix for p in method.parts if any(name.startswith(p.prefix) for name in state))
    return Start(info, state, sha256, path.name, held)


def _whole(path: Path, method: Method, weights: str) -> Start:
    info, state, sha256 = read_weights(path, method, weights=weights)
    return Start(info, state, sha256, path.name)


def start_weights(network: Network, start: Start, method: Method, plan: TrainingPlan) -> str:
    """Copy every parameter of `start` into `network`; return a clause on what stays fresh (LoRA, adapters, ...).

    Raises CheckpointError where the checkpoint's weights do not all have a place.
    """
    state = start.state
    gained = getattr(plan.config, "lora_rank", 0) and not getattr(start.info.config, "lora_rank", 0)
    if start.info.method != method.name or gained:
        state = method.adopt(state, plan.config)
    wanted = network.state_dict()
    if plan.part:  # a detector of other classes keeps all but its head
        state = {name: tensor for name, tensor in state.items() if _fits(tensor, wanted.get(name))}
    wrong = [f"{name} {tuple(tensor.shape)}" for name, tensor in state.items() if not _fits(tensor, wanted.get(name))]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of {start.name} have no place in the network planned: {', '.join(wrong[:10])}; "
            "leave the network's sizes as the checkpoint has them (no {set} of patch, width, lora_rank, ...)",
            options=("set",),
        )
    fill_network(network, {**wanted, **state}, start.name, method.name)
    fresh = [name for name in wanted if name not in state]
    return f"{len(fresh)} tensors are fresh{': ' if fresh else ''}{_summary(fresh)}"


def _fits(tensor: object, wanted: object) -> bool:
    return wanted is not None and getattr(tensor, "shape", None) == getattr(wanted, "shape", None)


def _summary(names: list[str]) -> str:
    """Return the first two words of each name, once: what of the network is meant."""
    groups = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
    return ", ".join(groups[:6]) + (", ..." if len(groups) > 6 else "")


def freeze(network: Network, method: Method) -> None:
    """Leave only those parameters to train that the method does not freeze."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad = not method.frozen(name, network.config)


def count_parameters(network: Network) -> ParameterCounts:
    """Return the counts of a network as `freeze` left it."""
    parameters = dict(network.named_parameters())
    return ParameterCounts(
        total=sum(p.numel() for p in parameters.values()),
        tunable=sum(p.numel() for p in parameters.values() if p.requires_grad),
        adapter=sum(p.numel() for name, p in parameters.items() if name.startswith("bidatt.")),
    )
