"""Time every method on a CUDA device: exported graphs in ONNX Runtime against PyTorch on upstream's formulation.

    python -m samkit.benchmarks.gpu [--method NAME ...] [--size full|small|tiny] [--rounds 7] [--json FILE]

Every graph that a session runs, encoder and click, is timed in ONNX Runtime in float16 and float32, and in PyTorch
eager float32, under autocast to float16, and compiled by torch.compile in float32; PyTorch keeps LoRA apart. All of
them do what a session does: images and prompts come from the host, logits go back there, embeddings stay on the device.
Float32 is float32, without TF32. Runs take turns, and each ends when the device has finished.

The aim is twice autocast's speed; it is printed and not judged. Where samkit is made there is no CUDA device: its tests
run this logic on the CPU, and the command itself was never run on CUDA.
"""

from __future__ import annotations

import gc
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from samkit.benchmarks.cases import Case
from samkit.benchmarks.graphs import take_turns
from samkit.benchmarks.machine import MatrixProduct, processor
from samkit.command import run_command
from samkit.errors import ExportError, MissingDependencyError, SamkitError
from samkit.export.export import random_network, run_export
from samkit.export.parity import output_error
from samkit.export.plan import plan_export
from samkit.manifest import PRECISIONS, ExportPlan, Manifest, graph_file
from samkit.methods import GraphSpec, Method, get_method, list_methods
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.refinement import encode_image
from samkit.tensors import Tensor, on_host
from samkit.weights import demo_checkpoint

if TYPE_CHECKING:
    import torch

    from samkit.models.network import Network

AIM = 2.0
"""How many times as fast as autocast the float16 files ought to be."""
PYTORCH = ("eager", "autocast", "compile")
"""What the files are compared with."""
STAYING = frozenset({"image_embeddings", "image_features", "updated_embeddings"})
"""Tensors that never leave the device between the encoder and the clicks."""
OFFICIAL = {"mask_decoder_no_mask": "mask_decoder", "mask_decoder_anchored": "mask_decoder"}
"""The graph that does the same work in upstream's formulation, where it has another name."""
COMPILER = {"cuda": "inductor", "cpu": "eager"}
"""Backend of torch.compile; on the CPU the tests trace the networks and compile nothing."""

Run = Callable[[], "dict[str, Tensor | torch.Tensor]"]
"""One run with its copies: outputs by name, where a session has them."""


@click.command()
@click.option("--method", "names", multiple=True, type=click.Choice(list_methods()), help="One method; else all.")
@click.option(
    "--size",
    type=click.Choice(["full", "small", "tiny"]),
    default="full",
    show_default=True,
    help="small has the demonstration weights, the others random ones; tiny shows that it works.",
)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1), help="Turns of each competitor.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write records with all samples.")
def gpu(names: tuple[str, ...], size: str, rounds: int, out: Path | None) -> None:
    """Print one row per method and graph; exit code 1 when a method could not be exported or run."""
    check_device("cuda")
    records: list[dict[str, Any]] = []
    failed = []
    for name in names or list_methods():
        click.echo(f"{name} ...", err=True)
        try:
            records += measure(name, size=size, rounds=rounds)
        except ExportError as error:  # of one method: the others have their rows all the same
            records.append({"method": name, "size": size, "error": str(error)})
            failed.append(name)
        if out is not None:
            out.write_text(json.dumps(records, indent=1) + "\n")
    show(records)
    if failed:
        raise SamkitError(f"{', '.join(failed)} gave no timings, the rows above say why; run sam-export on them alone")


def check_device(device: str) -> None:
    """Raise MissingDependencyError unless both PyTorch and ONNX Runtime can use `device`."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "these timings compare with PyTorch, which is not installed; pip install 'samkit[export,gpu]'"
        ) from error
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            f"PyTorch {torch.__version__} finds no CUDA device, and these timings need one; check nvidia-smi and that "
            "this PyTorch was built for CUDA, or time the CPU with python -m samkit.benchmarks.graphs"
        )
    with MatrixProduct(1, device):  # ONNX Runtime refuses before anything is exported, not after
        pass


def measure(name: str, *, size: str, rounds: int, device: str = "cuda") -> list[dict[str, Any]]:
    """Export a method with all of its graphs and return the records of their timings; raises ExportError."""
    method = get_method(name)
    config = method.sizes[size]
    # The refinement with the most graphs: its export holds those of the others, too.
    refinement = max(method.refinements, key=lambda mode: sum(g.is_in(mode, True) for g in method.graphs(config)))
    plan = plan_export(name, size=size, refinement=refinement, precision="fp16")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / name
        run_export(plan, folder, say=lambda line: click.echo(line, err=True))
        gc.collect()  # the exporter's programs hold the network in cycles
        return time_export(folder, rounds=rounds, device=device)


def time_export(folder: Path, *, rounds: int, device: str = "cuda") -> list[dict[str, Any]]:
    """Return one record for each graph of a float16 export of demonstration or random weights: seconds, all samples,
    ratios to the float16 file, and how far each competitor's outputs lie from PyTorch eager's.
    """
    plan = Manifest.load(folder).plan
    network = _official_network(plan).to(device)
    described = machine(device)
    records = []
    with ExitStack() as stack:
        runners = {
            precision: {
                spec.name: stack.enter_context(
                    OnnxRuntimeRunner(folder / graph_file(spec.name, precision), spec, device=device, binds=True)
                )
                for spec in plan.specs
            }
            for precision in PRECISIONS
        }
        image = _case(plan, runners["fp32"]["image_encoder"].graph).inputs()["image"]
        kept = {precision: encode_image(runners[precision], image) for precision in PRECISIONS}
        for spec in plan.specs:
            case = _case(plan, spec)
            given = case.inputs()
            runs = {f"onnxruntime {p}": _onnx_run(runners[p][spec.name], given, kept[p]) for p in PRECISIONS}
            official = {**given, **{name: on_host(kept["fp32"][name]) for name in STAYING & {*given} & {*kept["fp32"]}}}
            runs |= {way: _torch_run(network, case.graph("official"), official, way, device) for way in PYTORCH}
            record: dict[str, Any] = {"method": plan.method, "graph": spec.name, "official": case.official}
            record |= {"size": plan.size, "weights": plan.weights.kind, "rounds": rounds, "machine": described}
            records.append(record | _compare(runs, rounds, device))
            _forget_compiled()
    return records


def _compare(runs: dict[str, Run], rounds: int, device: str) -> dict[str, Any]:
    """Return seconds, ratios and differences of `runs`; what PyTorch could not compile is named in `failed`."""
    expected = _numpy(runs["eager"]())
    errors, failed = {}, {}
    for name in [name for name in runs if name != "eager"]:
        try:
            found = _numpy(runs[name]())
        except RuntimeError as error:  # torch.compile's own errors, and those of the C++ compiler that it calls
            if name != "compile":
                raise
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        errors[name] = _difference(found, expected)
    samples = take_turns({name: _finished(run, device) for name, run in runs.items() if name not in failed}, rounds)
    seconds = {name: float(np.median(values)) for name, values in samples.items()}
    fastest = seconds["onnxruntime fp16"]
    return {
        "seconds": {name: float(f"{value:.4g}") for name, value in seconds.items()},
        "ratio": {name: round(value / fastest, 3) for name, value in seconds.items()},
        "relative_error": {name: float(f"{value:.2e}") for name, value in errors.items()},
        "failed": failed,
        "samples": {name: [float(f"{value:.6g}") for value in values] for name, values in samples.items()},
    }


def machine(device: str) -> dict[str, str]:
    """Return what must stand beside the timings: the device, its driver, and the versions of what ran on it."""
    import torch

    installed = {found.metadata["Name"]: found.version for found in distributions()}
    runtime = next(name for name in ("onnxruntime-gpu", "onnxruntime") if name in installed)
    described = {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "torch": torch.__version__,
        runtime: installed[runtime],
    }
    if device == "cuda":
        described["driver"] = _driver()
        described["CUDA of torch"] = f"{torch.version.cuda}"
        described["cuDNN of torch"] = f"{torch.backends.cudnn.version()}"
    return described


def _driver() -> str:
    """Return the version of NVIDIA's driver, or why it is not known."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        return f"unknown (nvidia-smi: {error})"


# --- Graphs and inputs ---


def _official_network(plan: ExportPlan) -> Network:
    """Return the exported weights in upstream's formulation, LoRA apart."""
    from samkit.checkpoints import load_network

    method: Method = get_method(plan.method)
    if plan.weights.kind == "random" and plan.config is not None:
        network = random_network(method, plan.config)
    elif plan.weights.kind == "demonstration":
        network = load_network(demo_checkpoint(method.name), method).network
    else:
        raise SamkitError(
            f"these timings know the demonstration weights and random ones, the export has those of a "
            f"{plan.weights.kind}; export with --size and without --checkpoint"
        )
    network.set_folded(False)
    return network.eval()


def _case(plan: ExportPlan, spec: GraphSpec) -> Case:
    """Return what `spec` is compared with and on which inputs."""
    if plan.config is None:
        raise ExportError(f"the plan of {plan.method} does not describe its network; export again")
    official = OFFICIAL.get(spec.name, spec.name)
    has_mask = spec.name != "mask_decoder_no_mask"
    return Case(f"{plan.method}-{spec.name}", plan.method, plan.config, spec.name, official, (), has_mask=has_mask)


def _onnx_run(runner: OnnxRuntimeRunner, given: Mapping[str, np.ndarray], kept: Mapping[str, Tensor]) -> Run:
    """Return a run of one file on `given`, and on what was kept in place of it."""
    known: dict[str, Tensor] = {**given, **kept}
    feed = {tensor.name: known[tensor.name] for tensor in runner.graph.inputs}
    stay = [tensor.name for tensor in runner.graph.outputs if tensor.name in STAYING]
    return lambda: dict(runner.run_keeping(feed, stay))


def _torch_run(network: Network, graph: GraphSpec, given: Mapping[str, np.ndarray], way: str, device: str) -> Run:
    """Return a run of one graph of `network` in one of the ways of PYTORCH."""
    import torch

    function: Callable[..., tuple[torch.Tensor, ...]] = _Graph(network, graph.name)
    if way == "compile":
        function = torch.compile(function, backend=COMPILER[device])
    there = {name: torch.from_numpy(array).to(device) for name, array in given.items() if name in STAYING}

    def run() -> dict[str, Tensor | torch.Tensor]:
        with _float32(), torch.autocast(device, torch.float16, enabled=way == "autocast"):
            tensors = [
                there[spec.name] if spec.name in there else torch.from_numpy(given[spec.name]).to(device)
                for spec in graph.inputs
            ]
            results = dict(zip([spec.name for spec in graph.outputs], function(*tensors), strict=True))
        return {name: result if name in STAYING else result.float().cpu().numpy() for name, result in results.items()}

    return run


class _Graph:
    """One graph of a network as a function of tensors, which torch.compile takes."""

    def __init__(self, network: Network, name: str) -> None:
        self.network, self.name = network, name

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.network.run_graph(self.name, *tensors)


@contextmanager
def _float32() -> Iterator[None]:
    """Run PyTorch without gradients and without TF32, which keeps ten bits of the mantissa."""
    import torch

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _finished(run: Run, device: str) -> Callable[[], None]:
    """Return `run` with the wait for everything that it started on the device."""
    import torch

    def finished() -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()  # all streams of the process, ONNX Runtime's among them

    return finished


def _forget_compiled() -> None:
    """Let go of compiled graphs: the next one is another network's or another graph's."""
    import torch

    torch.compiler.reset()
    gc.collect()


def _numpy(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return outputs of either side on the host, float32."""
    return {
        name: value.float().cpu().numpy() if hasattr(value, "cpu") else on_host(value)
        for name, value in outputs.items()
    }


def _difference(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of any output, norm over norm."""
    return float(np.max([output_error(name, found[name], expected[name]) for name in expected]))  # nan stays nan


# --- Table ---


def show(records: list[dict[str, Any]]) -> None:
    """Print one row per record, and under them what they were measured on."""
    ways = ("onnxruntime fp16", "onnxruntime fp32", *PYTORCH)
    table = Table(
        "method", "graph", *(f"{way} ms" for way in ways), "eager ratio", f"autocast ratio (aim {AIM:g})",
        "compile ratio", "difference fp16", "fp32", "autocast", "notes",
    )  # fmt: skip
    for record in records:
        if "error" in record:
            table.add_row(record["method"], "", *[""] * (len(ways) + 6), record["error"])
            continue
        seconds, ratio, errors = record["seconds"], record["ratio"], record["relative_error"]
        table.add_row(
            record["method"],
            record["graph"],
            *(f"{1e3 * seconds[way]:.3f}" if way in seconds else "failed" for way in ways),
            *(f"{ratio[way]:.2f}" if way in ratio else "" for way in PYTORCH),
            *(f"{errors[way]:.0e}" for way in (*ways[:2], "autocast")),
            "; ".join(f"{way}: {why}" for way, why in record["failed"].items()),
        )
    console = Console(width=240)
    console.print(table)
    described = next((record["machine"] for record in records if "machine" in record), None)
    if described is not None:
        console.print("; ".join(f"{name} {value}" for name, value in described.items()))
        console.print(
            "Medians; a ratio is that time over onnxruntime fp16's; differences are to PyTorch eager float32."
        )


def main() -> None:
    """Run the command."""
    run_command(gpu, "gpu")


if __name__ == "__main__":
    main()
