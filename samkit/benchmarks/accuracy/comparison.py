"""One export, its PyTorch originals and its backends, over every subject and policy: who answered what, noted in books.

The originals are clicked on first; each backend then gets the same question, and what comes out is compared: calls by
`gate`, masks here. What the notes become is in `accuracy_rows`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from samkit.benchmarks.accuracy.candidates import TORCH, Absent, Contender, Reference
from samkit.benchmarks.accuracy.detector import DETECTOR, DetectorBook, DetectorTrial
from samkit.benchmarks.accuracy.differing_slices import worst_slice
from samkit.benchmarks.accuracy.gate import SESSION, Break, Limits, compare_apart, judge_mask
from samkit.benchmarks.accuracy.rows import SAME, Book
from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.cases.simulated_user import (
    AUTOMATIC,
    Question,
    Task,
    answer,
    ask,
    make_task,
    policies_of,
    questions_at_most,
    recipe_of,
    set_scan,
)
from samkit.benchmarks.record.metrics import compare_masks, measure_mask
from samkit.benchmarks.record.run import Row
from samkit.errors import GeometryError, InputRefused, SamkitError
from samkit.export.emulation import first_non_finite
from samkit.manifest import Export, Manifest
from samkit.masks import dice
from samkit.methods import Method, SliceMethod
from samkit.runtime.backends import is_emulated

Say: TypeAlias = Callable[[str], object]


@dataclass(frozen=True)
class Settings:
    """What is the same for all exports of a run."""

    clicks: int
    limits: Limits
    tolerance_mm: float
    policies: tuple[str, ...]
    pictures: bool
    anonymous: bool

    def case(self, case: Case, number: int) -> str:
        """Return what a report calls a case."""
        return f"case {number + 1}" if self.anonymous else case.name


class Trial:
    """One export: every subject, by every policy, on every backend."""

    def __init__(
        self, folder: Path, manifest: Manifest, reference: Reference, opened: Sequence[Contender | Absent],
        settings: Settings, say: Say,
    ) -> None:  # fmt: skip
        self._folder, self._manifest, self._reference, self._settings, self._say = (
            folder, manifest, reference, settings, say,
        )  # fmt: skip
        self._method: Method
        self._config: Any
        export = Export.of(folder, manifest)
        self._method, self._config = export.method, export.config
        self._contenders = [one for one in opened if isinstance(one, Contender)]
        self._sessions: list[Reference | Contender] = [reference, *self._contenders]
        self._absent = [one for one in opened if isinstance(one, Absent)]
        self.notes: list[str] = []
        """What a reader of the rows must know."""
        recipe = recipe_of(self._method, manifest.plan.size)
        self._policies = [name for name in policies_of(self._method, recipe) if name in settings.policies]
        self._books = {
            (one.name, policy): Book(identity_of(manifest, one), policy)
            for policy in self._policies
            for one in self._sessions
        }
        self._detectors = self._detector_trial()

    def run(self, cases: Iterable[Case]) -> None:
        """Do everything."""
        for number, one in enumerate(cases):
            case = self._settings.case(one, number)
            self._say(f"{self._method.name}: {case}")
            for policy in self._policies if one.targets else ():
                try:
                    self._run_task(self._task(number, one, policy), case)
                except (InputRefused, GeometryError) as error:
                    self.notes.append(f"{case} left out ({policy}): {error}")
            if self._detectors is not None:
                self._detect(replace(one, name=case))

    def _task(self, number: int, case: Case, policy: str) -> Task:
        return make_task(number, case, policy, self._method, self._config, self._manifest.plan.size)

    # --- One subject by one policy ---

    def _run_task(self, task: Task, case: str) -> None:
        """Click on PyTorch's session, and let every backend answer the same; then each one on its own errors."""
        set_scan(self._reference.session, task.case)
        runs = [Rival(one, self._books[one.name, task.policy], task, case, self._settings) for one in self._contenders]
        for rival in runs:
            rival.begin()
        book = self._books[TORCH, task.policy]
        labels = _nothing(task)
        reached: list[float] = []
        for number in range(1, questions_at_most(task, self._settings.clicks) + 1):
            question = ask(task, number, _prompted(task, labels))
            if question is None:
                break
            self._reference.tape.start()
            try:
                labels = answer(self._reference.session, task, question)
            except InputRefused as error:
                book.notes.append(f"{case}, click {number}: the reader stopped, {error}")
                break
            shot = Shot(task, case, 0 if task.policy == AUTOMATIC else number, labels, self._settings.tolerance_mm)
            shot.logits = task.region(self._reference.session.logits())
            for unit, figures in shot.figures.items():
                book.add(unit, shot.click, figures, SAME)
            reached += [shot.dice] if task.policy != AUTOMATIC else []
            for rival in runs:
                rival.answer(question, shot, self._reference)
        if reached:
            book.own_dice[case] = reached
        for rival in runs:
            rival.end(reached, self._plane)

    @property
    def _plane(self) -> str:
        return self._method.plane if isinstance(self._method, SliceMethod) else "axial"

    # --- Detectors ---

    def _detector_trial(self) -> DetectorTrial | None:
        if not isinstance(self._method, SliceMethod) or self._method.propose is None:
            return None
        self._boxed = {one.name: DetectorBook(identity_of(self._manifest, one)) for one in self._contenders}
        identity, side = identity_of(self._manifest, self._reference), self._config.detector.image
        return DetectorTrial(self._reference.runners[DETECTOR], side, identity)

    def _detect(self, case: Case) -> None:
        if self._detectors is None:
            return
        set_scan(self._reference.session, case)
        rivals = []
        for one in self._contenders:
            one.judge.begin(DETECTOR)
            rivals.append((one.runners[DETECTOR], one.judge, self._boxed[one.name]))
        self._detectors.show(case, self._reference.session.channels(), self._plane, rivals)

    # --- Rows ---

    def rows(self) -> list[Row]:
        """Return all rows, of policies that met a case; raises InputRefused where there is nothing to tell."""
        boxed = self._detectors is not None and self._detectors.wanted
        if not boxed and not any(book.units for book in self._books.values()):
            raise InputRefused(
                "no-case", f"{self._method.name} could be measured on no case: {' | '.join(self.notes[:3])}",
                "give other data, or another --policy",
            )  # fmt: skip
        self._name_nodes()
        rows = []
        for (_, policy), book in self._books.items():
            reference = self._books[TORCH, policy]
            if reference.units:
                rows.append(book.to_row(reference, self._settings.clicks))
        if self._detectors is not None and boxed:
            rows += self._detector_rows(self._detectors)
        for one in self._absent:
            key = "error" if one.is_failure else "not_run"
            rows.append({"kind": "accuracy", **identity_of(self._manifest, one), "stage": "masks", key: one.reason})
        return rows

    def _detector_rows(self, trial: DetectorTrial) -> Iterator[Row]:
        yield trial.reference.to_row(trial.wanted, 0.0, (), is_reference=True)
        for one in self._contenders:
            book, found = self._boxed[one.name], one.judge.broken.get(DETECTOR)
            failures = [] if found is None else [found.sentence(book.identity)]
            error = one.judge.errors.get(DETECTOR, {}).get(DETECTOR, 0.0)
            yield book.to_row(trial.wanted, error, failures, is_reference=False)

    def _name_nodes(self) -> None:
        """Say of the first break of each backend which node is not finite, where one is."""
        for one in self._contenders:
            books = [self._books[one.name, policy] for policy in self._policies]
            book = next((book for book in books if book.breaks), None)
            if book is None or (call := book.breaks[0].call) is None:
                continue
            path = self._manifest.path(self._folder, call.graph, one.kind.precision)
            spec = next(spec for spec in self._manifest.plan.specs if spec.name == call.graph)
            with tempfile.TemporaryDirectory() as work:
                node = first_non_finite(path, spec, call.inputs, Path(work))
            book.breaks[0] = replace(book.breaks[0], node=node)


class Shot:
    """What PyTorch answered at one click."""

    def __init__(self, task: Task, case: str, click: int, labels: np.ndarray, tolerance_mm: float) -> None:
        self.task, self.case, self.click, self.labels = task, case, click, labels
        self._tolerance_mm = tolerance_mm
        self.logits: np.ndarray | None = None
        self.masks = {name: task.mask(labels, name) for name in task.labels}
        self.figures = {
            task.called(name, case): self.measure(self.masks[name], name)
            for name in task.labels
            if name in task.targets
        }

    @property
    def where(self) -> str:
        """Return case, click and policy in words."""
        return f"{self.case}, click {self.click} ({self.task.policy})" if self.click else f"{self.case}, automatic"

    @property
    def dice(self) -> float:
        """Return the Dice of what is clicked on."""
        return self.figures[self.task.called(self.task.structure, self.case)]["dice"]

    def measure(self, mask: np.ndarray, name: str) -> dict[str, float]:
        """Return the METRICS of a mask of one of the task's labels."""
        return measure_mask(mask, self.task.targets[name], self.task.spacing_mm, tolerance_mm=self._tolerance_mm)


class Rival:
    """One backend on one task."""

    def __init__(self, one: Contender, book: Book, task: Task, case: str, settings: Settings) -> None:
        self._one, self._book, self._task, self._case, self._settings = one, book, task, case, settings
        self._is_live, self._differs = True, False
        self._worst: tuple[int, Shot, np.ndarray] | None = None

    def begin(self) -> None:
        """Give the session the scan."""
        self._one.judge.begin(self._task.policy)
        try:
            set_scan(self._one.session, self._task.case)
        except SamkitError as error:
            self._give_up(f"{self._case}, setting the scan", error)

    def answer(self, question: Question, shot: Shot, reference: Reference) -> None:
        """Answer what PyTorch answered, and note how far off it is."""
        if not self._is_live:
            return
        judge = self._one.judge
        if self._one.is_served and question.refine:
            self._is_live = False
            self._book.notes.append(f"{shot.where}: a server takes no mask of its own as a prompt, so it stopped here")
            return
        judge.start(shot.where)
        try:
            with np.errstate(all="ignore"):  # nan and infinities of a broken graph; the judge has seen them
                try:
                    labels = answer(self._one.session, self._task, question)
                finally:
                    judge.stop()
                compare_apart(judge, reference.tape, reference.runners, self._one.runners, shot.where)
        except SamkitError as error:
            self._give_up(shot.where, error)
            return
        self._note_calls()
        self._compare(labels, shot)

    def _compare(self, labels: np.ndarray, shot: Shot) -> None:
        difference = self._logit_difference(shot)
        for name, theirs in shot.masks.items():
            mine = self._task.mask(labels, name)
            is_same = np.array_equal(mine, theirs)
            figures = SAME if is_same else compare_masks(mine, theirs, self._task.spacing_mm)
            parity = {**figures, "logit_difference": difference}
            self._book.parities.append(parity)
            if not is_same:
                self._judge(figures, int(theirs.sum()), name, shot)
            unit = self._task.called(name, self._case)
            if unit in shot.figures:
                self._book.add(unit, shot.click, shot.figures[unit] if is_same else shot.measure(mine, name), parity)
        flipped = int(np.count_nonzero(labels != shot.labels))
        self._differs |= flipped > 0
        if self._worst is None or flipped >= self._worst[0]:
            self._worst = (flipped, shot, labels)

    def _judge(self, parity: Mapping[str, float], size: int, name: str, shot: Shot) -> None:
        """Hold a mask to the limits."""
        tolerance = self._settings.limits.tolerance(self._one.kind.precision, self._task.spacing_mm)
        found = judge_mask(
            parity, size, tolerance, self._to_blame, shot.where, f"the mask of {name}" if name else "the mask"
        )
        if found is not None:
            self._book.fail(found, self._task.number)

    def _logit_difference(self, shot: Shot) -> float | None:
        """Return the largest difference of logits, where this session has any."""
        if shot.logits is None or not hasattr(self._one.session, "logits"):
            return None
        with np.errstate(all="ignore"):
            logits = self._task.region(self._one.session.logits())
            return float(np.abs(logits - shot.logits).max())

    def _give_up(self, where: str, error: SamkitError) -> None:
        """Note that a call failed which PyTorch's did not; a graph that broke before is the reason for it."""
        self._is_live = False
        self._note_calls()
        if not any(found.call is not None for found in self._book.breaks):
            self._book.fail(
                Break(where, self._to_blame, f"it failed where PyTorch did not: {error}"), self._task.number
            )

    @property
    def _to_blame(self) -> str:
        """Return the graph that may have moved a mask; a server's graphs alone are compared, not what led to them."""
        return SESSION if self._one.is_served else self._one.judge.nearest_to_blame()

    def _note_calls(self) -> None:
        judge = self._one.judge
        self._book.relative_error = judge.errors.get(self._task.policy, {})
        if (found := judge.broken.get(self._task.policy)) is not None:
            self._book.fail(found, self._task.number)

    def end(self, reached: Sequence[float], plane: str) -> None:
        """Click on the backend's own errors; `reached` is PyTorch's Dice after each click."""
        if (parted := self._one.judge.parted) is not None:
            self._book.notes.append(
                f"{parted}: from here on it runs other graphs than PyTorch, as where a mask ends elsewhere; its masks "
                "are compared as ever, its graphs on what PyTorch's were given"
            )
        if self._worst is not None and self._settings.pictures:
            _, shot, labels = self._worst
            self._book.slices.append(worst_slice(self._task, plane, self._case, shot.click, labels, shot.labels))
        if self._is_live and reached:
            # Where every mask was PyTorch's, the reader would click where it clicked
            self._book.own_dice[self._case] = self._own_dice() if self._differs else list(reached)

    def _own_dice(self) -> list[float]:
        session, found, labels = self._one.session, list[float](), _nothing(self._task)
        session.reset()
        for number in range(1, questions_at_most(self._task, self._settings.clicks) + 1):
            question = ask(self._task, number, _prompted(self._task, labels))
            if question is None:
                break
            try:
                with np.errstate(all="ignore"):
                    labels = answer(session, self._task, question)
            except SamkitError as error:
                self._book.notes.append(f"{self._case}, click {number} on its own errors: it stopped, {error}")
                break
            found.append(dice(_prompted(self._task, labels), self._task.target))
        return found


def _nothing(task: Task) -> np.ndarray:
    """Return the label map before the first click."""
    return np.zeros(next(iter(task.targets.values())).shape, np.uint8)


def _prompted(task: Task, labels: np.ndarray) -> np.ndarray:
    """Return the mask of what is clicked on."""
    return task.mask(labels, task.structure)


def identity_of(manifest: Manifest, one: Reference | Contender | Absent) -> Row:
    """Return what a row says of the export and of what ran it."""
    plan = manifest.plan
    row: Row = {
        "method": plan.method, "size": plan.size, "weights": plan.weights.kind, "manifest": manifest.digest,
        "backend": one.kind.backend, "device": one.kind.device, "precision": one.kind.precision,
    }  # fmt: skip
    return row | ({"emulated": True} if is_emulated(one.kind) else {})
