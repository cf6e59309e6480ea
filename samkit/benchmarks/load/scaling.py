"""How the time of a call grows: with the size of the volume, with slices, with sessions, with clicks.

Each is samples at several sizes, on the same content, and the exponent of cost = c * size^e through them. Volumes are
one head in more and more air, because a session only crops; slices are one slice over and over; clicks are those of one
case, on embeddings that are there. All in-process but for sessions, which come from the readers on a server. Sizes
take turns in every round.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.cases.phantom_scans import click_on, cost_case, padded, repeated, with_clicks
from samkit.benchmarks.load.readers import LoadLevel
from samkit.benchmarks.load.workload import CLICKS, SESSIONS, SLICES, VOLUME, Workload
from samkit.benchmarks.measure.machine import Machine
from samkit.benchmarks.measure.turns import seconds_of, take_turns
from samkit.benchmarks.record.rows import Absent, Growth, Identity, LoadRow, Times
from samkit.benchmarks.record.statistics import Estimate, fit_exponent, significant, spread
from samkit.errors import SamkitError
from samkit.geometry import Index
from samkit.manifest import Export
from samkit.precisions import BASE
from samkit.runtime import Session, open_session
from samkit.runtime.backends import DEFAULT

UNITS: Mapping[str, str] = {VOLUME: "voxels", SLICES: "slices", SESSIONS: "sessions", CLICKS: "clicks"}
FACTORS = (1.0, 4 / 3, 11 / 6, 2.5)
"""Sides of the volumes, as multiples of the case's: 96, 128, 176 and 240 voxels for 96."""
STACKS = (2, 4, 8, 16)
"""Slices."""
MOST_CLICKS = 20
SHAPES: Mapping[str | None, Index] = {"tiny": (32, 32, 32)}
"""Voxels of the smallest phantom that calls are timed on, by the network's size; else SHAPE."""
SHAPE = (96, 96, 96)
LEAST_SAMPLES = 5
"""Of readers at one level."""
MOST_POINTS = 100
"""Samples at one size that the exponent is fitted through, spread evenly over all of them."""
MOST_SAMPLES = 2000
"""Kept in a row."""

Call: TypeAlias = Callable[[Session, Case], object]
"""What is timed, of a session and a case."""
logger = logging.getLogger(__name__)


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

    def exponent(self) -> Estimate:
        """Return the e of cost = c * size^e through MOST_POINTS samples of each size."""
        points = [(size, value) for size, values in self.samples.items() for value in spread(values, MOST_POINTS)]
        return fit_exponent(*zip(*points, strict=True))

    def row(self, identity: Identity, most: int = MOST_SAMPLES) -> LoadRow | Absent:
        """Return the row of it, with `most` samples at most, or why no exponent can be fitted."""
        identity = replace(identity, stage=self.name)
        if len(self.samples) < 2:
            call = self.stage.replace("_", " ")
            sizes = ", ".join(f"{size:g}" for size in self.samples) or "none"
            lack = f"an exponent of {call} needs two sizes of {self.over} with samples enough, and there were: {sizes}"
            return Absent("load", identity, lack, is_failure=False)
        each = max(1, most // len(self.samples))
        growth = Growth(
            over=f"{self.over} [{UNITS[self.over]}]" if self.over == VOLUME else self.over,
            unit=UNITS[self.over],
            x=tuple(self.samples),
            y_ms=tuple(tuple(significant(1e3 * v) for v in spread(values, each)) for values in self.samples.values()),
            exponent=self.exponent().rounded(4),
        )
        largest = Times.of(self.samples[max(self.samples)], most=0)
        count = sum(len(values) for values in self.samples.values())
        return LoadRow(identity, replace(largest, count=count), scaling=growth)


def growth_rows(export: Export, work: Workload, machine: Machine) -> Iterator[LoadRow | Absent]:
    """Yield how calls in this process grow over what of VOLUME, SLICES and CLICKS is asked for."""
    if not (wanted := [over for over in work.scaling if over in _OVER]):
        return
    identity = Identity.of(export.plan, export.digest, DEFAULT.name, BASE.name, "cpu")
    with open_session(export.folder) as session:
        case = cost_case(export.method, export.config, SHAPES.get(export.plan.size, SHAPE))
        case = case if case.across is None else repeated(case, 1)
        case = with_clicks(case, session, export.method, MOST_CLICKS)
        for over in wanted:
            machine.sample()
            for row in grown(over, session, case, identity, work.rounds):
                yield row
                logger.info("%s: %s: %s", identity.method, row.identity.stage, _verdict(row))


def grown(over: str, session: Session, case: Case, identity: Identity, rounds: int) -> list[LoadRow | Absent]:
    """Return the rows of calls over one of VOLUME, SLICES and CLICKS, or one that says why there is nothing."""
    absent = partial(Absent, "load", replace(identity, stage=f"click over {over}"))
    if why := _lacks(over, case):
        return [absent(f"{identity.method} {why}", is_failure=False)]
    try:
        return [found.row(identity) for found in _OVER[over](session, case, rounds)]
    except SamkitError as error:
        return [absent(str(error), is_failure=True)]


def _lacks(over: str, case: Case) -> str | None:
    """Return why nothing can be timed over this, None where it can."""
    if over == VOLUME and case.across is not None:
        return "works slice by slice; what counts is their number"
    if over == SLICES and case.across is None:
        return "works on volumes, not on slices"
    if over == CLICKS and not case.clicks:
        return "takes no clicks"
    return None


def _verdict(row: LoadRow | Absent) -> str:
    """Return the exponent of a row in words, or why it has none."""
    if isinstance(row, Absent) or row.scaling is None:
        return str(getattr(row, "reason", ""))
    fit = row.scaling.exponent
    return f"exponent {fit.value:.2f} ({fit.low:.2f} to {fit.high:.2f})"


def over_volume(session: Session, case: Case, rounds: int) -> list[Scaling]:
    """Return times of setting a scan, of the first click on it, and of a second one, over voxels."""
    larger = [padded(case, _enlarged(case.shape, factor)) for factor in FACTORS]
    calls: dict[str, Call] = {"scan": _scan, "first_click": partial(_click, 0), "click": partial(_click, 1)}
    samples = _in_turns(session, larger, calls, rounds, lambda one: math.prod(one.shape))
    return [Scaling(stage, VOLUME, samples[stage]) for stage in calls]


def over_slices(session: Session, case: Case, rounds: int) -> list[Scaling]:
    """Return times of deciding on all of a stack, or of leading on through it from one click, over slices answered."""
    stacks = [repeated(case, slices) for slices in STACKS]
    calls: dict[str, Call]
    if session.is_automatic:
        calls = {"scan": partial(_scan, automatic=False), "decide": lambda held, one: held.segment_automatically()}
    else:
        calls = {"scan": _scan, "click": partial(_click, 0), "propagate": lambda held, one: held.propagate()}
    samples = _in_turns(session, stacks, calls, rounds, lambda one: len(session.steps[-1].slices))
    return [Scaling(stage, SLICES, samples[stage]) for stage in ("decide", "propagate") if stage in calls]


def over_clicks(session: Session, case: Case, rounds: int) -> list[Scaling]:
    """Return the time of the n-th click over n; embeddings are there, but for crops that only this click needs."""
    session.set_image(case.image)

    def click_all() -> list[float]:
        session.reset()
        return [seconds_of(partial(click_on, session, point)) for point in case.clicks]

    found = take_turns({CLICKS: click_all}, rounds, uncounted=1)[CLICKS]  # the first round encodes
    return [Scaling("click", CLICKS, dict(enumerate(zip(*found, strict=True), start=1)))]


def over_sessions(levels: Sequence[LoadLevel], stages: Sequence[str], mode: str) -> list[Scaling]:
    """Return times of each stage over the readers of a level, levels with fewer than LEAST_SAMPLES left out."""
    found = {stage: {float(level.readers): level.samples[stage] for level in levels} for stage in stages}
    return [
        Scaling(stage, SESSIONS, {x: times for x, times in of.items() if len(times) >= LEAST_SAMPLES}, mode)
        for stage, of in found.items()
    ]


_OVER: Mapping[str, Callable[[Session, Case, int], list[Scaling]]] = {
    VOLUME: over_volume,
    SLICES: over_slices,
    CLICKS: over_clicks,
}


def _in_turns(
    session: Session, cases: Sequence[Case], calls: Mapping[str, Call], rounds: int, size: Callable[[Case], float]
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


def _click(number: int, session: Session, case: Case) -> None:
    click_on(session, case.clicks[number])


def _scan(session: Session, case: Case, automatic: bool = True) -> None:
    """Set the scans, with or without what a method then does by itself."""
    session.set_image(case.image, automatic=automatic)


def _enlarged(shape: Sequence[int], factor: float) -> Index:
    i, j, k = (round(factor * side) for side in shape)
    return i, j, k
