"""What broke: every call of every graph beside PyTorch's at the same place, and every mask; one sentence for the first.

Masks alone would not do. A decoder whose last layer is 1.01 times what it should be draws the same contour at a
threshold of 0, and the next threshold, or the next click, finds it out. So each output of each graph is held to its
GraphSpec's tolerance, on the inputs that a session really gave it, errors built up as they would be in use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from samkit.export.parity import SMALL_MASK, masks_agree, output_error
from samkit.methods import GraphSpec
from samkit.precisions import PRECISIONS, Tolerance
from samkit.runtime.backends.runner import Closing, Runner
from samkit.tensors import Tensor, on_host

MIN_DICE: Mapping[str, float] = {precision.name: precision.min_dice for precision in PRECISIONS}
"""Least Dice against PyTorch float32 where nobody says otherwise: what imaging products promise of a conversion."""
SESSION = "the session"
"""What is to blame where no graph can be told."""
_FLAGS = ("point_labels", "has_mask_input")
"""Inputs that mean something else at half their value."""


@dataclass(frozen=True)
class Limits:
    """How far masks may be from those of PyTorch float32."""

    min_dice: Mapping[str, float] = field(default_factory=lambda: dict(MIN_DICE))
    """Per precision; a mask under SMALL_MASK voxels is judged by the voxels that differ, as every export's parity."""
    max_hd95_mm: float | None = None
    """Largest HD95 [mm]; by default one voxel along its longest edge."""

    def __str__(self) -> str:
        least = ", ".join(f"{value:g} in {precision}" for precision, value in self.min_dice.items())
        farthest = "a voxel's longest edge" if self.max_hd95_mm is None else f"{self.max_hd95_mm:g} mm"
        return (
            f"the gate: a Dice of at least {least} against PyTorch's mask, under {SMALL_MASK} voxels at most "
            f"{Tolerance.max_voxels} flipped voxels in its place; HD95 at most {farthest}"
        )

    def tolerance(self, precision: str, spacing_mm: Sequence[float]) -> Tolerance:
        """Return what a mask of voxels of that size is held to, distances in mm."""
        farthest = max(spacing_mm) if self.max_hd95_mm is None else self.max_hd95_mm
        return Tolerance(0.0, self.min_dice[precision], max_hd95=farthest)


@dataclass(frozen=True)
class Call:
    """One run of one graph."""

    graph: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Break:
    """The first thing that was not as it should be."""

    where: str
    """Case and click."""
    graph: str
    measure: str
    """What was measured, found and needed."""
    call: Call | None = None
    """What the graph was given, where its output is to blame."""
    node: str | None = None
    """The first node whose result is not finite, where one is not."""

    def sentence(self, row: Mapping[str, str]) -> str:
        """Return all of it, of a backend whose row says method, backend, precision and device."""
        node = f"; the first node that is not finite is {self.node}" if self.node else ""
        return (
            f"{row['method']}, {self.graph} on {row['backend']} ({row['precision']}, {row['device']}), {self.where}: "
            f"{self.measure}{node}"
        )


class RecordedRunner(Closing):
    """A runner that shows every run to somebody: inputs and outputs, on the host."""

    def __init__(self, runner: Runner, judge: CallJudge | CallTape) -> None:
        """Run `runner`, which closes with this one; `judge.take` sees each call."""
        self.graph = runner.graph
        self.providers = runner.providers
        self.runner = runner
        self._judge = judge

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return what the runner does."""
        outputs = self.runner.run(inputs)
        self._show(inputs, outputs)
        return outputs

    def run_keeping(self, inputs: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
        """Return what the runner does."""
        outputs = self.runner.run_keeping(inputs, kept)
        self._show(inputs, outputs)
        return outputs

    def _show(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        given, found = ({name: on_host(tensor) for name, tensor in side.items()} for side in (inputs, outputs))
        self._judge.take(Call(self.graph.name, given, found))

    def close(self) -> None:
        """Close the runner."""
        self.runner.close()


class CallTape:
    """The calls of the PyTorch originals since the last step began."""

    def __init__(self, stem: Runner | None = None) -> None:
        """`stem` is PyTorch's `adapter_stem` where the export has one: upstream does its work inside the decoder."""
        self.calls: list[Call] = []
        self.answers: dict[tuple[str, str], Call] = {}
        """What the originals were asked besides, by graph and how, for all backends."""
        self._stem = stem

    def start(self) -> None:
        """Forget the step before."""
        self.calls, self.answers = [], {}

    def take(self, call: Call) -> None:
        """Add a call, and after an image's encoding that of the stem."""
        self.calls.append(call)
        if self._stem is not None and call.graph == "image_encoder":
            given = {"image_embeddings": call.outputs["image_embeddings"]}
            self.calls.append(Call(self._stem.graph.name, given, self._stem.run(given)))

    def first_of(self, graph: GraphSpec) -> Call | None:
        """Return the first call of a graph, or of the one whose work it does."""
        return next((call for call in self.calls if call.graph == graph.official), None)


class CallJudge:
    """Compares the calls of a backend, as they come, with those of the originals at the same places."""

    def __init__(
        self, tape: CallTape, specs: Mapping[str, GraphSpec], precision: str, *, is_watching: bool = True
    ) -> None:
        """Compare with `tape`, which always is one step ahead; calls of a session on a server can't be watched."""
        self._tape, self.specs, self._precision = tape, specs, precision
        self._is_watching = is_watching
        self.errors: dict[str, dict[str, float]] = {}
        """By policy, the largest relative error of each graph's outputs so far."""
        self.seen: set[str] = set()
        """Graphs that were compared at all."""
        self.questioned: set[str] = set()
        """Graphs that were asked what no session asks, too."""
        self.broken: dict[str, Break] = {}
        """By policy, the first call beyond its tolerance."""
        self.parted: str | None = None
        """Where this backend began to run other graphs than the originals, after which calls have no counterpart."""
        self._policy, self._where, self._place, self._is_on = "", "", 0, False

    @property
    def is_apart(self) -> bool:
        """Return whether the session's own calls are not compared, for now or at all."""
        return self.parted is not None or not self._is_watching

    def begin(self, policy: str) -> None:
        """Start on a new scan: what parted comes together."""
        self._policy, self.parted = policy, None

    def start(self, where: str) -> None:
        """Expect the calls that the tape holds now."""
        self._where, self._place, self._is_on = where, 0, True

    def stop(self) -> None:
        """End the step; what runs from here on is not compared. Fewer calls than expected are a parting, too."""
        if self._is_on and not self.is_apart and self._place < len(self._tape.calls):
            self.parted = self._where
        self._is_on = False

    def take(self, call: Call) -> None:
        """Compare one call."""
        if not self._is_on or self.is_apart:
            return
        expected = self._tape.calls[self._place] if self._place < len(self._tape.calls) else None
        self._place += 1
        if expected is None or not _is_same(call, expected, self.specs[call.graph]):
            self.parted = self._where
            return
        self.compare(call, expected, self._where)

    def compare(self, call: Call, expected: Call, where: str, how: str = "") -> None:
        """Add a call's errors; keep the first one that is beyond its graph's tolerance. `how` says what was special."""
        self.seen.add(call.graph)
        errors = self.errors.setdefault(self._policy, {})
        limit = self.specs[call.graph].tolerance[self._precision].relative
        for name, value in call.outputs.items():
            with np.errstate(invalid="ignore", over="ignore"):
                error = output_error(name, value, expected.outputs[name])
            errors[call.graph] = float(np.maximum(errors.get(call.graph, 0.0), error))  # nan stays
            # `not <=`, because nan must fail
            if self._policy not in self.broken and not error <= limit:
                found = (
                    f"{name} has a relative error of {error:.1e} against PyTorch's{how}, needed is at most {limit:.0e}"
                )
                self.broken[self._policy] = Break(where, call.graph, found, call)

    def nearest_to_blame(self) -> str:
        """Return the graph whose error is the largest share of its tolerance: where a mask moved and no call broke."""
        errors = self.errors.get(self._policy, {})
        limits = {name: self.specs[name].tolerance[self._precision].relative for name in errors}
        return max(errors, key=lambda name: errors[name] / limits[name], default=SESSION)


def compare_apart(
    judge: CallJudge, tape: CallTape, originals: Mapping[str, Runner], runners: Mapping[str, Runner], where: str
) -> None:
    """Run graphs on what the `originals` were given, and compare.

    Those are graphs that no session asked for, which clients may use, and all of them where a session's calls have no
    counterpart. Each graph is asked once what sessions seldom ask: two unlike rows, and a decoder with a mask.
    """
    for name, spec in sorted(judge.specs.items()):
        expected = tape.first_of(spec)
        if expected is None or not {tensor.name for tensor in spec.inputs} <= expected.inputs.keys():
            continue
        given = {tensor.name: expected.inputs[tensor.name] for tensor in spec.inputs}
        if judge.is_apart or name not in judge.seen:
            judge.compare(Call(name, given, runners[name].run(given)), expected, where)
        if name in judge.questioned:
            continue
        judge.questioned.add(name)
        for how, question in _questions(spec, given, expected):
            if (name, how) not in tape.answers:
                tape.answers[name, how] = _ask(originals[expected.graph], question, expected)
            judge.compare(Call(name, question, runners[name].run(question)), tape.answers[name, how], where, how)


def _ask(original: Runner, question: Mapping[str, np.ndarray], expected: Call) -> Call:
    """Return what the original makes of a question, whose inputs may be fewer: a fast form leaves some out."""
    rows = max(len(value) for value in question.values())
    left_out = {key: value for key, value in expected.inputs.items() if key not in question}
    more = {key: np.repeat(value, rows, axis=0) if len(value) == 1 else value for key, value in left_out.items()}
    return Call(expected.graph, question, original.run({**more, **question}))


def _questions(
    spec: GraphSpec, given: Mapping[str, np.ndarray], expected: Call
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield what else a graph takes than what it was `given`, and how a sentence calls that."""
    rows = [tensor.name for tensor in spec.inputs if tensor.axes[0].name == "batch" and tensor.axes[0].max > 1]
    if rows and all(len(given[name]) == 1 for name in rows):
        second = {name: given[name] if name in _FLAGS else given[name] * np.float32(0.5) for name in rows}
        yield " for two rows at once", {**given, **{n: np.concatenate([given[n], second[n]]) for n in rows}}
    if "has_mask_input" in given:
        mask = expected.outputs["low_res_masks"][:, :1]
        yield (
            " with a mask prompt",
            {**given, "mask_input": mask, "has_mask_input": np.ones_like(given["has_mask_input"])},
        )


def judge_mask(
    parity: Mapping[str, float], size: int, tolerance: Tolerance, graph: str, where: str, what: str
) -> Break | None:
    """Return what is wrong with a mask, None where nothing is.

    `parity` as `metrics.compare_masks` gives it, `size` is PyTorch's mask [voxels], `what` calls it.
    """
    overlap, differing, distance = parity["dice"], int(parity["flipped_voxels"]), parity["hd95_mm"]
    if masks_agree(differing, overlap, distance, size, tolerance):
        return None
    if size < SMALL_MASK and differing > tolerance.max_voxels:
        found = f"{differing} voxels other than PyTorch's {size}, needed are at most {tolerance.max_voxels}"
    elif size >= SMALL_MASK and not overlap >= tolerance.min_dice:
        found = f"Dice {overlap:.5f} against PyTorch's, needed is at least {tolerance.min_dice:g}"
    else:
        found = f"HD95 {distance:.3g} mm against PyTorch's, needed is at most {tolerance.max_hd95:g} mm"
    return Break(where, graph, f"{what} has {found}")


def _is_same(call: Call, expected: Call, graph: GraphSpec) -> bool:
    """Return whether two calls are of the same place: one graph, or two that do one work, and outputs of one shape."""
    if graph.official != expected.graph:
        return False
    return all(
        name in expected.outputs and value.shape == expected.outputs[name].shape for name, value in call.outputs.items()
    )
