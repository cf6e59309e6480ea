"""ONNX graphs behind Triton, run exactly as samkit runs them in-process.

It stands in for the C++ backend that the embedded server lacks: `backends/onnxruntime/model.py` is this class. Requests
of two rows and more that arrive together are merged along the batch axis, run once and split; on the CPU the bits are
those of each alone. Requests of one row run alone: ONNX Runtime blocks the products of a single row otherwise, and the
last bits of a lone slice would depend on who else asks. The C++ backend merges those, too. Each request is answered as
soon as it is done, so none waits for those that came with it. On a GPU it was never run.

Inputs larger than the config's parameter `largest` says are refused before anything runs; the C++ backend ignores it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from samkit.errors import ServingError, TensorMismatchError
from samkit.runtime.backends.onnxruntime_runner import open_inference_session
from samkit.triton_models.model_config import LARGEST
from samkit.triton_models.python_backend import begin, need_tensor, reply

Tensors: TypeAlias = Mapping[str, np.ndarray]
Outcome: TypeAlias = Tensors | Exception
"""What became of a request: the graph's outputs by name, or why there are none."""
Group: TypeAlias = Mapping[int, Tensors]
"""Inputs by the number of their request, which are run at once."""


class OnnxRuntimeModel:
    """One model of the repository: what Triton's Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model's file; `args` are Triton's. Raises MissingDependencyError and ManifestError."""
        config = json.loads(args["model_config"])
        self._name: str = config["name"]
        begin(self._name)
        self._merges: bool = config["max_batch_size"] > 0
        self._inputs: list[str] = [tensor["name"] for tensor in config["input"]]
        self._outputs: list[str] = [tensor["name"] for tensor in config["output"]]
        largest = config.get("parameters", {}).get(LARGEST)
        # A config that samkit did not write may have none
        self._largest: dict[str, list[int]] = {} if largest is None else json.loads(largest["string_value"])
        file = config.get("default_model_filename") or "model.onnx"
        self._session: Any = open_inference_session(
            Path(args["model_repository"]) / args["model_version"] / file,
            device="cuda" if args["model_instance_kind"] == "GPU" else "cpu",
            shares_cores=True,
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer every request, each as soon as it is done: with its outputs, or its own error."""
        senders = [request.get_response_sender() for request in requests]

        def send(outcomes: Mapping[int, Outcome]) -> None:
            for number, outcome in outcomes.items():
                reply(partial(_outputs, outcome), requests[number], senders[number])

        alike: dict[Any, dict[int, Tensors]] = {}
        for number, request in enumerate(requests):
            try:
                feed = self._read(request)
            except Exception as error:  # answered like any other
                send({number: error})
                continue
            # Without a batch axis there is nothing to merge along: every request is a group of its own
            can_merge = self._merges and len(feed[self._inputs[0]]) > 1
            key = tuple(array.shape[1:] for array in feed.values()) if can_merge else number
            alike.setdefault(key, {})[number] = feed
        for group in alike.values():
            send(self._run_merged(group))

    def _read(self, request: Any) -> Tensors:
        """Return a request's inputs; raises TensorMismatchError for one that is missing or too large."""
        feed = {name: need_tensor(request, name) for name in self._inputs}
        for name, most in self._largest.items():
            shape = feed[name].shape
            if len(shape) != len(most) or any(side > limit for side, limit in zip(shape, most, strict=True)):
                raise TensorMismatchError(
                    f"tensor '{name}' is {list(shape)}, {self._name} takes at most {most}; send less at once"
                )
        return feed

    def finalize(self) -> None:
        """Let go of the model's memory."""
        self._session = None

    def _run_merged(self, group: Group) -> dict[int, Outcome]:
        """Return outputs, or the error, of each request of `group`, whose shapes differ in the batch axis alone."""
        if len(group) == 1:
            ((number, feed),) = group.items()
            try:
                return {number: self._run(feed)}
            except Exception as error:  # Triton would answer all requests again, for one
                return {number: error}
        try:
            merged = self._run({name: np.concatenate([feed[name] for feed in group.values()]) for name in self._inputs})
        except Exception:
            # One of them is to blame: alone, each gets its own answer
            return {
                n: outcome for number, feed in group.items() for n, outcome in self._run_merged({number: feed}).items()
            }
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in group.values()])[:-1]
        parts = {name: np.split(array, ends) for name, array in merged.items()}
        return {number: {name: parts[name][row] for name in self._outputs} for row, number in enumerate(group)}

    def _run(self, feed: Tensors) -> Tensors:
        """Return the graph's outputs by name; raises ServingError with ONNX Runtime's reason."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(feed)), strict=True))
        except Exception as error:  # ONNX Runtime's own classes share no base below this
            raise ServingError(
                f"ONNX Runtime could not run {self._name} ({str(error).splitlines()[0]}); send tensors of the shapes "
                "that its config.pbtxt lists"
            ) from error


def _outputs(outcome: Outcome, request: Any) -> Tensors:
    """Return the outputs that a request asks for; raises what its run raised."""
    if isinstance(outcome, Exception):
        raise outcome
    return {name: outcome[name] for name in request.requested_output_names()}
