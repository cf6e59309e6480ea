"""Who takes turns: what an export holds for this device, and beside it PyTorch eager, under autocast and compiled; and
rows of what could not be timed here.

Baselines run upstream's formulation with LoRA apart, on the weights that were exported. They do what a session does:
images and prompts come from the host, logits go back there, embeddings stay on the device. Float32 is float32, without
TF32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from samkit.benchmarks.latency.settings import AUTOCAST, COMPILE, EAGER, LatencySettings
from samkit.benchmarks.measure.machine import gpus
from samkit.benchmarks.record.rows import Absent, Identity, Row
from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install
from samkit.manifest import Export
from samkit.methods import GraphSpec
from samkit.precisions import BASE, get_precision
from samkit.precisions.fp16 import PRECISION as FP16
from samkit.runtime.backends import DEFAULT, Variant, bench_backends, get_backend, is_emulated
from samkit.tensors import on_host

if TYPE_CHECKING:
    import torch

    from samkit.networks.network import Network

T = TypeVar("T")
NO_GPU = "no CUDA device here"
NOT_ASKED = "this run was on the CPU; sam-bench latency --device cuda measures it"
BFLOAT16 = "bf16"
AUTOCAST_PRECISION = {"cuda": FP16.name, "cpu": BFLOAT16}
"""What autocast computes in when nobody says: on a CPU PyTorch has few float16 kernels."""
COMPILER = "inductor"
"""Backend of torch.compile; on a CPU it needs a C++ compiler."""
STAYING = frozenset({"image_embeddings", "image_features", "updated_embeddings"})
"""Tensors that never leave the device between the encoder and the clicks."""

Run: TypeAlias = Callable[[], Mapping[str, Any]]
"""One run with its copies: outputs by name, tensors of samkit or of PyTorch, where a session has them."""


def candidates(export: Export, settings: LatencySettings) -> list[Variant]:
    """Return what is timed of an export on the device that is asked for, in all precisions that it was written in."""
    return [
        one
        for one in bench_backends().values()
        if not get_backend(one.backend).is_original and one.precision in export.plan.precisions
        and (one.device == settings.device or (settings.engines and "cpu" not in get_backend(one.backend).devices))
    ]  # fmt: skip


def baseline(name: str, device: str) -> Variant:
    """Return one of BASELINES, with what it computes in."""
    return Variant(name, AUTOCAST_PRECISION[device] if name == AUTOCAST else BASE.name, device)


def rows_of_gpu(rows: Iterable[Row]) -> Iterator[Absent]:
    """Yield, for the rows of a run on the CPU, those of all that takes turns where there is a CUDA device."""
    why = NOT_ASKED if gpus() else NO_GPU
    there = [
        one
        for one in bench_backends().values()
        # Of a backend that runs on a GPU alone, what it prefers
        if one.device == "cuda"
        and ("cpu" in get_backend(one.backend).devices or "cuda" in get_precision(one.precision).preferred_on)
    ]
    there += [baseline(name, "cuda") for name in (EAGER, AUTOCAST, COMPILE)]
    for row, one in product(rows, there):
        is_ours = (row.identity.backend, row.identity.precision) == (DEFAULT.name, BASE.name)
        if is_ours and (row.identity.graph or one.backend not in (AUTOCAST, COMPILE)):
            yield Absent("latency", replace(row.identity, **asdict(one)), why, is_failure=False)


def note_on(one: Variant) -> str | None:
    """Return what users must be told of a time."""
    return get_precision(one.precision).emulated if is_emulated(one) else None


def attempt(identity: Identity, act: Callable[[], T]) -> T | Absent:
    """Return what `act` returns, or the row that says why it can't be timed; PyTorch's own failures are raised."""
    try:
        return act()
    except MissingDependencyError as error:
        return Absent("latency", identity, str(error), is_failure=False)
    except Exception as error:  # PyTorch's compiler, ONNX Runtime and NVIDIA's libraries share none below
        if identity.backend == EAGER:
            raise
        first_line = (str(error).strip() or "no reason").splitlines()[0]
        return Absent("latency", identity, f"{type(error).__name__}: {first_line}", is_failure=True)


# --- PyTorch ---


def check_device(device: str) -> None:
    """Raise MissingDependencyError unless PyTorch can use `device`."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"latency is compared with PyTorch's, which is not installed; {how_to_install('export', 'cpu')}"
        ) from error
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            f"PyTorch {torch.__version__} finds no CUDA device, and {{device}} cuda needs one; check nvidia-smi and "
            "that this PyTorch was built for CUDA, or leave {device} out",
            options=("device",),
        )


def torch_run(
    network: Network, graph: GraphSpec, inputs: Mapping[str, np.ndarray], name: str = EAGER, device: str = "cpu"
) -> Run:
    """Return a run of one graph of `network`, which is on `device`, as one of BASELINES."""
    import torch

    def run_graph(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return network.run_graph(graph.name, *tensors)

    function = torch.compile(run_graph, backend=COMPILER) if name == COMPILE else run_graph
    there = {name: torch.from_numpy(array).to(device) for name, array in inputs.items() if name in STAYING}

    def run() -> dict[str, np.ndarray | torch.Tensor]:
        # TF32 keeps ten bits of the mantissa
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            torch.autocast(device, enabled=name == AUTOCAST),
        ):
            tensors = [
                there[spec.name] if spec.name in there else torch.from_numpy(inputs[spec.name]).to(device)
                for spec in graph.inputs
            ]
            results = dict(zip([spec.name for spec in graph.outputs], function(*tensors), strict=True))
        return {name: result if name in STAYING else result.float().cpu().numpy() for name, result in results.items()}

    return run


def finished(run: Run, device: str) -> Run:
    """Return `run` with the wait for everything that it started on the device."""
    import torch

    def waited() -> Mapping[str, Any]:
        outputs = run()
        if device == "cuda":
            torch.cuda.synchronize()  # all streams of the process, ONNX Runtime's among them
        return outputs

    return waited


def as_arrays(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the outputs of any run on the host, float32."""
    return {name: one.float().cpu().numpy() if hasattr(one, "cpu") else on_host(one) for name, one in outputs.items()}
