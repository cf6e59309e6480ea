"""Peak resident memory of runs of one ONNX file, in a process of its own that holds nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samkit.benchmarks.measure.processes import call_alone, resident_mb

RUNS = 2
"""The first run fills ONNX Runtime's arena; the second shows whether it grows on."""


def measure_memory(graph: Path, inputs: Mapping[str, np.ndarray], threads: int) -> dict[str, float]:
    """Return what `run_graph` does, of a process of its own; raises SamkitError."""
    arrays: dict[str, Any] = dict(inputs)
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **arrays)
        file.flush()
        failure = f"the memory of {graph.name} was not measured"
        return call_alone(run_graph, failure, graph=graph, inputs=file.name, threads=threads)[1]


def run_graph(graph: str, inputs: str, threads: int) -> dict[str, float]:
    """Run a file on the arrays of an .npz file; return `loaded_mb`, what this process holds with the session open,
    `peak_mb` while it runs, and the difference, `above_session_mb` [MB, 10^6 bytes].
    """
    from samkit.runtime.backends.onnxruntime_runner import open_inference_session

    with np.load(inputs) as file:
        arrays = {name: file[name] for name in file.files}
    session = open_inference_session(Path(graph), threads=threads)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    loaded = resident_mb()
    for _ in range(RUNS):
        session.run(None, arrays)
    peak = resident_mb("VmHWM")
    return {"loaded_mb": loaded, "peak_mb": peak, "above_session_mb": round(peak - loaded, 1)}
