"""One export over every case and policy: the baseline is prompted first, each candidate then gets the same prompts, and
what comes out is compared and noted in outcomes: outputs of graphs by `outputs`, masks here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from samkit.benchmarks.accuracy.candidates import Candidate, Compared, Opened
from samkit.benchmarks.accuracy.detector import Detection
from samkit.benchmarks.accuracy.differing_slices import worst_slice
from samkit.benchmarks.accuracy.outcome import SAME, Deviation, mask_fault
from samkit.benchmarks.accuracy.settings import AccuracySettings
from samkit.benchmarks.record.rows import DETECTOR, ClickFigures, Row
from samkit.errors import GeometryError, InputRefused, SamkitError
from samkit.export.emulation import first_non_finite
from samkit.files import working_folder
from samkit.masks import dice
from samkit.metrics import compare_masks, measure_mask
from samkit.protocols.case import Case
from samkit.protocols.simulated_user import AUTOMATIC, Prompting, SimulatedUser
from samkit.runtime.backends.runner import Runner

log = logging.getLogger(__name__)


def compare(
    compared: Compared, baseline: Opened, candidates: Sequence[Candidate], cases: Iterable[Case]
) -> tuple[list[Row], list[str]]:
    """Return the rows of every policy that met a case, and of detectors; and what a reader of them must know.

    Raises InputRefused where there is nothing to tell.
    """
    method, config, size = compared.export.method, compared.export.config, compared.export.plan.size
    notes: list[str] = []
    detection = None
    if DETECTOR in compared.graphs:
        detection = Detection(baseline, candidates, config.detector.image)  # type: ignore[attr-defined]
    for number, case in enumerate(cases):
        if compared.settings.anonymous:
            case = replace(case, name=f"case {number + 1}")
        log.info("%s: %s", method.name, case.name)
        for policy in compared.policies if case.targets else ():
            try:
                user = SimulatedUser.of(case, policy, method, config, size, number)
                _prompt(compared, baseline, candidates, user)
            except (InputRefused, GeometryError) as error:
                notes.append(f"{case.name} left out ({policy}): {error}")
        if detection is not None:
            baseline.session.set_image(case.image, automatic=False)
            detection.show(case, baseline.session.channels(), number)  # type: ignore[attr-defined]
    detectors = detection.rows() if detection is not None else []
    policies = [policy for policy in compared.policies if baseline.outcomes[policy].steps]
    if not detectors and not policies:
        raise InputRefused(
            "no-case", f"{method.name} could be measured on no case: {' | '.join(notes[:3])}",
            "give other data, or another {policy}", options=("policy",),
        )  # fmt: skip
    for one in candidates:
        _name_node(one, compared)
    pairs = [(one.outcomes, policy) for policy in policies for one in (baseline, *candidates)]
    masks = [outcomes[policy].to_row(baseline.outcomes[policy], compared.settings.clicks) for outcomes, policy in pairs]
    return [*masks, *detectors], notes


def _prompt(compared: Compared, baseline: Opened, candidates: Sequence[Candidate], user: SimulatedUser) -> None:
    """Prompt the baseline, and let every candidate answer the same; then each one on its own errors."""
    settings, recording = compared.settings, compared.recording
    baseline.session.set_image(user.case.image, automatic=False)
    outcome = baseline.outcomes[user.policy]
    runs = [CandidateRun(one, user, settings) for one in candidates]
    reached: list[float] = []
    number = 0
    recording.start()
    try:
        for number, prompting, labels in user.click_on(baseline.session, settings.clicks):
            click = 0 if user.policy == AUTOMATIC else number
            where = f"{user.case.name}, click {click} ({user.policy})" if click else f"{user.case.name}, automatic"
            figures = {
                name: measure_mask(mask, user.targets[name], user.spacing_mm, tolerance_mm=settings.tolerance_mm)
                for name, mask in user.masks(labels).items()
                if name in user.targets
            }
            for name, measured in figures.items():
                outcome.steps[user.called(name)].append(ClickFigures(click, measured, SAME))
            outcome.parities.append(SAME)
            if click:
                reached.append(figures[user.structure]["dice"])
            expected = Expected(click, where, labels, user.region(baseline.session.logits()), figures)
            for run in runs:
                run.answer(prompting, expected, baseline.runners)
            recording.start()
    except InputRefused as error:
        outcome.notes.append(f"{user.case.name}, click {number + 1}: the reader stopped, {error}")
    if reached:
        outcome.own_dice[user.case.name] = reached
    for run in runs:
        run.end(reached)


def _name_node(one: Candidate, compared: Compared) -> None:
    """Say of a candidate's first failure which node is not finite, where one is."""
    outcomes = [one.outcomes[policy] for policy in compared.policies]
    failures = next((outcome.failures for outcome in outcomes if outcome.failures), [])
    if failures and (call := failures[0].call) is not None:
        path = compared.export.path(call.graph, one.variant.precision)
        with working_folder() as work:
            node = first_non_finite(path, compared.graphs[call.graph], call.inputs, work)
        failures[0] = replace(failures[0], node=node)


@dataclass(frozen=True)
class Expected:
    """What PyTorch answered at one click, on the region that is judged."""

    click: int
    """0 where the method segmented by itself."""
    where: str
    """Case, click and policy in words."""
    labels: np.ndarray
    logits: np.ndarray
    figures: Mapping[str, Mapping[str, float]]
    """By name of what is judged, METRICS of the masks that there is a truth for."""


class CandidateRun:
    """One candidate on one case by one policy."""

    def __init__(self, one: Candidate, user: SimulatedUser, settings: AccuracySettings) -> None:
        """Give its session the case."""
        self._one, self._user, self._settings, self._outcome = one, user, settings, one.outcomes[user.policy]
        self._worst: tuple[int, Expected, np.ndarray] | None = None
        """Of the click after which most voxels differ: how many, and what PyTorch and the candidate answered."""
        self._is_live = True
        one.check.begin(self._outcome, user.number)
        try:
            one.session.set_image(user.case.image, automatic=False)
        except SamkitError as error:
            self._give_up(f"{user.case.name}, setting the scan", error)

    @np.errstate(all="ignore")  # nan and infinities of a broken graph; the check has seen them
    def answer(self, prompting: Prompting, expected: Expected, originals: Mapping[str, Runner]) -> None:
        """Answer what PyTorch answered, and note how far off it is."""
        check, where = self._one.check, expected.where
        if self._is_live and prompting.refine and not check.sees_session:
            self._is_live = False
            self._outcome.notes.append(f"{where}: a server takes no mask of its own as a prompt, so it stopped here")
        if not self._is_live:
            return
        try:
            with check.expecting(where):
                labels = self._user.apply(prompting, self._one.session)
            check.compare_apart(originals, self._one.runners, where)
        except SamkitError as error:
            self._give_up(where, error)
            return
        self._compare(labels, expected)
        flipped = int(np.count_nonzero(labels != expected.labels))
        if self._worst is None or flipped >= self._worst[0]:
            self._worst = (flipped, expected, labels)

    def _compare(self, labels: np.ndarray, expected: Expected) -> None:
        user, one, settings, difference = self._user, self._one, self._settings, None
        if one.check.sees_session:
            difference = float(np.abs(user.region(one.session.logits()) - expected.logits).max())
        for (name, ours), theirs in zip(user.masks(labels).items(), user.masks(expected.labels).values(), strict=True):
            figures, parity = expected.figures.get(name), SAME
            if not np.array_equal(ours, theirs):
                parity = compare_masks(ours, theirs, user.spacing_mm)
                tolerance = settings.tolerance(one.variant.precision, user.spacing_mm)
                if (fault := mask_fault(parity, int(theirs.sum()), tolerance)) is not None:
                    measure = f"the mask of {name} has {fault}" if name else f"the mask has {fault}"
                    self._outcome.fail(Deviation(expected.where, one.check.suspect(), measure), user.number)
                if figures is not None:
                    within = settings.tolerance_mm
                    figures = measure_mask(ours, user.targets[name], user.spacing_mm, tolerance_mm=within)
            parities = {**parity, "logit_difference": difference}
            self._outcome.parities.append(parities)
            if figures is not None:
                self._outcome.steps[user.called(name)].append(ClickFigures(expected.click, figures, parities))

    def _give_up(self, where: str, error: SamkitError) -> None:
        """Note that a call failed which PyTorch's did not; a graph that failed before is the reason for it."""
        self._is_live = False
        if self._outcome.broken_call is None:
            measure = f"it failed where PyTorch did not: {error}"
            self._outcome.fail(Deviation(where, self._one.check.suspect(), measure), self._user.number)

    @np.errstate(all="ignore")  # as in `answer`
    def end(self, reached: Sequence[float]) -> None:
        """Click on the candidate's own errors; `reached` is PyTorch's Dice after each click."""
        user, outcome, session = self._user, self._outcome, self._one.session
        if (diverged := self._one.check.diverged) is not None:
            outcome.notes.append(
                f"{diverged}: from here on it runs other graphs than PyTorch, as where a mask ends elsewhere; its "
                "masks are compared as ever, its graphs on what PyTorch's were given"
            )
        if self._worst is None:
            return
        flipped, expected, labels = self._worst
        if self._settings.pictures and not self._settings.anonymous:
            outcome.slices.append(worst_slice(user, expected.click, labels, expected.labels))
        if not self._is_live or not reached:
            return
        # Where every mask was PyTorch's, the reader would click where it clicked
        dice_by_click = outcome.own_dice[user.case.name] = [] if flipped else list(reached)
        if flipped:
            session.reset()
            try:
                for _, _, labels in user.click_on(session, self._settings.clicks):
                    dice_by_click.append(dice(user.masks(labels)[user.structure], user.target))
            except SamkitError as error:
                note = f"{user.case.name}, click {len(dice_by_click) + 1} on its own errors: it stopped, {error}"
                outcome.notes.append(note)
