"""Peak resident memory of runs of one graph, in a process of its own that holds nothing else.

    python -m samkit.benchmarks.memory CASE folded GRAPH.onnx INPUTS.npz --threads 2

Prints one JSON line: what the loaded session holds, the peak while it runs, and the difference [MB, 10^6 bytes].
Linux only: it reads /proc.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from samkit.benchmarks.cases import CASES, FORMULATIONS, SIZES
from samkit.command import run_command
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner

_PATH = click.Path(exists=True, dir_okay=False, path_type=Path)
RUNS = 2
"""The first run fills ONNX Runtime's arena; the second shows whether it grows on."""


@click.command()
@click.argument("case_name", metavar="CASE", type=click.Choice(list(CASES)))
@click.argument("formulation", type=click.Choice(FORMULATIONS))
@click.argument("graph", type=_PATH)
@click.argument("inputs", type=_PATH)
@click.option("--size", type=click.Choice(SIZES), default="full", show_default=True)
@click.option("--threads", default=2, show_default=True)
def memory(case_name: str, formulation: str, graph: Path, inputs: Path, size: str, threads: int) -> None:
    """Run a graph on the arrays of an .npz file and print the memory it took."""
    with np.load(inputs) as file:
        feed = {name: file[name] for name in file.files}
    with OnnxRuntimeRunner(graph, CASES[case_name].at(size).graph(formulation), threads=threads) as runner:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
        loaded = _megabytes("VmRSS")
        for _ in range(RUNS):
            runner.run(feed)
        peak = _megabytes("VmHWM")
    click.echo(json.dumps({"loaded_mb": loaded, "peak_mb": peak, "above_session_mb": round(peak - loaded, 1)}))


def _megabytes(name: str) -> float:
    kilobytes = int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
    return round(kilobytes * 1024 / 1e6, 1)


def main() -> None:
    """Run the command."""
    run_command(memory, "memory")


if __name__ == "__main__":
    main()
