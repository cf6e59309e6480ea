"""BlsRunner: a graph that runs as another model of the same server, called from a Python model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from samkit.methods.method import GraphSpec
from samkit.runtime.backends.runner import HostRunner, check_inputs
from samkit.runtime.backends.tensorrt_runner import fill_points
from samkit.tensors import Tensor, on_host
from samkit.triton_models.model_config import request_rows
from samkit.triton_models.python_backend import call


class BlsRunner(HostRunner):
    """Asks the model `model` to run `graph`. Any thread may call it, and calls run side by side."""

    def __init__(self, model: str, graph: GraphSpec, *, engine: bool = False) -> None:
        """Ask `model` for `graph`; `engine` says that it is a TensorRT engine, which was never run: untested."""
        self.graph = graph
        self._is_engine = engine
        self.providers = (f"triton model {model}",)
        self._model = model
        self._outputs = [spec.name for spec in graph.outputs]
        self._most = request_rows(graph)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name; raises TensorMismatchError, and whatever the model answers with.

        Rows go in chunks that the model takes, and of which two fit into a batch: Triton's batcher joins requests and
        never splits one.
        """
        check_inputs(self.graph, inputs)
        if self._is_engine:
            inputs = fill_points(self.graph, inputs)
        arrays = {name: on_host(tensor) for name, tensor in inputs.items()}
        rows = len(next(iter(arrays.values())))
        if not 0 < self._most < rows:
            return call(self._model, arrays, self._outputs)
        parts = [
            call(self._model, {name: a[start : start + self._most] for name, a in arrays.items()}, self._outputs)
            for start in range(0, rows, self._most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}
