"""What an exported graph is timed beside: PyTorch eager, under autocast, compiled, and ONNX Runtime of `--no-fold`.

All of them run upstream's formulation with LoRA apart, on the weights that were exported. They do what a session does:
images and prompts come from the host, logits go back there, embeddings stay on the device. Float32 is float32, without
TF32.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.benchmarks.latency.settings import AUTOCAST, COMPILE, EAGER
from samkit.errors import MissingDependencyError
from samkit.methods import GraphSpec
from samkit.precisions import BASE
from samkit.precisions.fp16 import PRECISION as FP16
from samkit.tensors import Tensor, on_host

if TYPE_CHECKING:
    import torch

    from samkit.networks.network import Network

BFLOAT16 = "bf16"
AUTOCAST_PRECISION = {"cuda": FP16.name, "cpu": BFLOAT16}
"""What autocast computes in: on a CPU PyTorch has few float16 kernels."""
COMPILER = "inductor"
"""Backend of torch.compile; on a CPU it needs a C++ compiler."""
STAYING = frozenset({"image_embeddings", "image_features", "updated_embeddings"})
"""Tensors that never leave the device between the encoder and the clicks."""

Run = Callable[[], "dict[str, Tensor | torch.Tensor]"]
"""One run with its copies: outputs by name, where a session has them."""


def check_device(device: str) -> None:
    """Raise MissingDependencyError unless PyTorch can use `device`."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "latency is compared with PyTorch's, which is not installed; pip install 'samkit[export,cpu]'"
        ) from error
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            f"PyTorch {torch.__version__} finds no CUDA device, and {{device}} cuda needs one; check nvidia-smi and "
            "that this PyTorch was built for CUDA, or leave {device} out",
            options=("device",),
        )


def torch_precision(baseline: str, device: str) -> str:
    """Return what PyTorch computes in as one of BASELINES."""
    return AUTOCAST_PRECISION[device] if baseline == AUTOCAST else BASE.name


def torch_run(
    network: Network, graph: GraphSpec, inputs: Mapping[str, np.ndarray], baseline: str = EAGER, device: str = "cpu"
) -> Run:
    """Return a run of one graph of `network`, which is on `device`, as one of BASELINES; it waits for the device."""
    import torch

    def graph_of(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return network.run_graph(graph.name, *tensors)

    function: Callable[..., tuple[torch.Tensor, ...]] = graph_of
    if baseline == COMPILE:
        function = torch.compile(function, backend=COMPILER)
    half = torch.float16 if AUTOCAST_PRECISION[device] == FP16.name else torch.bfloat16
    there = {name: torch.from_numpy(array).to(device) for name, array in inputs.items() if name in STAYING}

    def run() -> dict[str, Tensor | torch.Tensor]:
        with _float32(), torch.autocast(device, half, enabled=baseline == AUTOCAST):
            tensors = [
                there[spec.name] if spec.name in there else torch.from_numpy(inputs[spec.name]).to(device)
                for spec in graph.inputs
            ]
            results = dict(zip([spec.name for spec in graph.outputs], function(*tensors), strict=True))
        return {name: result if name in STAYING else result.float().cpu().numpy() for name, result in results.items()}

    return finished(run, device)


def write_official(network: Network, graph: GraphSpec, path: Path) -> None:
    """Write the file that `sam-export --no-fold` has for `graph`; raises ExportError."""
    from samkit.export.graphs import write_graph
    from samkit.export.plan import OPSET

    write_graph(network, graph, path, opset=OPSET, folded=False)
    gc.collect()  # the exporter's programs hold the network in cycles


def finished(run: Run, device: str) -> Run:
    """Return `run` with the wait for everything that it started on the device."""
    if device == "cpu":
        return run
    import torch

    def waited() -> dict[str, Tensor | torch.Tensor]:
        outputs = run()
        torch.cuda.synchronize()  # all streams of the process, ONNX Runtime's among them
        return outputs

    return waited


def forget_compiled() -> None:
    """Let go of what torch.compile made: it keeps few forms of one function, and then quietly compiles no more."""
    import torch

    torch.compiler.reset()
    gc.collect()


def as_arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the outputs of any run on the host, float32."""
    return {
        name: value.float().cpu().numpy() if hasattr(value, "cpu") else on_host(value)
        for name, value in outputs.items()
    }


@contextmanager
def _float32() -> Iterator[None]:
    """Run PyTorch without gradients and without TF32, which keeps ten bits of the mantissa."""
    import torch

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
