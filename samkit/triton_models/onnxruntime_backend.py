"""ONNX graphs behind Triton, run exactly as samkit runs them in-process.

It stands in for the C++ backend that the embedded server lacks: `backends/onnxruntime/model.py` is this class. Requests
that arrive together are merged along the batch axis, run once and split; on the CPU the bits are those of each alone.
On a GPU it was never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samkit.errors import SamkitError, ServingError, TensorMismatchError
from samkit.runtime.onnxruntime_runner import open_inference_session
from samkit.triton_models.python_backend import failure, read_tensor, response


class OnnxRuntimeModel:
    """One model of the repository: what Triton's Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model's file; `args` are Triton's. Raises MissingDependencyError and ManifestError."""
        config = json.loads(args["model_config"])
        self._name: str = config["name"]
        self._merges: bool = config["max_batch_size"] > 0
        self._inputs: list[str] = [tensor["name"] for tensor in config["input"]]
        self._outputs: list[str] = [tensor["name"] for tensor in config["output"]]
        file = config.get("default_model_filename") or "model.onnx"
        self._session: Any = open_inference_session(
            Path(args["model_repository"]) / args["model_version"] / file,
            device="cuda" if args["model_instance_kind"] == "GPU" else "cpu",
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return the answer to each request, in their order: its outputs, or its own error."""
        answers: list[Any] = [None] * len(requests)
        alike: dict[Any, dict[int, dict[str, np.ndarray]]] = {}
        for number, request in enumerate(requests):
            try:
                feed = self._read(request)
            except SamkitError as error:
                answers[number] = failure(error)
                continue
            # Without a batch axis there is nothing to merge along: every request is a group of its own
            key = tuple(array.shape[1:] for array in feed.values()) if self._merges else number
            alike.setdefault(key, {})[number] = feed
        for group in alike.values():
            for number, outcome in self._run_merged(group).items():
                answers[number] = (
                    failure(outcome)
                    if isinstance(outcome, SamkitError)
                    else response({name: outcome[name] for name in requests[number].requested_output_names()})
                )
        return answers

    def finalize(self) -> None:
        """Let go of the model's memory."""
        self._session = None

    def _read(self, request: Any) -> dict[str, np.ndarray]:
        """Return a request's inputs by name; raises TensorMismatchError for one that is missing."""
        found = {name: read_tensor(request, name) for name in self._inputs}
        if missing := [name for name, array in found.items() if array is None]:
            raise TensorMismatchError(
                f"the request to {self._name} lacks '{missing[0]}', and the graph takes {', '.join(self._inputs)}; "
                "send all of them"
            )
        return {name: array for name, array in found.items() if array is not None}

    def _run_merged(
        self, group: Mapping[int, Mapping[str, np.ndarray]]
    ) -> dict[int, dict[str, np.ndarray] | SamkitError]:
        """Return outputs, or the error, of each request of `group`, whose shapes differ in the batch axis alone."""
        if len(group) == 1:
            ((number, feed),) = group.items()
            try:
                return {number: self._run(feed)}
            except SamkitError as error:
                return {number: error}
        try:
            merged = self._run({name: np.concatenate([feed[name] for feed in group.values()]) for name in self._inputs})
        except SamkitError:
            # One of them is to blame: alone, each gets its own answer
            return {
                n: outcome for number, feed in group.items() for n, outcome in self._run_merged({number: feed}).items()
            }
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in group.values()])[:-1]
        parts = {name: np.split(array, ends) for name, array in merged.items()}
        return {number: {name: parts[name][row] for name in self._outputs} for row, number in enumerate(group)}

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the graph's outputs by name; raises ServingError with ONNX Runtime's reason."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(feed)), strict=True))
        except Exception as error:  # ONNX Runtime's own classes share no base below this
            raise ServingError(
                f"ONNX Runtime could not run {self._name} ({str(error).splitlines()[0]}); send tensors of the shapes "
                "that its config.pbtxt lists"
            ) from error
