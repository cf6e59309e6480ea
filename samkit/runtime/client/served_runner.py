"""ServedRunner: one graph of an export on a server, where each graph is a model of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from samkit.errors import ServingError
from samkit.methods import GraphSpec
from samkit.runtime.backends.runner import HostRunner, check_inputs
from samkit.runtime.client import tritonclient_library
from samkit.runtime.client.triton_transport import HTTP, Address
from samkit.tensors import Tensor, on_host


class ServedRunner(HostRunner):
    """A graph of an export, run by the server that serves it."""

    providers = ("triton",)

    def __init__(self, address: Address, graph: GraphSpec) -> None:
        """Run `graph` of what is served at `address`."""
        self.graph = graph
        self._library = tritonclient_library.http() if address.scheme == HTTP else tritonclient_library.grpc()
        self._client = self._library.InferenceServerClient(address.server)
        self._model = f"{address.name}_{graph.name}"

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name; raises TensorMismatchError for inputs that don't fit, ServingError otherwise."""
        check_inputs(self.graph, inputs)
        arrays = {name: np.ascontiguousarray(on_host(tensor)) for name, tensor in inputs.items()}
        try:
            answer = self._client.infer(self._model, tritonclient_library.as_inputs(self._library, arrays))
        except self._library.InferenceServerException as error:
            raise ServingError(f"the server did not run {self._model} ({error}); see its log") from error
        return {spec.name: answer.as_numpy(spec.name) for spec in self.graph.outputs}

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()
