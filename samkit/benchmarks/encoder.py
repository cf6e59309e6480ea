"""Time the folded image encoder against upstream's own formulation, both in ONNX Runtime, in one run.

    python -m samkit.benchmarks.encoder [--method sam-med3d] [--rounds 7] [--threads 2]

Exports the full-size network twice with the same seeded random weights, checks that both give the same embedding,
and prints one JSON line: medians of interleaved runs, their ratio, the share of ONNX Runtime's own matrix product
rate, and the peak resident memory of one folded run over the loaded session. Exit code 1 beyond the limits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from samkit.benchmarks.machine import describe_machine
from samkit.command import run_command
from samkit.errors import ExportError
from samkit.export.export import run_export
from samkit.export.parity import relative_error
from samkit.export.plan import plan_export
from samkit.methods import get_method
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner


@dataclass(frozen=True)
class Wanted:
    """What a folded encoder has to reach."""

    gflop: float
    """Operations of one run (torch's flop counter, 1 MAC = 2)."""
    ratio: float
    """How many times faster than upstream's formulation."""
    peak_gb: float
    """What one run may add to the memory of the loaded session."""


WANTED = {name: Wanted(104.7, 4.0, 0.25) for name in ("sam-med3d", "m-sam")}
"""Methods without an entry are only measured."""


@click.command()
@click.option("--method", "method_name", default="sam-med3d", show_default=True)
@click.option("--rounds", default=7, show_default=True, help="Interleaved pairs of runs.")
@click.option("--threads", default=2, show_default=True)
def encoder(method_name: str, rounds: int, threads: int) -> None:
    """Print the ratio of the two formulations' times, and the folded one's memory."""
    method = get_method(method_name)
    spec = next(graph for graph in method.graphs(method.sizes["full"]) if graph.name == "image_encoder")
    with tempfile.TemporaryDirectory() as folder:
        runners = {}
        for name, folded in (("folded", True), ("official", False)):
            click.echo(f"exporting {method_name}, full size, {name}", err=True)
            run_export(plan_export(method_name, size="full", folded=folded), Path(folder) / name)
            path = Path(folder) / name / "image_encoder.onnx"
            runners[name] = OnnxRuntimeRunner(path, spec, threads=threads)
        image = np.random.default_rng(0).standard_normal(spec.inputs[0].shape).astype(np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        outputs = {}
        for turn in range(rounds + 1):
            for name, runner in runners.items():
                start = time.perf_counter()
                outputs[name] = runner.run({"image": image})["image_embeddings"]
                if turn:  # the first is warm-up
                    seconds[name].append(time.perf_counter() - start)
        machine = describe_machine(threads)
        np.save(Path(folder) / "image.npy", image)
        files = [str(Path(folder) / "folded" / "image_encoder.onnx"), str(Path(folder) / "image.npy")]
        probe = [sys.executable, "-m", "samkit.benchmarks.memory", *files, "--method", method_name]
        memory = subprocess.run([*probe, "--threads", str(threads)], check=True, stdout=subprocess.PIPE, text=True)
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        report: dict[str, Any] = {
            "method": method_name,
            **machine,
            "seconds": {name: round(value, 4) for name, value in medians.items()},
            "ratio": round(medians["official"] / medians["folded"], 2),
            "relative_error": relative_error(outputs["folded"], outputs["official"]),
            "peak_over_session_gb": float(memory.stdout),
        }
        wanted = WANTED.get(method_name)
        if wanted is not None:
            share = wanted.gflop / medians["folded"] / float(str(machine["gemm_gflops"]))
            report["share_of_gemm"] = round(share, 2)
        click.echo(json.dumps(report))
        if wanted is not None and not (
            report["ratio"] >= wanted.ratio and report["peak_over_session_gb"] <= wanted.peak_gb
        ):
            raise ExportError(
                f"the folded encoder is {report['ratio']} times as fast and needs {report['peak_over_session_gb']} GB, "
                f"wanted are {wanted.ratio} times and {wanted.peak_gb} GB; is the machine idle?"
            )


def main() -> None:
    """Run the command."""
    run_command(encoder, "encoder")


if __name__ == "__main__":
    main()
