"""How the time of a call grows: with the size of the volume, with slices, with sessions, with clicks.

Volumes are one head in more and more air, because a session only crops; slices are one slice over and over. All
in-process but for sessions, which come from the readers on a server. Sizes take turns in every round.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from samkit.benchmarks.cases.phantom_scans import click_on, cost_case, padded, repeated, with_clicks
from samkit.benchmarks.load.readers import LoadLevel
from samkit.benchmarks.load.workload import CLICKS, SLICES, VOLUME, Workload
from samkit.benchmarks.measure.machine import Machine
from samkit.benchmarks.measure.turns import seconds_of, take_turns
from samkit.benchmarks.record.rows import Absent, Growth, Identity, LoadRow, Times
from samkit.benchmarks.record.statistics import fit_exponent, significant, spread
from samkit.errors import SamkitError
from samkit.geometry import Index
from samkit.manifest import Export
from samkit.precisions import BASE
from samkit.protocols.case import Case
from samkit.runtime import Session, open_export
from samkit.runtime.backends import DEFAULT

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
"""Samples at one size that the exponent is fitted through, spread evenly over all of them: each size counts alike."""
MOST_SAMPLES = 2000
"""Kept in a row."""

Samples: TypeAlias = Mapping[float, Sequence[float]]
"""Seconds by size."""
logger = logging.getLogger(__name__)


def growth_row(identity: Identity, stage: str, over: str, samples: Samples) -> LoadRow | Absent:
    """Return the row of one kind of call over one of SCALINGS, or why no e of cost = c * size^e can be fitted.

    `stage` is what was timed: scan, first_click, click, decide, propagate; `identity` has the mode of readers.
    """
    call = stage.replace("_", " ")
    identity = replace(identity, stage=f"{call} over {over}{f', {identity.mode}' if identity.mode else ''}")
    if len(samples) < 2:
        sizes = ", ".join(f"{size:g}" for size in samples) or "none"
        lack = f"an exponent of {call} needs two sizes of {over} with samples enough, and there were: {sizes}"
        return Absent("load", identity, lack, is_failure=False)
    points = [(size, second) for size, seconds in samples.items() for second in spread(seconds, MOST_POINTS)]
    each = max(1, MOST_SAMPLES // len(samples))
    growth = Growth(
        over="volume [voxels]" if over == VOLUME else over,
        unit="voxels" if over == VOLUME else over,
        x=tuple(samples),
        y_ms=tuple(tuple(significant(1e3 * s) for s in spread(seconds, each)) for seconds in samples.values()),
        exponent=fit_exponent(*zip(*points, strict=True)).rounded(4),
    )
    largest = Times.of(samples[max(samples)], most=0)
    return LoadRow(identity, replace(largest, count=sum(map(len, samples.values()))), scaling=growth)


def growth_rows(export: Export, work: Workload, machine: Machine) -> Iterator[LoadRow | Absent]:
    """Yield how calls in this process grow over what of VOLUME, SLICES and CLICKS is asked for."""
    if not (wanted := [over for over in work.scaling if over in _OVER]):
        return
    identity = Identity.of(export.plan, export.digest, DEFAULT.name, BASE.name, "cpu")
    with open_export(export) as session:
        case = cost_case(export.method, export.config, SHAPES.get(export.plan.size, SHAPE))
        case = case if case.across is None else repeated(case, STACKS[0])
        case = with_clicks(case, session, export.method, MOST_CLICKS)
        for over in wanted:
            machine.sample()
            for row in grown(over, session, case, identity, work.rounds):
                yield row
                verdict = getattr(row, "reason", "")
                if isinstance(row, LoadRow) and row.scaling is not None:
                    fit = row.scaling.exponent
                    verdict = f"exponent {fit.value:.2f} ({fit.low:.2f} to {fit.high:.2f})"
                logger.info("%s: %s: %s", identity.method, row.identity.stage, verdict)


def grown(over: str, session: Session, case: Case, identity: Identity, rounds: int) -> list[LoadRow | Absent]:
    """Return the rows of calls over one of VOLUME, SLICES and CLICKS, or one that says why there is nothing."""
    absent = partial(Absent, "load", replace(identity, stage=f"click over {over}"))
    lacks = {
        VOLUME: case.across is not None and "works slice by slice; what counts is their number",
        SLICES: case.across is None and "works on volumes, not on slices",
        CLICKS: not case.clicks and "takes no clicks",
    }
    if why := lacks[over]:
        return [absent(f"{identity.method} {why}", is_failure=False)]
    try:
        found = _OVER[over](session, case, rounds)
    except SamkitError as error:
        return [absent(str(error), is_failure=True)]
    return [growth_row(identity, stage, over, samples) for stage, samples in found.items()]


def over_volume(session: Session, case: Case, rounds: int) -> dict[str, Samples]:
    """Return times of setting a scan, of the first click on it, and of a second one, over voxels."""

    def calls(one: Case) -> dict[str, Callable[[], object]]:
        return {
            "scan": lambda: session.set_image(one.image),
            "first_click": lambda: click_on(session, one.clicks[0]),
            "click": lambda: click_on(session, one.clicks[1]),
        }

    i, j, k = case.shape
    larger = [padded(case, (round(f * i), round(f * j), round(f * k))) for f in FACTORS]
    return _in_turns(larger, calls, rounds, lambda one: math.prod(one.shape))


def over_slices(session: Session, case: Case, rounds: int) -> dict[str, Samples]:
    """Return times of deciding on all of a stack, or of leading on through it from one click, over slices answered."""

    def calls(stack: Case) -> dict[str, Callable[[], object]]:
        scan = partial(session.set_image, stack.image)
        if session.is_automatic:
            return {"scan": partial(scan, automatic=False), "decide": session.segment_automatically}
        return {"scan": scan, "click": lambda: click_on(session, stack.clicks[0]), "propagate": session.propagate}

    stacks = [repeated(case, slices) for slices in STACKS]
    found = _in_turns(stacks, calls, rounds, lambda _: len(session.steps[-1].slices))
    return {stage: samples for stage, samples in found.items() if stage in ("decide", "propagate")}


def over_clicks(session: Session, case: Case, rounds: int) -> dict[str, Samples]:
    """Return the time of the n-th click over n; embeddings are there, but for crops that only this click needs."""
    session.set_image(case.image)

    def click_all() -> list[float]:
        session.reset()
        return [seconds_of(partial(click_on, session, point)) for point in case.clicks]

    found = take_turns({CLICKS: click_all}, rounds, uncounted=1)[CLICKS]  # the first round encodes
    return {"click": dict(enumerate(zip(*found, strict=True), start=1))}


def over_sessions(levels: Sequence[LoadLevel], stage: str) -> Samples:
    """Return times of a stage over the readers of a level, levels with fewer than LEAST_SAMPLES left out."""
    met = {float(level.readers): level.samples[stage] for level in levels}
    return {readers: seconds for readers, seconds in met.items() if len(seconds) >= LEAST_SAMPLES}


_OVER = {VOLUME: over_volume, SLICES: over_slices, CLICKS: over_clicks}


def _in_turns(
    cases: Sequence[Case],
    calls: Callable[[Case], Mapping[str, Callable[[], object]]],
    rounds: int,
    size: Callable[[Case], float],
) -> dict[str, Samples]:
    """Return seconds by call and size; a turn is all calls in order on one case, whose `size` is known after them."""

    def turn(case: Case) -> tuple[dict[str, float], float]:
        return {stage: seconds_of(call) for stage, call in calls(case).items()}, float(size(case))

    turns = {number: partial(turn, case) for number, case in enumerate(cases)}
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for measured in take_turns(turns, rounds, uncounted=1).values():  # the first round fills memory
        for seconds, own_size in measured:
            for stage, second in seconds.items():
                found[stage][own_size].append(second)
    return {stage: dict(sorted(samples.items())) for stage, samples in found.items()}
