"""Second step of the ensemble: detector, encoder and decoder, click by click. Triton runs this file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import samkit.triton_models.python_backend as backend
from samkit.runtime.protocol import wire
from samkit.triton_models.pipeline import refine
from samkit.triton_models.served import Served


class TritonPythonModel:
    """What Triton calls. Requests are worked on side by side, so that the encoder's batcher can join their slices."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read what is served here."""
        backend.keep_heap()
        self.served = Served.from_triton(args)
        backend.begin(args["model_name"], self.served.name)
        self.runners = self.served.runners()
        self.result = wire.LABELS if self.served.is_slices else wire.LOGITS
        self.threads = backend.Threads(self.served.limits.threads)

    def execute(self, requests: list[Any]) -> None:
        """Hand every request to a thread, which answers it."""
        for request in requests:
            self.threads.answer(self.run, request)

    def run(self, request: Any) -> dict[str, np.ndarray]:
        """Return the output tensors of one request."""
        prepared = backend.need_tensor(request, wire.PREPARED)
        wire.check_size(prepared.shape, self.served.limits.max_voxels)  # it need not come from preprocess
        found, result = refine(self.served, self.runners, prepared, backend.need_json(request, wire.TASK))
        return {wire.FOUND: wire.encode(found), self.result: result}

    def finalize(self) -> None:
        """Let the requests at work end."""
        self.threads.close()
