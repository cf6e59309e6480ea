"""Last step of the ensemble: the mask on the scan's own array. Triton runs this file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import samkit.triton_models.python_backend as backend
from samkit.runtime.protocol import wire
from samkit.triton_models.pipeline import postprocess
from samkit.triton_models.served import Served


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read what is served here."""
        self.served = Served.from_triton(args)
        backend.begin(args["model_name"], self.served.name)
        self.result = wire.LABELS if self.served.is_slices else wire.LOGITS

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request."""
        return [backend.answer(self.run, request) for request in requests]

    def run(self, request: Any) -> dict[str, np.ndarray]:
        """Return the output tensors of one request."""
        found = backend.need_json(request, wire.FOUND)
        mask, report = postprocess(self.served, found, backend.need_tensor(request, self.result))
        return {wire.MASK: mask, wire.REPORT: wire.encode(report.to_json())}
