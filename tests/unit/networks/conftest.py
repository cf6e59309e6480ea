"""Fixtures of the networks' tests: weights that hide nothing, and a graph as the exporter writes it."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch

from samkit.export.graphs import write_graph
from samkit.methods import GraphSpec
from samkit.tensors import Axis, TensorSpec


@pytest.fixture(autouse=True)
def seeded():
    """Networks start from the same numbers whatever ran before, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def noisy():
    """Return a function that adds noise to every weight and statistic, in float64, ready for evaluation.

    What starts at zero or one would hide what it does; float64 keeps equalities out of rounding's shadow.
    """

    def add(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 4) ** 0.5)
            for name, buffer in module.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.add_(torch.rand(buffer.shape, generator=generator))
        return module.eval().double()

    return add


@pytest.fixture
def exported(tmp_path):
    """Return a function that exports one graph of a network, from one tensor to one, and opens it.

    It takes an example (B, ...) and returns a function of arrays, and the operators. The exporter itself refuses
    forbidden ones.
    """

    def export(network, name, example):
        example_output = network.run_graph(name, example)[0]
        tensors = (("x", example.shape), ("y", example_output.shape))
        x, y = (
            TensorSpec(
                label, "float32", (Axis("batch", 1, 1, 8), *(Axis.fixed(str(i), n) for i, n in enumerate(shape[1:])))
            )
            for label, shape in tensors
        )
        path = tmp_path / f"{name}.onnx"
        write_graph(network, GraphSpec(name, (x,), (y,), {}), path, opset=20, folded=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        operators = {node.op_type for node in onnx.load(path).graph.node}
        return lambda array: session.run(None, {"x": array})[0], operators

    return export
