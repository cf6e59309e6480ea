"""Fixtures of the networks' tests: weights that hide nothing, and a graph as the exporter writes it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import pytest
import torch


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


@pytest.fixture(scope="session")
def write_onnx():
    """Return a function that exports one graph of a network, batch dynamic, and returns the ONNX model."""

    class Graph(torch.nn.Module):
        def __init__(self, network, name):
            super().__init__()
            self.network, self.name = network, name

        def forward(self, x):
            return self.network.run_graph(self.name, x)

    def write(network, name, example):
        logger = logging.getLogger("torch.onnx")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    Graph(network, name).eval(),
                    (example,),
                    dynamo=True,
                    input_names=["x"],
                    output_names=["y"],
                    dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},),
                    opset_version=20,
                    verbose=False,
                )
        finally:
            logger.setLevel(level)
        return program.model_proto

    return write
