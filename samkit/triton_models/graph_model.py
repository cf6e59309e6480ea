"""One graph behind Triton's Python backend: requests are read, merged, run and answered here, whatever runs them.

Requests of two rows and more that arrive together are merged along the batch axis, run once and split; on the CPU the
bits are those of each alone. Requests of one row run alone: ONNX Runtime blocks the products of a single row otherwise,
and the last bits of a lone slice would depend on who else asks. Each request is answered as soon as it is done, so none
waits for those that came with it.

Inputs larger than the config's parameter `largest` says are refused before anything runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from samkit.errors import TensorMismatchError
from samkit.triton_models.model_config import LARGEST
from samkit.triton_models.python_backend import begin, need_tensor, reply

Tensors: TypeAlias = Mapping[str, np.ndarray]
Outcome: TypeAlias = Tensors | Exception
"""What became of a request: the graph's outputs by name, or why there are none."""
Group: TypeAlias = Mapping[int, Tensors]
"""Inputs by the number of their request, which are run at once."""


class GraphModel:
    """One model of the repository: what Triton's Python backend calls. Its kinds say how a graph is opened and run."""

    def open(self, config: Mapping[str, Any], args: Mapping[str, str]) -> None:
        """Load what runs; `args` are Triton's, `config` is the model's own. Raises SamkitError."""
        raise NotImplementedError

    def run(self, feed: Tensors) -> Tensors:
        """Return the graph's outputs by name."""
        raise NotImplementedError

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the model's config and load what runs; `args` are Triton's. Raises as `open` does."""
        config = json.loads(args["model_config"])
        self.name: str = config["name"]
        begin(self.name)
        self._merges: bool = config["max_batch_size"] > 0
        self._inputs: list[str] = [tensor["name"] for tensor in config["input"]]
        self.outputs: list[str] = [tensor["name"] for tensor in config["output"]]
        largest = config.get("parameters", {}).get(LARGEST)
        # A config that samkit did not write may have none
        self._largest: dict[str, list[int]] = {} if largest is None else json.loads(largest["string_value"])
        self.open(config, args)

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
                    f"tensor '{name}' is {list(shape)}, {self.name} takes at most {most}; send less at once"
                )
        return feed

    def _run_merged(self, group: Group) -> dict[int, Outcome]:
        """Return outputs, or the error, of each request of `group`, whose shapes differ in the batch axis alone."""
        if len(group) == 1:
            ((number, feed),) = group.items()
            try:
                return {number: self.run(feed)}
            except Exception as error:  # Triton would answer all requests again, for one
                return {number: error}
        try:
            merged = self.run({name: np.concatenate([feed[name] for feed in group.values()]) for name in self._inputs})
        except Exception:
            # One of them is to blame: alone, each gets its own answer
            return {
                n: outcome for number, feed in group.items() for n, outcome in self._run_merged({number: feed}).items()
            }
        ends = np.cumsum([len(feed[self._inputs[0]]) for feed in group.values()])[:-1]
        parts = {name: np.split(array, ends) for name, array in merged.items()}
        return {number: {name: parts[name][row] for name in self.outputs} for row, number in enumerate(group)}


def _outputs(outcome: Outcome, request: Any) -> Tensors:
    """Return the outputs that a request asks for; raises what its run raised."""
    if isinstance(outcome, Exception):
        raise outcome
    return {name: outcome[name] for name in request.requested_output_names()}
