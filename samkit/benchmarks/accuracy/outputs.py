"""Every output of every graph beside PyTorch's on the same inputs.

Masks alone would not do. A decoder whose last layer is 1.01 times what it should be draws the same contour at a
threshold of 0, and the next threshold, or the next click, finds it out. So each output of each graph is held to its
GraphSpec's tolerance, on the inputs that a session really gave it, errors built up as they would be in use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from samkit.benchmarks.accuracy.outcome import Deviation, GraphCall, Outcome
from samkit.export.parity import output_error
from samkit.methods import GraphSpec
from samkit.runtime.backends.runner import Closing, Runner
from samkit.tensors import Tensor, on_host

T = TypeVar("T", bound=Tensor)
_FLAGS = ("point_labels", "has_mask_input")
"""Inputs that mean something else at half their value."""


class ObservedRunner(Closing):
    """A runner that shows every run to an observer: inputs and outputs, on the host."""

    def __init__(self, runner: Runner, observe: Callable[[GraphCall], None]) -> None:
        """Run `runner`, which closes with this one."""
        self.graph, self.providers = runner.graph, runner.providers
        self._runner, self._observe = runner, observe

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return self._shown(inputs, self._runner.run(inputs))

    def run_keeping(self, inputs: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
        return self._shown(inputs, self._runner.run_keeping(inputs, kept))

    def _shown(self, inputs: Mapping[str, Tensor], outputs: dict[str, T]) -> dict[str, T]:
        given, found = ({name: on_host(tensor) for name, tensor in side.items()} for side in (inputs, outputs))
        self._observe(GraphCall(self.graph.name, given, found))
        return outputs

    def close(self) -> None:
        self._runner.close()


@dataclass
class Recording:
    """The calls of the PyTorch originals since the last click, which all candidates are compared with."""

    unprompted: list[Runner] = field(default_factory=list)
    """Graphs that upstream computes inside the decoder, and an export right after encoding an image: run then."""
    calls: list[GraphCall] = field(default_factory=list)
    probes: dict[tuple[str, str], GraphCall] = field(default_factory=dict)
    """What the originals answered to inputs that no session gives, by graph and how."""

    def start(self) -> None:
        """Forget the click before."""
        self.calls, self.probes = [], {}

    def take(self, call: GraphCall) -> None:
        """Add a call, and after it those that only an export makes."""
        self.calls.append(call)
        for runner in self.unprompted:
            names = [tensor.name for tensor in runner.graph.inputs]
            if call.outputs.keys() >= set(names):
                given = {name: call.outputs[name] for name in names}
                self.calls.append(GraphCall(runner.graph.name, given, runner.run(given)))


class OutputCheck:
    """Compares the calls of a candidate, as they come, with those of the originals at the same places.

    The largest error of each graph, and the first call beyond its tolerance, go to the outcome that was begun last.
    """

    def __init__(
        self, recording: Recording, graphs: Mapping[str, GraphSpec], precision: str, *, sees_session: bool = True
    ) -> None:
        """Compare with `recording`, which always is one step ahead; of a session on a server no call is seen."""
        self._recording, self._graphs, self.sees_session = recording, graphs, sees_session
        self._limits = {name: graph.tolerance[precision].relative for name, graph in graphs.items()}
        self.diverged: str | None = None
        """Where this candidate began to run other graphs than the originals, so that its calls have no counterpart."""
        self._seen: set[str] = set()
        self._probed: set[str] = set()
        self._left: list[GraphCall] | None = None
        """The originals' calls at this click that are still to come; None while nothing is compared."""

    def begin(self, outcome: Outcome, case: int) -> None:
        """Start on a new scan, the case of that number: what diverged comes together."""
        self._outcome, self._case, self.diverged = outcome, case, None

    @property
    def _is_apart(self) -> bool:
        """Whether the session's own calls are not compared, for now or at all."""
        return self.diverged is not None or not self.sees_session

    @contextmanager
    def expecting(self, where: str) -> Iterator[None]:
        """Compare what runs within with the calls that the recording holds now; fewer than those diverge, too."""
        self._where, self._left = where, None if self._is_apart else list(self._recording.calls)
        try:
            yield
        finally:
            self.diverged = where if self._left else self.diverged
            self._left = None

    def take(self, call: GraphCall) -> None:
        """Compare one call, if it is of the same place: of a graph that does the same work, outputs of one shape."""
        if self._left is None:
            return
        expected = self._left.pop(0) if self._left else GraphCall("none", {}, {})
        ours, theirs = ({name: value.shape for name, value in one.outputs.items()} for one in (call, expected))
        if self._graphs[call.graph].official == expected.graph and ours.items() <= theirs.items():
            self.compare(call, expected, self._where)
        else:
            self.diverged, self._left = self._where, None

    def compare(self, call: GraphCall, expected: GraphCall, where: str, how: str = "") -> None:
        """Note a call's errors, and the first one beyond its graph's tolerance; `how` says what was special."""
        self._seen.add(call.graph)
        errors, limit = self._outcome.relative_error, self._limits[call.graph]
        for name, value in call.outputs.items():
            with np.errstate(invalid="ignore", over="ignore"):
                error = output_error(name, value, expected.outputs[name])
            errors[call.graph] = float(np.maximum(errors.get(call.graph, 0.0), error))  # nan stays
            # `not <=`, because nan must fail
            if not error <= limit and self._outcome.broken_call is None:
                found = f"{name} has a relative error of {error:.1e} against PyTorch's{how}"
                broken = Deviation(where, call.graph, f"{found}, needed is at most {limit:.0e}", call)
                self._outcome.fail(broken, self._case)

    def compare_apart(self, originals: Mapping[str, Runner], runners: Mapping[str, Runner], where: str) -> None:
        """Run graphs on what the `originals` were given, and compare.

        Those are graphs that no session asked for, which clients may use, and all of them where a session's calls have
        no counterpart. Each graph gets once what sessions seldom give: two unlike rows, and a decoder a mask.
        """
        probes = self._recording.probes
        for name, graph in sorted(self._graphs.items()):
            names = [tensor.name for tensor in graph.inputs]
            expected = next((call for call in self._recording.calls if call.graph == graph.official), None)
            if expected is None or not expected.inputs.keys() >= set(names):
                continue
            given = {name: expected.inputs[name] for name in names}
            if self._is_apart or name not in self._seen:
                self.compare(GraphCall(name, given, runners[name].run(given)), expected, where)
            if name in self._probed:
                continue
            self._probed.add(name)
            for how, probe in _probes(graph, given, expected):
                if (name, how) not in probes:
                    # A fast form leaves some of the original's inputs out
                    rows = max(len(value) for value in probe.values())
                    more = {
                        key: np.repeat(value, rows, axis=0) if len(value) == 1 else value
                        for key, value in expected.inputs.items()
                        if key not in probe
                    }
                    probes[name, how] = GraphCall(name, probe, originals[expected.graph].run({**more, **probe}))
                self.compare(GraphCall(name, probe, runners[name].run(probe)), probes[name, how], where, how)

    def suspect(self) -> str:
        """Return the graph whose error is the largest share of its tolerance: where a mask moved and no call failed.

        A server's graphs alone are compared, not what led to them, so there it is the session.
        """
        errors = self._outcome.relative_error if self.sees_session else {}
        return max(errors, key=lambda name: errors[name] / self._limits[name], default="the session")


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
