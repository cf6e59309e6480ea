"""Peak resident memory of runs of one ONNX file, in a process of its own that holds nothing else.

    python -m samkit.benchmarks.measure.memory GRAPH.onnx INPUTS.npz --threads 2

Prints one JSON line: what the loaded session holds, the peak while it runs, and the difference [MB, 10^6 bytes].
Linux only: it reads /proc. The kernel's other figure, `ru_maxrss`, is no use here: a child inherits its parent's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from samkit.benchmarks.measure.processes import ask_process, resident_mb
from samkit.command import run_command

_PATH = click.Path(exists=True, dir_okay=False, path_type=Path)
RUNS = 2
"""The first run fills ONNX Runtime's arena; the second shows whether it grows on."""


@click.command()
@click.argument("graph", type=_PATH)
@click.argument("inputs", type=_PATH)
@click.option("--threads", default=2, show_default=True)
def memory(graph: Path, inputs: Path, threads: int) -> None:
    """Run a graph on the arrays of an .npz file and print the memory it took."""
    from samkit.runtime.backends.onnxruntime_runner import open_inference_session

    with np.load(inputs) as file:
        arrays = {name: file[name] for name in file.files}
    session = open_inference_session(graph, threads=threads)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    loaded = resident_mb()
    for _ in range(RUNS):
        session.run(None, arrays)
    peak = resident_mb("VmHWM")
    click.echo(json.dumps({"loaded_mb": loaded, "peak_mb": peak, "above_session_mb": round(peak - loaded, 1)}))


def measure_memory(graph: Path, inputs: Mapping[str, np.ndarray], threads: int) -> dict[str, float]:
    """Return `loaded_mb`, `peak_mb` and `above_session_mb` of a process that runs `graph`; raises SamkitError."""
    arrays: dict[str, Any] = dict(inputs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.npz"
        np.savez(file, **arrays)
        words = [str(graph), str(file), "--threads", str(threads)]
        _, found = ask_process(__name__, words, f"the memory of {graph.name} was not measured")
    return found


def main() -> None:
    """Run the command."""
    run_command(memory, "memory")


if __name__ == "__main__":
    main()
