"""One export: its baseline and its candidates over every case and policy, who answered what, noted in outcomes.

The baseline is prompted first; each candidate then gets the same prompts, and what comes out is compared: outputs of
graphs by `outputs`, masks here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samkit.benchmarks.accuracy.candidates import Baseline, Candidate, identity_of
from samkit.benchmarks.accuracy.detector import Detection, Detector
from samkit.benchmarks.accuracy.differing_slices import worst_slice
from samkit.benchmarks.accuracy.gate import Deviation, check_mask
from samkit.benchmarks.accuracy.outcome import SAME, Outcome
from samkit.benchmarks.accuracy.settings import AccuracySettings
from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.cases.simulated_user import (
    AUTOMATIC,
    Prompting,
    SimulatedUser,
    policies_of,
    recipe_of,
)
from samkit.benchmarks.record.rows import DETECTOR, ClickFigures, Row
from samkit.errors import GeometryError, InputRefused, SamkitError
from samkit.export.emulation import first_non_finite
from samkit.manifest import Export
from samkit.methods import SliceMethod
from samkit.metrics import compare_masks, measure_mask

log = logging.getLogger(__name__)


class Comparison:
    """One export: every case, by every policy, on every backend."""

    def __init__(
        self, export: Export, baseline: Baseline, candidates: Sequence[Candidate], settings: AccuracySettings
    ) -> None:
        """Get ready; `run` does the work."""
        self._export, self._baseline, self._candidates, self._settings = export, baseline, candidates, settings
        method = export.method
        self._recipe = recipe_of(method, export.plan.size)
        self._plane = method.plane if isinstance(method, SliceMethod) else "axial"
        self.notes: list[str] = []
        """What a reader of the rows must know."""
        self._policies = [name for name in policies_of(method, self._recipe) if name in settings.policies]
        self._outcomes = {
            (one.name, policy): Outcome(identity_of(export, one.variant, stage="masks", policy=policy))
            for policy in self._policies
            for one in (baseline, *candidates)
        }
        self._detection = self._detectors() if isinstance(method, SliceMethod) and method.propose else None

    def run(self, cases: Iterable[Case]) -> None:
        """Do everything."""
        for number, case in enumerate(cases):
            if self._settings.anonymous:
                case = replace(case, name=f"case {number + 1}")
            log.info("%s: %s", self._export.method.name, case.name)
            for policy in self._policies if case.targets else ():
                try:
                    method, config = self._export.method, self._export.config
                    self._prompt(SimulatedUser.of(case, policy, method, config, self._recipe, number))
                except (InputRefused, GeometryError) as error:
                    self.notes.append(f"{case.name} left out ({policy}): {error}")
            if self._detection is not None:
                self._baseline.session.set_image(case.image, automatic=False)
                channels = self._baseline.session.channels()  # type: ignore[attr-defined]  # of methods that propose
                self._detection.show(case, channels, self._plane)

    def _prompt(self, user: SimulatedUser) -> None:
        """Prompt the baseline, and let every candidate answer the same; then each one on its own errors."""
        self._baseline.session.set_image(user.case.image, automatic=False)
        outcome = self._outcomes[self._baseline.name, user.policy]
        runs = [
            CandidateRun(one, self._outcomes[one.name, user.policy], user, self._settings) for one in self._candidates
        ]
        for run in runs:
            run.begin()
        reached: list[float] = []
        number, tolerance_mm = 0, self._settings.tolerance_mm
        self._baseline.recording.start()
        try:
            for number, prompting, labels in user.click_on(self._baseline.session, self._settings.clicks):
                click = 0 if user.policy == AUTOMATIC else number
                where = f"{user.case.name}, click {click} ({user.policy})" if click else f"{user.case.name}, automatic"
                masks, logits = user.masks(labels), user.region(self._baseline.session.logits())
                figures = {
                    name: measure_mask(mask, user.targets[name], user.spacing_mm, tolerance_mm=tolerance_mm)
                    for name, mask in masks.items()
                    if name in user.targets
                }
                for name, measured in figures.items():
                    outcome.add(user.called(name), ClickFigures(click, measured, SAME))
                if click:
                    reached.append(figures[user.structure]["dice"])
                expected = Expected(click, where, labels, masks, figures, logits)
                for run in runs:
                    run.answer(prompting, expected, self._baseline)
                self._baseline.recording.start()
        except InputRefused as error:
            outcome.notes.append(f"{user.case.name}, click {number + 1}: the reader stopped, {error}")
        if reached:
            outcome.own_dice[user.case.name] = reached
        for run in runs:
            run.end(reached, self._plane)

    def _detectors(self) -> Detection:
        def detector(one: Baseline | Candidate) -> Detector:
            identity = identity_of(self._export, one.variant, graph=DETECTOR)
            return Detector(identity, one.runners[DETECTOR], one.check if isinstance(one, Candidate) else None)

        side = self._export.config.detector.image  # type: ignore[attr-defined]  # of methods that propose
        return Detection(detector(self._baseline), [detector(one) for one in self._candidates], side)

    def rows(self) -> list[Row]:
        """Return all rows, of policies that met a case; raises InputRefused where there is nothing to tell."""
        detectors = self._detection.rows() if self._detection is not None else []
        if not detectors and not any(self._outcomes[self._baseline.name, policy].steps for policy in self._policies):
            raise InputRefused(
                "no-case", f"{self._export.method.name} could be measured on no case: {' | '.join(self.notes[:3])}",
                "give other data, or another {policy}", options=("policy",),
            )  # fmt: skip
        self._name_nodes()
        rows: list[Row] = []
        for policy in self._policies:
            baseline, *others = (self._outcomes[one.name, policy] for one in (self._baseline, *self._candidates))
            if baseline.steps:
                rows += [outcome.to_row(baseline, self._settings.clicks) for outcome in (baseline, *others)]
        return rows + list(detectors)

    def _name_nodes(self) -> None:
        """Say of the first failure of each candidate which node is not finite, where one is."""
        graphs = {graph.name: graph for graph in self._export.specs}
        for one in self._candidates:
            outcomes = [self._outcomes[one.name, policy] for policy in self._policies]
            failures = next((outcome.failures for outcome in outcomes if outcome.failures), None)
            if failures is None or (call := failures[0].call) is None:
                continue
            path = self._export.path(call.graph, one.variant.precision)
            with tempfile.TemporaryDirectory() as work:
                node = first_non_finite(path, graphs[call.graph], call.inputs, Path(work))
            failures[0] = replace(failures[0], node=node)


@dataclass(frozen=True)
class Expected:
    """What PyTorch answered at one click, on the region that is judged."""

    click: int
    """0 where the method segmented by itself."""
    where: str
    """Case, click and policy in words."""
    labels: np.ndarray
    masks: Mapping[str, np.ndarray]
    """By name of what is judged."""
    figures: Mapping[str, Mapping[str, float]]
    """METRICS of those masks that there is a truth for."""
    logits: np.ndarray | None = None


class CandidateRun:
    """One candidate on one case by one policy."""

    def __init__(self, one: Candidate, outcome: Outcome, user: SimulatedUser, settings: AccuracySettings) -> None:
        self._one, self._outcome, self._user, self._settings = one, outcome, user, settings
        self._is_live, self._differs = True, False
        self._worst: tuple[int, Expected, np.ndarray] | None = None

    def begin(self) -> None:
        """Give the session the case."""
        self._one.check.begin(self._user.policy)
        try:
            self._one.session.set_image(self._user.case.image, automatic=False)
        except SamkitError as error:
            self._give_up(f"{self._user.case.name}, setting the scan", error)

    def answer(self, prompting: Prompting, expected: Expected, baseline: Baseline) -> None:
        """Answer what PyTorch answered, and note how far off it is."""
        if not self._is_live:
            return
        check, where = self._one.check, expected.where
        if self._one.is_served and prompting.refine:
            self._is_live = False
            self._outcome.notes.append(f"{where}: a server takes no mask of its own as a prompt, so it stopped here")
            return
        check.start(where)
        try:
            with np.errstate(all="ignore"):  # nan and infinities of a broken graph; the check has seen them
                try:
                    labels = self._user.apply(prompting, self._one.session)
                finally:
                    check.stop()
                check.compare_apart(baseline.runners, self._one.runners, where)
        except SamkitError as error:
            self._give_up(where, error)
            return
        self._note_outputs()
        self._compare(labels, expected)

    def _compare(self, labels: np.ndarray, expected: Expected) -> None:
        user, settings, difference = self._user, self._settings, self._logit_difference(expected)
        for name, ours in user.masks(labels).items():
            theirs = expected.masks[name]
            is_same = np.array_equal(ours, theirs)
            figures = SAME if is_same else compare_masks(ours, theirs, user.spacing_mm)
            parity: Mapping[str, float | None] = {**figures, "logit_difference": difference}
            self._outcome.parities.append(parity)
            if not is_same:
                tolerance = settings.limits.tolerance(self._one.variant.precision, user.spacing_mm)
                what, suspect = f"the mask of {name}" if name else "the mask", self._one.check.suspect()
                self._fail(check_mask(figures, int(theirs.sum()), tolerance, suspect, expected.where, what))
            if (measured := expected.figures.get(name)) is not None:
                if not is_same:
                    target, within = user.targets[name], settings.tolerance_mm
                    measured = measure_mask(ours, target, user.spacing_mm, tolerance_mm=within)
                self._outcome.add(user.called(name), ClickFigures(expected.click, measured, parity))
        flipped = int(np.count_nonzero(labels != expected.labels))
        self._differs |= flipped > 0
        if self._worst is None or flipped >= self._worst[0]:
            self._worst = (flipped, expected, labels)

    def _logit_difference(self, expected: Expected) -> float | None:
        """Return the largest difference of logits, where this session has any."""
        if expected.logits is None or self._one.is_served:
            return None
        with np.errstate(all="ignore"):
            return float(np.abs(self._user.region(self._one.session.logits()) - expected.logits).max())

    def _give_up(self, where: str, error: SamkitError) -> None:
        """Note that a call failed which PyTorch's did not; a graph that failed before is the reason for it."""
        self._is_live = False
        self._note_outputs()
        if not any(found.call is not None for found in self._outcome.failures):
            self._fail(Deviation(where, self._one.check.suspect(), f"it failed where PyTorch did not: {error}"))

    def _note_outputs(self) -> None:
        check, policy = self._one.check, self._user.policy
        self._outcome.relative_error = check.errors.get(policy, {})
        self._fail(check.failures.get(policy))

    def _fail(self, found: Deviation | None) -> None:
        if found is not None:
            self._outcome.fail(found, self._user.number)

    def end(self, reached: Sequence[float], plane: str) -> None:
        """Click on the candidate's own errors; `reached` is PyTorch's Dice after each click."""
        case = self._user.case.name
        if (diverged := self._one.check.diverged) is not None:
            self._outcome.notes.append(
                f"{diverged}: from here on it runs other graphs than PyTorch, as where a mask ends elsewhere; its "
                "masks are compared as ever, its graphs on what PyTorch's were given"
            )
        if self._worst is not None and self._settings.pictures and not self._settings.anonymous:
            _, expected, labels = self._worst
            self._outcome.slices.append(worst_slice(self._user, plane, expected.click, labels, expected.labels))
        if self._is_live and reached:
            # Where every mask was PyTorch's, the reader would click where it clicked
            self._outcome.own_dice[case] = self._own_dice() if self._differs else list(reached)

    def _own_dice(self) -> list[float]:
        user, found = self._user, list[float]()
        self._one.session.reset()
        try:
            with np.errstate(all="ignore"):
                for _, _, labels in user.click_on(self._one.session, self._settings.clicks):
                    found.append(user.dice(labels))
        except SamkitError as error:
            note = f"{user.case.name}, click {len(found) + 1} on its own errors: it stopped, {error}"
            self._outcome.notes.append(note)
        return found
