"""The PyTorch originals behind the Runner interface: float32, from the checkpoint that the manifest names.

It is what every conversion is compared with, so it refuses any other weights than the exported ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samkit.errors import CheckpointError, ManifestError, MissingDependencyError
from samkit.extras import how_to_install
from samkit.manifest import Export, ExportPlan, Weights, file_sha256
from samkit.methods import get_method
from samkit.methods.method import GraphSpec, Method
from samkit.precisions import BASE
from samkit.runtime.backends.backend import Backend
from samkit.runtime.backends.runner import HostRunner, Runner, check_inputs, still_open
from samkit.tensors import Tensor, on_host

if TYPE_CHECKING:
    from samkit.networks.network import Network


class TorchRunner(HostRunner):
    """One graph of a network, run by PyTorch. Outputs come to the host: it is the judge, not the fast one."""

    def __init__(self, network: Network, graph: GraphSpec, device: str = "cpu") -> None:
        """Run `graph` of `network`, which is on `device` and in evaluation mode."""
        self.graph = graph
        self.providers: tuple[str, ...] = (f"torch:{device}",)
        self._network: Network | None = network
        self._device = device

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name; raises TensorMismatchError for inputs that don't fit, SamkitError once closed."""
        import torch

        network = still_open(self._network, self.graph)
        check_inputs(self.graph, inputs)
        # TF32 keeps ten bits of the mantissa; torch lets convolutions use it by default.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            tensors = [
                torch.from_numpy(np.ascontiguousarray(on_host(inputs[s.name]))).to(self._device)
                for s in self.graph.inputs
            ]
            results = network.run_graph(self.graph.name, *tensors)
            return {
                spec.name: result.float().cpu().numpy()
                for spec, result in zip(self.graph.outputs, results, strict=True)
            }

    def close(self) -> None:
        """Let go of the network."""
        self._network = None


def open_torch_runners(plan: ExportPlan, *, device: str = "cpu", threads: int | None = None) -> dict[str, TorchRunner]:
    """Return the runners of the plan's graphs, on one network with exactly the weights that were exported.

    Raises as `exported_network` does.
    """
    network = exported_network(plan, device=device, threads=threads)
    return {graph.name: TorchRunner(network, graph, device) for graph in plan.specs}


def exported_network(plan: ExportPlan, *, device: str = "cpu", threads: int | None = None) -> Network:
    """Return the network that was exported, with its weights as loaded, in evaluation mode on `device`.

    Raises ManifestError where those weights are not to be had any more, or changed, and MissingDependencyError without
    PyTorch or the device.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"{{backend}} torch needs PyTorch; {how_to_install('export')}, or use {{backend}} onnxruntime",
            options=("backend",),
        ) from error
    from samkit.checkpoints import load_network

    if device == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            "PyTorch finds no CUDA device; check the driver, or use {device} cpu", options=("device",)
        )
    if threads is not None:
        torch.set_num_threads(threads)
    method = get_method(plan.method)
    path = _weights_file(method, plan.weights)
    files = {name: _weights_file(method, other) for name, other in plan.others.items()}
    loaded = load_network(path, method, files, plan.weights.entry)
    if loaded.info.config != plan.config:
        raise ManifestError("checkpoint and manifest describe different networks; export again")
    return loaded.network.to(device).eval()


def _weights_file(method: Method, weights: Weights) -> Path:
    """Return a file that still is what was exported; it is hashed before anything in it is read."""
    path = _named_file(method, weights)
    found = file_sha256(path)
    if found != weights.sha256:
        raise ManifestError(
            f"{path.name} changed since it was exported: its SHA-256 is {found[:12]}..., the manifest has "
            f"{str(weights.sha256)[:12]}...; restore it or export again"
        )
    return path


def _named_file(method: Method, weights: Weights) -> Path:
    if weights.kind == "demonstration":
        from samkit.weights import demo_checkpoint

        return demo_checkpoint(method.name)
    if weights.path is None:
        raise ManifestError(
            f"this export was made from {weights.kind} weights that no file holds; use {{backend}} onnxruntime",
            options=("backend",),
        )
    path = Path(weights.path)
    if not path.is_file():
        raise CheckpointError(
            f"the checkpoint {path.name} that this export was made from is gone; put it back where the manifest says, "
            "or use {backend} onnxruntime",
            options=("backend",),
        )
    return path


def _open_runners(export: Export, device: str, precision: str, threads: int | None) -> dict[str, Runner]:
    return dict(open_torch_runners(export.plan, device=device, threads=threads))


BACKEND = Backend(
    name="torch",
    title="PyTorch",
    summary="runs the original in float32 and needs the checkpoint that the export was made from",
    devices=("cpu", "cuda"),
    extras={"cpu": "export", "cuda": "export"},
    open_runners=_open_runners,
    precisions=frozenset({BASE.name}),
    is_original=True,
)
