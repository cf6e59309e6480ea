"""Every output of every graph beside PyTorch's on the same inputs.

Masks alone would not do. A decoder whose last layer is 1.01 times what it should be draws the same contour at a
threshold of 0, and the next threshold, or the next click, finds it out. So each output of each graph is held to its
GraphSpec's tolerance, on the inputs that a session really gave it, errors built up as they would be in use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import numpy as np

from samkit.benchmarks.accuracy.gate import SESSION, Deviation, GraphCall
from samkit.export.parity import output_error
from samkit.methods import GraphSpec
from samkit.runtime.backends.runner import Closing, Runner
from samkit.tensors import Tensor, on_host

_FLAGS = ("point_labels", "has_mask_input")
"""Inputs that mean something else at half their value."""


class Observer(Protocol):
    """Somebody who is shown the runs of graphs."""

    def take(self, call: GraphCall) -> None:
        """See one run."""


class ObservedRunner(Closing):
    """A runner that shows every run to an observer: inputs and outputs, on the host."""

    def __init__(self, runner: Runner, observer: Observer) -> None:
        """Run `runner`, which closes with this one."""
        self.graph, self.providers = runner.graph, runner.providers
        self._runner, self._observer = runner, observer

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return what the runner does."""
        outputs = self._runner.run(inputs)
        self._show(inputs, outputs)
        return outputs

    def run_keeping(self, inputs: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
        """Return what the runner does."""
        outputs = self._runner.run_keeping(inputs, kept)
        self._show(inputs, outputs)
        return outputs

    def _show(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        given, found = ({name: on_host(tensor) for name, tensor in side.items()} for side in (inputs, outputs))
        self._observer.take(GraphCall(self.graph.name, given, found))

    def close(self) -> None:
        """Close the runner."""
        self._runner.close()


class Recording:
    """The calls of the PyTorch originals since the last click, which all candidates are compared with."""

    def __init__(self) -> None:
        self.calls: list[GraphCall] = []
        self.unprompted: list[Runner] = []
        """Graphs that upstream computes inside the decoder, and an export right after encoding an image: run then."""
        self.probes: dict[tuple[str, str], GraphCall] = {}
        """What the originals answered to inputs that no session gives, by graph and how."""

    def start(self) -> None:
        """Forget the click before."""
        self.calls, self.probes = [], {}

    def take(self, call: GraphCall) -> None:
        """Add a call, and after it those that only an export makes."""
        self.calls.append(call)
        for runner in self.unprompted:
            names = [tensor.name for tensor in runner.graph.inputs]
            if all(name in call.outputs for name in names):
                given = {name: call.outputs[name] for name in names}
                self.calls.append(GraphCall(runner.graph.name, given, runner.run(given)))

    def first_of(self, graph: GraphSpec) -> GraphCall | None:
        """Return the first call of a graph, or of the official one whose work it does."""
        return next((call for call in self.calls if call.graph == graph.official), None)


class OutputCheck:
    """Compares the calls of a candidate, as they come, with those of the originals at the same places."""

    def __init__(
        self, recording: Recording, graphs: Mapping[str, GraphSpec], precision: str, *, sees_session: bool = True
    ) -> None:
        """Compare with `recording`, which always is one step ahead; of a session on a server no call is seen."""
        self.graphs = graphs
        self._recording, self._precision, self._sees_session = recording, precision, sees_session
        self.errors: dict[str, dict[str, float]] = {}
        """By policy, the largest relative error of each graph's outputs so far."""
        self.failures: dict[str, Deviation] = {}
        """By policy, the first call beyond its tolerance."""
        self.diverged: str | None = None
        """Where this candidate began to run other graphs than the originals, so that its calls have no counterpart."""
        self._seen: set[str] = set()
        self._probed: set[str] = set()
        self._policy, self._where, self._place, self._is_on = "", "", 0, False

    def begin(self, policy: str) -> None:
        """Start on a new scan: what diverged comes together."""
        self._policy, self.diverged = policy, None

    def start(self, where: str) -> None:
        """Expect the calls that the recording holds now."""
        self._where, self._place, self._is_on = where, 0, True

    def stop(self) -> None:
        """End the click; what runs from here on is not compared. Fewer calls than expected diverge, too."""
        if self._is_on and not self._is_apart and self._place < len(self._recording.calls):
            self.diverged = self._where
        self._is_on = False

    @property
    def _is_apart(self) -> bool:
        """Whether the session's own calls are not compared, for now or at all."""
        return self.diverged is not None or not self._sees_session

    def take(self, call: GraphCall) -> None:
        """Compare one call."""
        if not self._is_on or self._is_apart:
            return
        calls = self._recording.calls
        expected = calls[self._place] if self._place < len(calls) else None
        self._place += 1
        if expected is None or not _is_same(call, expected, self.graphs[call.graph]):
            self.diverged = self._where
            return
        self.compare(call, expected, self._where)

    def compare(self, call: GraphCall, expected: GraphCall, where: str, how: str = "") -> None:
        """Add a call's errors; keep the first one that is beyond its graph's tolerance. `how` says what was special."""
        self._seen.add(call.graph)
        errors = self.errors.setdefault(self._policy, {})
        limit = self._limit(call.graph)
        for name, value in call.outputs.items():
            with np.errstate(invalid="ignore", over="ignore"):
                error = output_error(name, value, expected.outputs[name])
            errors[call.graph] = float(np.maximum(errors.get(call.graph, 0.0), error))  # nan stays
            # `not <=`, because nan must fail
            if self._policy not in self.failures and not error <= limit:
                found = (
                    f"{name} has a relative error of {error:.1e} against PyTorch's{how}, needed is at most {limit:.0e}"
                )
                self.failures[self._policy] = Deviation(where, call.graph, found, call)

    def compare_apart(self, originals: Mapping[str, Runner], runners: Mapping[str, Runner], where: str) -> None:
        """Run graphs on what the `originals` were given, and compare.

        Those are graphs that no session asked for, which clients may use, and all of them where a session's calls have
        no counterpart. Each graph gets once what sessions seldom give: two unlike rows, and a decoder a mask.
        """
        for name, graph in sorted(self.graphs.items()):
            expected = self._recording.first_of(graph)
            if expected is None or not {tensor.name for tensor in graph.inputs} <= expected.inputs.keys():
                continue
            given = {tensor.name: expected.inputs[tensor.name] for tensor in graph.inputs}
            if self._is_apart or name not in self._seen:
                self.compare(GraphCall(name, given, runners[name].run(given)), expected, where)
            if name in self._probed:
                continue
            self._probed.add(name)
            probes = self._recording.probes
            for how, probe in _probes(graph, given, expected):
                if (name, how) not in probes:
                    probes[name, how] = _answer(originals[expected.graph], probe, expected)
                self.compare(GraphCall(name, probe, runners[name].run(probe)), probes[name, how], where, how)

    def suspect(self) -> str:
        """Return the graph whose error is the largest share of its tolerance: where a mask moved and no call failed.

        A server's graphs alone are compared, not what led to them, so there it is the session.
        """
        errors = self.errors.get(self._policy, {}) if self._sees_session else {}
        return max(errors, key=lambda name: errors[name] / self._limit(name), default=SESSION)

    def _limit(self, graph: str) -> float:
        return self.graphs[graph].tolerance[self._precision].relative


def _answer(original: Runner, probe: Mapping[str, np.ndarray], expected: GraphCall) -> GraphCall:
    """Return what the original makes of a probe, whose inputs may be fewer: a fast form leaves some out."""
    rows = max(len(value) for value in probe.values())
    left_out = {key: value for key, value in expected.inputs.items() if key not in probe}
    more = {key: np.repeat(value, rows, axis=0) if len(value) == 1 else value for key, value in left_out.items()}
    return GraphCall(expected.graph, probe, original.run({**more, **probe}))


def _probes(
    graph: GraphSpec, given: Mapping[str, np.ndarray], expected: GraphCall
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield what else a graph takes than what it was `given`, and how a sentence calls that."""
    rows = [tensor.name for tensor in graph.inputs if tensor.axes[0].name == "batch" and tensor.axes[0].max > 1]
    if rows and all(len(given[name]) == 1 for name in rows):
        second = {name: given[name] if name in _FLAGS else given[name] * np.float32(0.5) for name in rows}
        yield " for two rows at once", {**given, **{n: np.concatenate([given[n], second[n]]) for n in rows}}
    if "has_mask_input" in given:
        flag, mask = np.ones_like(given["has_mask_input"]), expected.outputs["low_res_masks"][:, :1]
        yield " with a mask prompt", {**given, "mask_input": mask, "has_mask_input": flag}


def _is_same(call: GraphCall, expected: GraphCall, graph: GraphSpec) -> bool:
    """Return whether two calls are of the same place: one graph, or two that do one work, and outputs of one shape."""
    return graph.official == expected.graph and all(
        name in expected.outputs and value.shape == expected.outputs[name].shape for name, value in call.outputs.items()
    )
