"""First step of the ensemble: a raw scan and prompts to what the networks see. Triton runs this file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import samkit.triton_models.python_backend as backend
from samkit.runtime.protocol import wire
from samkit.triton_models.pipeline import preprocess
from samkit.triton_models.served import Served


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read what is served here."""
        self.served = Served.from_triton(args)
        backend.begin(args["model_name"], self.served.name)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request."""
        return [backend.answer(self.run, request) for request in requests]

    def run(self, request: Any) -> dict[str, np.ndarray]:
        """Return the output tensors of one request."""
        backend.check_open()
        tensors = {name: backend.read_tensor(request, name) for name in (*wire.VOLUMES, wire.AFFINE)}
        prompts = backend.read_json(request, wire.PROMPTS, default=[])
        options = backend.read_json(request, wire.OPTIONS, default={})
        prepared, task = preprocess(self.served, tensors, prompts, options)
        return {wire.PREPARED: prepared, wire.TASK: wire.encode(task)}
