"""How the time of a call grows: with the size of the volume, with slices, with sessions, with clicks.

Each is samples at several sizes, on the same content, and the exponent of cost = c * size^e through them. Volumes are
one head in more and more air, because a session only crops; slices are one slice over and over; clicks are those of one
case, on embeddings that are there. All in-process but for sessions, which come from the readers on a server. Sizes
take turns in every round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.cases.phantom_scans import click_on, open_case, padded, repeated
from samkit.benchmarks.load.readers import Level
from samkit.benchmarks.measure.turns import seconds_of, take_turns
from samkit.benchmarks.record.statistics import Estimate, fit_exponent, percentiles, significant
from samkit.geometry import Index

if TYPE_CHECKING:
    from samkit.runtime import Session

VOLUME, SLICES, SESSIONS, CLICKS = "volume", "slices", "sessions", "clicks"
SCALINGS = (VOLUME, SLICES, SESSIONS, CLICKS)
UNITS: Mapping[str, str] = {VOLUME: "voxels", SLICES: "slices", SESSIONS: "sessions", CLICKS: "clicks"}
FACTORS = (1.0, 4 / 3, 11 / 6, 2.5)
"""Sides of the volumes, as multiples of the case's: 96, 128, 176 and 240 voxels for 96."""
STACKS = (2, 4, 8, 16)
"""Slices."""
MOST_CLICKS = 20
Call: TypeAlias = Callable[[Any, Case], object]
"""What is timed, of a session and a case."""
LEAST_SAMPLES = 5
"""Of readers at one level."""
MOST_POINTS = 100
"""Samples at one size that the exponent is fitted through, spread evenly over all of them."""


@dataclass(frozen=True)
class Scaling:
    """Times of one kind of call at several sizes."""

    stage: str
    """What was timed: scan, first_click, click, decide, propagate."""
    over: str
    """One of SCALINGS."""
    samples: Mapping[float, Sequence[float]]
    """Seconds by size."""
    mode: str = ""
    """Of the readers that met them."""

    @property
    def name(self) -> str:
        """Return what a row calls it."""
        return f"{self.stage.replace('_', ' ')} over {self.over}{f', {self.mode}' * bool(self.mode)}"

    @property
    def lack(self) -> str | None:
        """Return why no exponent can be fitted, None where one can."""
        if len(self.samples) > 1:
            return None
        call = self.stage.replace("_", " ")
        sizes = ", ".join(f"{size:g}" for size in self.samples) or "none"
        return f"an exponent of {call} needs two sizes of {self.over} with samples enough, and there were: {sizes}"

    def exponent(self) -> Estimate:
        """Return the e of cost = c * size^e through MOST_POINTS samples of each size."""
        points = [(size, value) for size, values in self.samples.items() for value in spread(values, MOST_POINTS)]
        return fit_exponent(*zip(*points, strict=True))

    def figures(self, most: int) -> dict[str, Any]:
        """Return what a row holds: all samples in milliseconds, `most` at most, the fit, percentiles at the largest."""
        each = max(1, most // len(self.samples))
        y_ms = [[significant(1e3 * value) for value in spread(values, each)] for values in self.samples.values()]
        return {
            **percentiles([1e3 * value for value in self.samples[max(self.samples)]]),
            "count": sum(len(values) for values in self.samples.values()),
            "scaling": {"over": f"{self.over} [{UNITS[self.over]}]" if self.over == VOLUME else self.over,
                        "unit": UNITS[self.over], "x": list(self.samples), "y_ms": y_ms,
                        "exponent": self.exponent().to_dict(4)},
        }  # fmt: skip


def spread(values: Sequence[float], most: int) -> list[float]:
    """Return `most` of the values at most, in order of size, evenly spread between the least and the greatest.

    >>> spread([5, 1, 2, 4, 3], 3)
    [1, 3, 5]
    """
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(number * (len(ordered) - 1) / max(1, most - 1))] for number in range(most)]


def over_volume(session: Session, case: Case, rounds: int) -> list[Scaling]:
    """Return times of setting a scan, of the first click on it, and of a second one, over voxels."""
    larger = [padded(case, _enlarged(case.shape, factor)) for factor in FACTORS]
    calls: dict[str, Call] = {"scan": open_case, "first_click": partial(_click, 0), "click": partial(_click, 1)}
    samples = _in_turns(session, larger, calls, rounds, lambda one: float(math.prod(one.shape)))
    return [Scaling(stage, VOLUME, samples[stage]) for stage in calls]


def over_slices(session: Session, case: Case, rounds: int) -> list[Scaling]:
    """Return times of deciding on all of a stack, or of leading on through it from one click, over slices answered."""
    stacks = [repeated(case, slices) for slices in STACKS]
    calls: dict[str, Call]
    if session.is_automatic:
        calls = {"scan": _set_only, "decide": lambda held, one: held.segment_automatically()}
    else:
        calls = {"scan": open_case, "click": partial(_click, 0), "propagate": lambda held, one: held.propagate()}
    samples = _in_turns(session, stacks, calls, rounds, lambda one: len(session.steps[-1].slices))
    return [Scaling(stage, SLICES, samples[stage]) for stage in ("decide", "propagate") if stage in calls]


def over_clicks(session: Session, case: Case, rounds: int) -> list[Scaling]:
    """Return the time of the n-th click over n; embeddings are there, but for crops that only this click needs."""
    open_case(session, case)

    def click_all() -> list[float]:
        session.reset()
        return [seconds_of(partial(click_on, session, point)) for point in case.clicks]

    found = take_turns({"click": click_all}, rounds, uncounted=1)["click"]  # the first round encodes
    return [Scaling("click", CLICKS, dict(enumerate(zip(*found, strict=True), start=1)))]


def over_sessions(levels: Sequence[Level], stages: Sequence[str], mode: str) -> list[Scaling]:
    """Return times of each stage over the readers of a level, levels with fewer than LEAST_SAMPLES left out."""
    found = {stage: {float(level.readers): level.samples[stage] for level in levels} for stage in stages}
    enough = {
        stage: {x: times for x, times in of.items() if len(times) >= LEAST_SAMPLES} for stage, of in found.items()
    }
    return [Scaling(stage, SESSIONS, samples, mode) for stage, samples in enough.items()]


def _in_turns(
    session: Any, cases: Sequence[Case], calls: Mapping[str, Call], rounds: int, size: Callable[[Case], float]
) -> dict[str, dict[float, list[float]]]:
    """Return seconds by call and size; a turn is all calls in order on one case."""

    def turn(case: Case) -> tuple[float, dict[str, float]]:
        seconds = {stage: seconds_of(partial(call, session, case)) for stage, call in calls.items()}
        return float(size(case)), seconds

    turns = {number: partial(turn, case) for number, case in enumerate(cases)}
    found: dict[str, dict[float, list[float]]] = {stage: {} for stage in calls}
    for measured in take_turns(turns, rounds, uncounted=1).values():  # the first round fills memory
        for own_size, seconds in measured:
            for stage, value in seconds.items():
                found[stage].setdefault(own_size, []).append(value)
    return {stage: dict(sorted(samples.items())) for stage, samples in found.items()}


def _click(number: int, session: Any, case: Case) -> None:
    click_on(session, case.clicks[number])


def _set_only(session: Any, case: Case) -> None:
    """Set the scans without what `set_image` does by itself."""
    session.set_image(dict(case.volumes), automatic=False)


def _enlarged(shape: Sequence[int], factor: float) -> Index:
    i, j, k = (round(factor * side) for side in shape)
    return i, j, k
