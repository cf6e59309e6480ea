"""ONNX graphs behind Triton, run exactly as samkit runs them in-process.

It stands in for the C++ backend that the embedded server lacks: `backends/onnxruntime/model.py` is this class. The C++
backend merges requests of one row, too, which `graph_model.py` runs alone, and ignores the parameter `largest`. On a
GPU it was never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samkit.errors import ServingError
from samkit.runtime.backends.onnxruntime_runner import open_inference_session
from samkit.triton_models.graph_model import GraphModel, Tensors


class OnnxRuntimeModel(GraphModel):
    """One ONNX file."""

    def open(self, config: Mapping[str, Any], args: Mapping[str, str]) -> None:
        """Load the model's file; raises MissingDependencyError and ManifestError."""
        file = config.get("default_model_filename") or "model.onnx"
        self._session: Any = open_inference_session(
            Path(args["model_repository"]) / args["model_version"] / file,
            device="cuda" if args["model_instance_kind"] == "GPU" else "cpu",
            shares_cores=True,
        )

    def run(self, feed: Tensors) -> Tensors:
        """Return the graph's outputs by name; raises ServingError with ONNX Runtime's reason."""
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(feed)), strict=True))
        except Exception as error:  # ONNX Runtime's own classes share no base below this
            raise ServingError(
                f"ONNX Runtime could not run {self.name} ({str(error).splitlines()[0]}); send tensors of the shapes "
                "that its config.pbtxt lists"
            ) from error

    def finalize(self) -> None:
        """Let go of the model's memory."""
        self._session = None
