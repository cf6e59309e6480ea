"""One graph as an engine of TensorRT for RTX behind Triton's Python backend: Triton's own `tensorrt_plan` takes none.

The engine lies beside the model with the export's manifest, and is trusted as anywhere: with the SHA-256, release and
target that the manifest lists. Kernels of earlier runs are those of the server's own user. It was never run: untested.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samkit.engine_libraries import RTX
from samkit.errors import ManifestError
from samkit.manifest import Export
from samkit.runtime.backends import get_backend
from samkit.runtime.backends.tensorrt_runner import TensorRTRunner
from samkit.triton_models.graph_model import GraphModel, Tensors
from samkit.triton_models.model_config import GRAPH, KERNELS, PRECISION
from samkit.triton_models.python_backend import log_error


def open_engine(folder: Path, graph: str, precision: str, kernels: str) -> TensorRTRunner:
    """Return the runner of the engine that lies in a model's folder; raises as TensorRTRunner does."""
    export = Export.open(folder, verify=False)
    (spec,) = (spec for spec in export.specs if spec.name == graph)
    return TensorRTRunner(export, spec, precision, RTX, kernels=kernels)


class RtxModel(GraphModel):
    """One engine."""

    def open(self, config: Mapping[str, Any], args: Mapping[str, str]) -> None:
        """Load the engine; raises MissingDependencyError, and ManifestError where it does not run here."""
        facts = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        for warning in get_backend(RTX.backend).warnings():
            log_error(f"model {self.name}: {warning}")
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            self._runner = open_engine(folder, facts[GRAPH], facts[PRECISION], facts[KERNELS])
        except (KeyError, ValueError) as error:
            raise ManifestError(
                f"model {self.name} has no graph of its manifest; write the repository again"
            ) from error

    def run(self, feed: Tensors) -> Tensors:
        """Return the graph's outputs by name; raises as TensorRTRunner does."""
        return self._runner.run(feed)

    def finalize(self) -> None:
        """Let go of the engine, and keep the kernels that were compiled."""
        self._runner.close()
