"""The PyTorch originals of an export: float32, upstream's own formulation, LoRA beside the weights and nothing folded.

Everything that an export or a server answers is compared with what they answer, and their time is the baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from samkit.errors import ManifestError
from samkit.manifest import ExportPlan
from samkit.methods import get_method
from samkit.runtime.backends.runner import Runner, add_substitutes

if TYPE_CHECKING:
    from samkit.networks.network import Network


def original_network(plan: ExportPlan, *, device: str = "cpu", threads: int | None = None) -> Network:
    """Return the network with exactly the weights that were exported, in evaluation mode; random ones are made again.

    Raises ManifestError where the weights are not to be had any more, or changed, and MissingDependencyError without
    PyTorch or the device.
    """
    from samkit.runtime.backends.torch_runner import exported_network

    if plan.weights.kind != "random":
        network = exported_network(plan, device=device, threads=threads)
    else:
        import torch

        from samkit.export.loading import random_network

        if plan.config is None:
            raise ManifestError(f"the plan of {plan.method} does not describe its network; export again")
        if threads is not None:
            torch.set_num_threads(threads)
        network = random_network(get_method(plan.method), plan.config).to(device)
    network.set_folded(False)
    return network


def original_runners(network: Network, plan: ExportPlan, device: str = "cpu") -> dict[str, Runner]:
    """Return the runners of a session on the original: upstream's graphs, which do the work of rewritten ones, too."""
    from samkit.runtime.backends.torch_runner import TorchRunner

    graphs = get_method(plan.method).graphs(network.config)
    there = [graph for graph in graphs if graph.is_in(plan.refinement, folded=False)]
    runners: dict[str, Runner] = {graph.name: TorchRunner(network, graph, device) for graph in there}
    add_substitutes(runners, graphs)
    return runners
