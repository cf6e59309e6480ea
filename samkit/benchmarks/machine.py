"""What must stand beside every timing: the processor, how busy it is, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from samkit.methods import GraphSpec
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.runner import Closing
from samkit.tensors import Axis, TensorSpec

SIDE = 2048


class MatrixProduct(Closing):
    """One float32 product of two square matrices in ONNX Runtime: what the processor can do at best."""

    GFLOP = 2 * SIDE**3 / 1e9

    def __init__(self, threads: int, device: str = "cpu") -> None:
        """Open the session; raises MissingDependencyError where ONNX Runtime can't use `device`."""
        square = (Axis.fixed("row", SIDE), Axis.fixed("column", SIDE))
        left, right, out = (TensorSpec(name, "float32", square) for name in ("left", "right", "out"))
        values = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in (left, right, out)]
        node = helper.make_node("MatMul", ["left", "right"], ["out"])
        model = helper.make_model(
            helper.make_graph([node], "product", values[:2], values[2:]),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=10,
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "product.onnx"
            onnx.save_model(model, path)
            graph = GraphSpec("product", (left, right), (out,), {})
            self._runner = OnnxRuntimeRunner(path, graph, device=device, threads=threads)
        # Two inputs: a constant would be packed beforehand, and every activation product is not.
        matrix = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
        self._inputs = {"left": matrix, "right": matrix}

    def run(self) -> None:
        """Compute the product once."""
        self._runner.run(self._inputs)

    def close(self) -> None:
        """Let go of the session's memory."""
        self._runner.close()


def processor() -> str:
    """Return name, family and model as `lscpu` has them, or what Python knows elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in text.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines if key.strip()}
    name = re.sub(r"\s+", " ", facts.get("model name", platform.machine()))
    return f"{name}, family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"


def load() -> float:
    """Return how many processes wanted to run over the last minute; whatever is above our threads disturbs."""
    return round(os.getloadavg()[0], 2)
