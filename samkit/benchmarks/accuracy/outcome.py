"""What one backend did with all cases by one policy, what was too far from PyTorch, and the row that becomes of it.

A row's figures are of the last click that each case got, which `clicks_done` tells: a server that takes no mask as a
prompt, or a backend that failed, stopped sooner than PyTorch, and its figures are like those that PyTorch had then.
`relative_error` has errors built up over a session where its calls are seen, and is on PyTorch's own inputs where a
server hides them. `clicks_to` is of clicks on the backend's own errors, as a reader would set them, so that
`click_drift` says what another mask does to the work; cases that it was not clicked on to the end are in neither.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from samkit.benchmarks.record.rows import (
    Absent,
    AccuracyRow,
    CaseClicks,
    ClickFigures,
    Identity,
    Parity,
    WorstSlice,
    summarise,
)
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.record.statistics import significant
from samkit.export.parity import SMALL_MASK, masks_agree
from samkit.precisions import Tolerance
from samkit.runtime.backends.backend import Variant

LEVELS = {f"{level:.2f}": level for level in (0.80, 0.85, 0.90)}
"""Dice that the clicks to it are counted of, as rows call them."""
SAME: Mapping[str, float] = {"dice": 1.0, "flipped_voxels": 0, "hd95_mm": 0.0, "logit_difference": 0.0}
"""What PyTorch's own masks are to themselves."""


@dataclass(frozen=True)
class GraphCall:
    """One run of one graph."""

    graph: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Deviation:
    """The first thing that was not as it should be."""

    where: str
    """Case and click."""
    graph: str
    measure: str
    """What was measured, found and needed."""
    call: GraphCall | None = None
    """What the graph was given, where its output is to blame."""
    node: str | None = None
    """The first node whose result is not finite, where one is not."""

    def sentence(self, identity: Identity) -> str:
        """Return all of it, of a backend whose row is of that identity."""
        node = f"; the first node that is not finite is {self.node}" if self.node else ""
        return (
            f"{identity.method}, {self.graph} on {identity.backend} ({identity.precision}, {identity.device}), "
            f"{self.where}: {self.measure}{node}"
        )


def mask_fault(parity: Mapping[str, float], size: int, tolerance: Tolerance) -> str | None:
    """Return what is wrong with a mask of that `parity` (`metrics.compare_masks`), None where nothing is.

    `size` is PyTorch's mask [voxels].
    """
    overlap, differing, distance = parity["dice"], int(parity["flipped_voxels"]), parity["hd95_mm"]
    if masks_agree(differing, overlap, distance, size, tolerance):
        return None
    if size < SMALL_MASK and differing > tolerance.max_voxels:
        return f"{differing} voxels other than PyTorch's {size}, needed are at most {tolerance.max_voxels}"
    if size >= SMALL_MASK and not overlap >= tolerance.min_dice:
        return f"Dice {overlap:.5f} against PyTorch's, needed is at least {tolerance.min_dice:g}"
    return f"HD95 {distance:.3g} mm against PyTorch's, needed is at most {tolerance.max_hd95:g} mm"


@dataclass
class Outcome:
    """What is noted of one backend and one policy, or of one backend's detector."""

    identity: Identity
    steps: defaultdict[str, list[ClickFigures]] = field(default_factory=lambda: defaultdict(list))
    """By case, or case and structure, of those that have a truth."""
    parities: list[Mapping[str, float | None]] = field(default_factory=list)
    """Of every mask that was compared, of those without truth, too."""
    relative_error: dict[str, float] = field(default_factory=dict)
    """Worst of its outputs, by graph."""
    own_dice: dict[str, list[float]] = field(default_factory=dict)
    """By case, Dice after each click on the backend's own errors."""
    slices: list[WorstSlice] = field(default_factory=list)
    failures: list[Deviation] = field(default_factory=list)
    failed_case: int | None = None
    """The place among the cases, from 1, of the first that failed."""
    notes: list[str] = field(default_factory=list)

    def fail(self, found: Deviation, case: int) -> None:
        """Note what failed in the case of that number, 0 and on, if it is the first of its kind."""
        if self.failed_case is None:
            self.failed_case = case + 1
        if all((found.graph, found.call is None) != (known.graph, known.call is None) for known in self.failures):
            self.failures.append(found)

    @property
    def broken_call(self) -> GraphCall | None:
        """Return the first run of a graph whose output was beyond its tolerance."""
        return next((found.call for found in self.failures if found.call is not None), None)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return the failures as a row has them."""
        return tuple(found.sentence(self.identity) for found in self.failures)

    @property
    def parity(self) -> Parity:
        """Return the worst of each measure; nan is worse than anything."""

        def column(key: str) -> list[float]:
            return [float(value) for parity in self.parities if (value := parity.get(key)) is not None]

        logits = column("logit_difference")
        return Parity(
            dice=significant(float(np.min(column("dice"))), 7),
            hd95_mm=significant(float(np.max(column("hd95_mm")))),
            flipped_voxels=int(np.max(column("flipped_voxels"))),
            logit_difference=significant(float(np.max(logits)), 3) if logits else None,
            relative_error={name: significant(error, 3) for name, error in sorted(self.relative_error.items())},
        )

    def to_row(self, baseline: Outcome, clicks: int) -> AccuracyRow | Absent:
        """Return the row; `baseline` holds the same of PyTorch, whose row says so."""
        if not self.parities:
            why = self.sentences[0] if self.failures else "no case could be compared; see notes"
            return Absent("accuracy", self.identity, why, True, self.sentences, self.failed_case, tuple(self.notes))
        longest = max((len(steps) for steps in self.steps.values()), default=0)
        return AccuracyRow(
            self.identity,
            self.parity,
            reference=self is baseline,
            figures=summarise(steps[-1] for steps in self.steps.values()),
            dice_by_click=tuple(
                tuple(significant(steps[min(click, len(steps) - 1)].figures["dice"]) for steps in self.steps.values())
                for click in range(longest)
            ),
            clicks_to={key: tuple(self._clicks_to(level).values()) for key, level in LEVELS.items()},
            click_drift={key: self._drift(baseline, level) for key, level in LEVELS.items()},
            clicks=clicks,
            clicks_done=tuple(steps[-1].click for steps in self.steps.values()),
            cases=tuple(CaseClicks(unit, tuple(steps)) for unit, steps in self.steps.items()),
            slices=tuple(self.slices),
            failures=self.sentences,
            failed_case=self.failed_case,
            notes=tuple(self.notes),
        )

    def _clicks_to(self, level: float) -> dict[str, int | None]:
        """Return by case how many clicks on its own errors it took to reach a Dice; None: it never did."""
        return {
            case: next((number for number, value in enumerate(dice, start=1) if value >= level), None)
            for case, dice in self.own_dice.items()
        }

    def _drift(self, baseline: Outcome, level: float) -> float | None:
        """Return the worst difference of clicks to a Dice; infinite where one reached it alone, None where nobody."""
        ours, theirs = self._clicks_to(level), baseline._clicks_to(level)
        pairs = [(ours[case], theirs[case]) for case in ours.keys() & theirs.keys()]
        pairs = [pair for pair in pairs if pair != (None, None)]
        return max((math.inf if a is None or b is None else float(abs(a - b)) for a, b in pairs), default=None)


def what_broke(run: Run, asked: Sequence[Variant]) -> tuple[str, ...]:
    """Return what broke first in each export and backend of a run, in sentences.

    One of `asked` that did not run is broken, too.
    """
    lines: dict[Any, tuple[float, str]] = {}
    for row in run.rows:
        one = row.identity
        variant = Variant(one.backend, one.precision, one.device)
        place = f"{one.method} on {one.backend} ({one.precision})"
        if isinstance(row, AccuracyRow | Absent) and row.failures:
            found = f"{row.failures[0]}; export again, and report it if it stays"
        elif isinstance(row, Absent) and row.is_failure:
            found = f"{place}: {row.reason}"
        elif isinstance(row, Absent) and one.stage is not None and variant in asked:
            found = f"{place} was asked for and not run: {row.reason}"
        else:
            continue
        # Of several policies the one that met the first case
        line = (float(row.failed_case or math.inf), found)
        key = (one.method, one.manifest, variant)
        lines[key] = min(lines.get(key, line), line, key=itemgetter(0))
    return tuple(sentence for _, sentence in lines.values())
