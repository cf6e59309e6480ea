"""Where a training starts: a fresh network, or one with the weights of `--init`; and what of it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samkit.checkpoints import LoadedNetwork, load_network, read_info, resolve_checkpoint
from samkit.errors import CheckpointError
from samkit.methods import get_method
from samkit.methods.method import Method
from samkit.models.sam3d import Sam3D


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


def load_start(path: Path, method: Method) -> LoadedNetwork:
    """Return the network of `--init`: the method's own, or the one it builds on."""
    if method.base is None:
        return load_network(path, method)
    info = read_info(resolve_checkpoint(path))
    try:
        return load_network(path, method if info is None or info.method != method.base else get_method(method.base))
    except CheckpointError:
        if info is not None:
            raise
        return load_network(path, get_method(method.base))  # an official file of the base


def start_weights(network: Sam3D, loaded: LoadedNetwork, name: str) -> int:
    """Copy every weight of `loaded` into `network` and return how many tensors stay fresh (LoRA, adapter).

    Raises CheckpointError where the checkpoint's weights do not all have a place.
    """
    wanted = network.state_dict()
    given = loaded.network.state_dict()
    if network.config.lora_rank and not loaded.info.config.lora_rank:
        # LoRA wraps the fused projection, which moves one level down.
        given = {
            key.replace(".attn.qkv.", ".attn.qkv.qkv.") if key.startswith("image_encoder.blocks.") else key: value
            for key, value in given.items()
        }
    wrong = [
        f"{key} {tuple(value.shape)}"
        for key, value in given.items()
        if key not in wanted or wanted[key].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of {name} have no place in the network planned: {', '.join(wrong[:10])}; "
            "leave the network's sizes as the checkpoint has them (no --set of patch, width, lora_rank, ...)"
        )
    network.load_state_dict({**wanted, **given})
    return len(wanted) - len(given)


def freeze(network: Sam3D, method: Method) -> None:
    """Leave only those parameters to train that the method does not freeze."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad = not method.frozen(name)


def count_parameters(network: Sam3D) -> ParameterCounts:
    """Return the counts of a network as `freeze` left it."""
    parameters = dict(network.named_parameters())
    return ParameterCounts(
        total=sum(p.numel() for p in parameters.values()),
        tunable=sum(p.numel() for p in parameters.values() if p.requires_grad),
        adapter=sum(p.numel() for name, p in parameters.items() if name.startswith("bidatt.")),
    )
