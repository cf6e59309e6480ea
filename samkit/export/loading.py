"""Work: a plan with everything that it names resolved, once; all stages of an export are handed this record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from samkit.errors import ExportError
from samkit.export.plan import complete_plan
from samkit.manifest import ExportPlan, Weights, file_sha256
from samkit.methods import GraphSpec, Method
from samkit.networks.config import NetworkConfig
from samkit.precisions import Precision, get_precision
from samkit.weights import demo_checkpoint, find_demo

if TYPE_CHECKING:
    from samkit.checkpoints import CheckpointInfo
    from samkit.networks.network import Network

RANDOM_SEED = 0


@dataclass(frozen=True)
class Work:
    """One export that is to be made."""

    plan: ExportPlan
    """Complete: with all that the weights say."""
    method: Method
    network: Network
    """As loaded, in evaluation mode; the stages change its formulation."""
    info: CheckpointInfo
    specs: tuple[GraphSpec, ...]
    """The graphs that are written."""
    files: Mapping[str, Mapping[str, str]]
    """By precision and graph, the names of the files that are written."""
    precisions: tuple[Precision, ...]
    """In the order in which they are written."""


def load_work(plan: ExportPlan, method: Method) -> Work:
    """Return a plan's work, its weights loaded; raises ExportError where they are not what was planned."""
    from samkit.checkpoints import CheckpointInfo, build_network

    borrowed: dict[str, Weights] = {}
    if plan.weights.kind == "random":
        if plan.config is None or plan.size is None:
            raise ExportError("a plan with random weights names no network; pass {size}", options=("size",))
        network = random_network(method, plan.config)
        info = CheckpointInfo(method.name, plan.size, plan.config, plan.refinement or method.refinements[0])
    else:
        demo = find_demo(method.name) if method.parts else None
        path = demo_checkpoint(method.name) if plan.weights.path is None else Path(plan.weights.path)
        others = {name: Path(weights.path) for name, weights in plan.others.items() if weights.path is not None}
        for file, weights in ((path, plan.weights), *((others[name], plan.others[name]) for name in others)):
            if file_sha256(file) != weights.sha256:
                raise ExportError(f"{file} changed between planning and loading; run sam-export again")
        lent = Weights("demonstration", None, None if demo is None else file_sha256(demo), demonstration=True)
        loaded = build_network(path, str(plan.weights.sha256), method, others, demo, plan.weights.entry)
        network, info = loaded.network, loaded.info
        borrowed = dict.fromkeys(loaded.borrowed, lent)
    plan = complete_plan(plan, method, info, borrowed)
    precisions = tuple(get_precision(name) for name in plan.precisions)
    files = {one.name: {graph: one.graph_file(graph) for graph in plan.graphs} for one in precisions}
    return Work(plan, method, network, info, plan.specs, files, precisions)


def random_network(method: Method, config: NetworkConfig) -> Network:
    """Return a seeded network whose zero-initialised tensors hold noise: zeros would hide their errors."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(RANDOM_SEED)
        network = method.build(config).eval()
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer) * 0.1)
    return network
