"""What must stand beside every timing: the processor, and how fast it multiplies matrices."""

from __future__ import annotations

import platform
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from samkit.methods import GraphSpec
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner
from samkit.tensors import Axis, TensorSpec

_SIDE = 2048


def describe_machine(threads: int) -> dict[str, object]:
    """Return processor, threads, and ONNX Runtime's own float32 rate on a 2048^3 product [GFLOP/s, all threads]."""
    return {"processor": _processor(), "threads": threads, "gemm_gflops": round(_gemm_rate(threads), 1)}


def _gemm_rate(threads: int) -> float:
    square = (Axis.fixed("row", _SIDE), Axis.fixed("column", _SIDE))
    left, right, out = (TensorSpec(name, "float32", square) for name in ("left", "right", "out"))
    spec = GraphSpec("gemm", (left, right), (out,), {})
    values = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in (left, right, out)]
    node = helper.make_node("MatMul", ["left", "right"], ["out"])
    model = helper.make_model(
        helper.make_graph([node], "gemm", values[:2], values[2:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    square_values = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gemm.onnx"
        onnx.save_model(model, path)
        with OnnxRuntimeRunner(path, spec, threads=threads) as runner:
            seconds = []
            for _ in range(6):
                start = time.perf_counter()
                runner.run({"left": square_values, "right": square_values})
                seconds.append(time.perf_counter() - start)
    return 2 * _SIDE**3 / float(np.median(seconds[1:])) / 1e9


def _processor() -> str:
    """Return name, family and model as `lscpu` has them, or what Python knows elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in text.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines if key.strip()}
    name = re.sub(r"\s+", " ", facts.get("model name", platform.machine()))
    return f"{name}, family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"
