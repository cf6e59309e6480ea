"""ONNX graphs on ONNX Runtime, on the CPU or a CUDA device. The only file that imports onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from samkit.errors import ManifestError, MissingDependencyError
from samkit.methods.method import GraphSpec
from samkit.runtime.runner import Closing, check_inputs, still_open

_PROVIDER = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeRunner(Closing):
    """One ONNX file in one inference session."""

    def __init__(self, path: Path, graph: GraphSpec, *, device: str = "cpu", threads: int | None = None) -> None:
        """Load `path`. `threads` is for one operator on the CPU, all cores by default.

        Raises MissingDependencyError where ONNX Runtime, or its CUDA part, is not usable, and ManifestError where
        the file is not `graph`.
        """
        self.graph = graph
        ort = _import_onnxruntime(device)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.inter_op_num_threads = 1
        if threads is not None:
            options.intra_op_num_threads = threads
        provider = _PROVIDER[device]
        wanted: list[Any] = ["CPUExecutionProvider"]
        if device == "cuda":
            if provider not in ort.get_available_providers():
                raise MissingDependencyError(
                    f"this ONNX Runtime has {', '.join(ort.get_available_providers())} and not {provider}; install "
                    "samkit[gpu] instead of samkit[cpu], or use --device cpu"
                )
            ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels, where those are installed
            # TF32 keeps ten bits of the mantissa: float32 graphs would leave their parity.
            wanted.insert(0, (provider, {"use_tf32": "0"}))
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # ONNX Runtime's own classes share no base below this
            raise ManifestError(
                f"ONNX Runtime can't load {path.name} ({str(error).splitlines()[0]}); run sam-export --verify on its "
                "folder, and compare the versions of ONNX Runtime in its manifest and here"
            ) from error
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        # ONNX Runtime falls back to the CPU with a line in its log. A hospital that bought a GPU wants to know.
        if self.providers[0] != provider:
            raise MissingDependencyError(
                f"asked for {provider}, ONNX Runtime loaded {path.name} with {', '.join(self.providers)} only; check "
                "driver, CUDA and cuDNN (onnxruntime-gpu says which it needs), or use --device cpu"
            )
        self._check_names(path)

    def _check_names(self, path: Path) -> None:
        for kind, found, specs in (
            ("inputs", self._session.get_inputs(), self.graph.inputs),
            ("outputs", self._session.get_outputs(), self.graph.outputs),
        ):
            names, wanted = [node.name for node in found], [spec.name for spec in specs]
            if sorted(names) != sorted(wanted):
                raise ManifestError(
                    f"{path.name} has the {kind} {names}, the method's {self.graph.name} has {wanted}; export again "
                    "with this samkit"
                )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name; raises TensorMismatchError for inputs that don't fit, SamkitError once closed."""
        session = still_open(self._session, self.graph)
        check_inputs(self.graph, inputs)
        names = [spec.name for spec in self.graph.outputs]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def close(self) -> None:
        """Let go of the session's memory."""
        self._session = None


def _import_onnxruntime(device: str) -> Any:
    there = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(there) == 2:
        raise MissingDependencyError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files, so neither can be "
            "trusted; run `pip uninstall onnxruntime onnxruntime-gpu`, then install one: samkit[cpu] or samkit[gpu]"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"running ONNX files needs ONNX Runtime; pip install 'samkit[{'gpu' if device == 'cuda' else 'cpu'}]'"
        ) from error
    return onnxruntime


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
