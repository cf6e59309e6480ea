"""Time the folded image encoder against upstream's own formulation, both in ONNX Runtime, in one run.

    python -m samkit.benchmarks.encoder [--method sam-med3d] [--rounds 7] [--threads 2]

Exports the full-size network twice with the same seeded random weights, checks that both give the same embedding,
and prints one JSON line: medians of interleaved runs, their ratio, the share of ONNX Runtime's own matrix product
rate, and the peak resident memory of one folded run over the loaded session, taken in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from samkit.benchmarks.machine import describe_machine
from samkit.export.export import run_export
from samkit.export.parity import load_references, relative_error
from samkit.export.plan import plan_export
from samkit.methods import get_method
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner

FOLDED_GFLOP = 104.7
"""Operations of the folded encoder at 128^3 (methods: torch's flop counter, 1 MAC = 2)."""

_MEMORY_PROBE = """
import json, pathlib, sys
import numpy as np, onnxruntime
def kib(field):
    return int(pathlib.Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
image = np.load(sys.argv[3])
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
loaded = kib("VmRSS")
for _ in range(2):
    session.run(None, {"image": image})
print(json.dumps((kib("VmHWM") - loaded) / 1e6 * 1.024))
"""


@click.command()
@click.option("--method", "method_name", default="sam-med3d", show_default=True)
@click.option("--rounds", default=7, show_default=True, help="Interleaved pairs of runs.")
@click.option("--threads", default=2, show_default=True)
def encoder(method_name: str, rounds: int, threads: int) -> None:
    """Print the ratio of the two formulations' times, and the folded one's memory."""
    method = get_method(method_name)
    spec = method.graphs(method.sizes["full"])[0]
    with tempfile.TemporaryDirectory() as folder:
        runners = {}
        for name, folded in (("folded", True), ("official", False)):
            click.echo(f"exporting {method_name}, full size, {name}", err=True)
            run_export(plan_export(method_name, size="full", folded=folded), Path(folder) / name)
            path = Path(folder) / name / "image_encoder.onnx"
            runners[name] = OnnxRuntimeRunner(path, spec, threads=threads)
        image = load_references(Path(folder) / "folded" / "parity.npz")[0].image
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
        probe = [sys.executable, "-c", _MEMORY_PROBE, str(Path(folder) / "folded" / "image_encoder.onnx")]
        memory = subprocess.run(
            [*probe, str(threads), str(Path(folder) / "image.npy")], check=True, capture_output=True, text=True
        )
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        report = {
            "method": method_name,
            **machine,
            "seconds": {name: round(value, 4) for name, value in medians.items()},
            "ratio": round(medians["official"] / medians["folded"], 2),
            "share_of_gemm": round(FOLDED_GFLOP / medians["folded"] / float(str(machine["gemm_gflops"])), 2),
            "relative_error": relative_error(outputs["folded"], outputs["official"]),
            "peak_over_session_gb": round(float(memory.stdout), 3),
        }
        click.echo(json.dumps(report))


if __name__ == "__main__":
    encoder()
