"""What one backend did with all cases by one policy, and the row that becomes of it.

A row's figures are of the last click that each case got, which `clicks_done` tells, in the order of `cases`: a server
that takes no mask as a prompt, or a backend that failed, stopped sooner than PyTorch, and its figures are like those
that PyTorch had then. `dice_by_click`, `clicks_to` and `cases` have all clicks. `parity_dice` and its neighbours are
against PyTorch float32 at the same clicks, the worst of all. `relative_error` is of outputs of graphs, with errors
built up over a session where its calls are seen, and on PyTorch's own inputs where a server hides them. `clicks_to` is
of clicks on the backend's own errors, as a reader would set them, so that `click_drift` says what another mask does to
the work; cases that it was not clicked on to the end are in neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samkit.benchmarks.accuracy.gate import Break
from samkit.benchmarks.record.figures import METRICS
from samkit.benchmarks.record.run import Row
from samkit.benchmarks.record.statistics import Estimate, mean_interval, significant

LEVELS = (0.80, 0.85, 0.90)
"""Dice that the clicks to it are counted of."""
SAME = {"dice": 1.0, "flipped_voxels": 0, "hd95_mm": 0.0, "logit_difference": 0.0}
"""What PyTorch's own masks are to themselves."""


@dataclass
class Book:
    """The notes on one backend and one policy."""

    identity: Row
    """Method, size, weights, manifest, backend, device and precision of the row."""
    policy: str
    units: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By case, or case and structure, and then by click: the METRICS, and `parity`."""
    parities: list[Mapping[str, float | None]] = field(default_factory=list)
    """Of every mask that was compared, of those without truth, too."""
    own_dice: dict[str, list[float]] = field(default_factory=dict)
    """By case, Dice after each click on the backend's own errors."""
    slices: list[dict[str, Any]] = field(default_factory=list)
    breaks: list[Break] = field(default_factory=list)
    failed_case: int | None = None
    """The place among the cases, from 1, of the first that broke."""
    notes: list[str] = field(default_factory=list)
    relative_error: Mapping[str, float] = field(default_factory=dict)
    """Worst, by graph."""

    def add(self, unit: str, click: int, figures: Mapping[str, float], parity: Mapping[str, float | None]) -> None:
        """Note what came out for one thing that has a truth."""
        self.units.setdefault(unit, []).append({"click": click, **figures, "parity": dict(parity)})

    def fail(self, found: Break, case: int) -> None:
        """Note what broke in the case of that number, 0 and on, if it is the first of its kind."""
        if self.failed_case is None:
            self.failed_case = case + 1
        if all((found.graph, found.call is None) != (known.graph, known.call is None) for known in self.breaks):
            self.breaks.append(found)

    def to_row(self, reference: Book, clicks: int) -> Row:
        """Return the row; `reference` holds the same of PyTorch, whose row says so."""
        row: Row = {
            "kind": "accuracy", **self.identity, "stage": "masks", "policy": self.policy, "identity": ["policy"],
        }  # fmt: skip
        if not self.parities and self is not reference:
            why = self.breaks[0].sentence(self.identity) if self.breaks else "no case could be compared; see notes"
            return row | {"error": why, **self._failed(), "notes": self.notes}
        row |= self._parity() if self is not reference else {"reference": True, **_worst_parity([SAME])}
        row |= {
            "relative_error": {name: significant(error, 3) for name, error in sorted(self.relative_error.items())},
            "figures": figures_of([steps[-1] for steps in self.units.values()]),
            "dice_by_click": self._dice_by_click(),
            "clicks_to": {key: list(self._clicks_to(level).values()) for key, level in _LEVELS.items()},
            "click_drift": {key: self._drift(reference, level) for key, level in _LEVELS.items()},
            "clicks": clicks,
            "clicks_done": [steps[-1]["click"] for steps in self.units.values()],
            "cases": [{"case": unit, "clicks": steps} for unit, steps in self.units.items()],
            "slices": self.slices,
            **self._failed(),
            "notes": self.notes,
        }
        return row

    def _parity(self) -> dict[str, Any]:
        return _worst_parity(self.parities)

    def _failed(self) -> dict[str, Any]:
        sentences = [found.sentence(self.identity) for found in self.breaks]
        return {"failures": sentences, "failed_case": self.failed_case}

    def _dice_by_click(self) -> list[list[float]]:
        """Return by click the Dice of each case; one that was done, or gave up, sooner keeps its last."""
        longest = max((len(steps) for steps in self.units.values()), default=0)
        rows = [
            [steps[min(click, len(steps) - 1)]["dice"] for steps in self.units.values()] for click in range(longest)
        ]
        return [[significant(value) for value in row] for row in rows]

    def _clicks_to(self, level: float) -> dict[str, int | None]:
        """Return by case how many clicks on its own errors it took to reach a Dice, None where it never did."""
        return {
            case: next((number for number, value in enumerate(dice, start=1) if value >= level), None)
            for case, dice in self.own_dice.items()
        }

    def _drift(self, reference: Book, level: float) -> float | None:
        """Return the worst difference of clicks to a Dice; infinite where one reached it alone, None where nobody."""
        ours, theirs = self._clicks_to(level), reference._clicks_to(level)
        pairs = [(ours[case], theirs[case]) for case in ours.keys() & theirs.keys()]
        pairs = [pair for pair in pairs if pair != (None, None)]
        differences = [math.inf if a is None or b is None else float(abs(a - b)) for a, b in pairs]
        return max(differences, default=None)


_LEVELS = {f"{level:.2f}": level for level in LEVELS}


def _worst_parity(parities: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Return the worst of each; nan is worse than anything."""

    def column(key: str) -> list[float]:
        return [float(value) for parity in parities if (value := parity[key]) is not None]

    logits = column("logit_difference")
    return {
        "parity_dice": significant(float(np.min(column("dice"))), 7),
        "parity_hd95_mm": significant(float(np.max(column("hd95_mm")))),
        "flipped_voxels": int(np.max(column("flipped_voxels"))),
        "logit_difference": significant(float(np.max(logits)), 3) if logits else None,
    }


def figures_of(last: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return by metric the mean over cases, with its interval, and the worst.

    A distance to an empty mask is infinite: such cases are left out of the mean, which is infinite where no other is
    left, and `not_finite` counts them.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, metric in METRICS.items():
        values = np.array([step[name] for step in last if name in step], np.float64)
        if not values.size:
            continue
        finite = values[np.isfinite(values)]
        found[name] = {
            "mean": (mean_interval(finite) if finite.size else Estimate(*(3 * [math.inf]))).to_dict(),
            "worst": _worst(values, metric.better),
            "not_finite": int(values.size - finite.size),
        }
    return found


def _worst(values: np.ndarray, better: str) -> float | None:
    """Return the worst value; None where none is better than another."""
    ranks = {"higher": -values, "lower": values, "zero": np.abs(values)}
    return significant(float(values[ranks[better].argmax()])) if better in ranks else None
