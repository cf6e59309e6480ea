"""Levels of readers on a server: more and more of them until clicks are slower than the limit, or calls fail; and rows.

Server, readers and whatever else runs share one machine, so figures of a level are what this machine holds, not what a
server alone could; every row says which part of the processors the readers took.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, product
from typing import Any

from samkit.benchmarks.cases.phantom_scans import COST_SHAPES, cost_case, repeated, with_clicks
from samkit.benchmarks.load.readers import STAGES, LoadLevel, VirtualReader, run_level
from samkit.benchmarks.load.scaling import MOST_SAMPLES, growth_row, over_sessions
from samkit.benchmarks.load.workload import SESSIONS, Workload
from samkit.benchmarks.measure.machine import Machine
from samkit.benchmarks.record.rows import Absent, Identity, LoadRow, Times
from samkit.benchmarks.record.statistics import significant
from samkit.errors import MissingDependencyError, ServingError
from samkit.manifest import Export, ExportPlan
from samkit.methods import Method, SliceMethod, get_method
from samkit.precisions import BASE
from samkit.protocols.case import Case
from samkit.runtime import Session
from samkit.runtime.client.remote_session import open_remote_session

TRITON = "triton"
GROWING = ("scan", "first_click", "click")
"""Stages whose growth with the number of readers is fitted."""
CLICKS = 6
"""Of a reader on one scan."""
AUTOMATIC_SLICES = 8
"""Slices of a scan for a method that decides on all of them by itself."""
CALL_SECONDS = 60.0
"""How long a reader waits for one answer; later it is an error."""
REST_SECONDS = 0.5
"""Between two levels: what was begun ends."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """An export on a server, and what every row says of it."""

    url: str
    plan: ExportPlan
    identity: Identity
    pid: int | None = None
    """Of the server, where it is ours."""

    def open(self) -> Session:
        """Return a session there."""
        return open_remote_session(self.url, timeout=CALL_SECONDS)

    @classmethod
    def look_at(cls, url: str, export: Export | None = None) -> Endpoint:
        """Return what runs at `url`; raises ServingError where an `export` is given and it serves another."""
        with open_remote_session(url, timeout=CALL_SECONDS) as session:
            plan, digest = session.manifest.plan, session.manifest.digest
            providers, precision = session.providers, session.precision
        if export is not None and digest != export.digest:
            raise ServingError(
                f"{url} serves an export of {plan.method} with digest {digest[:12]}, and the one given has "
                f"{export.digest[:12]}; give the folder that is served, or leave {{exports}} out",
                options=("exports",),
            )
        is_on_gpu = any(name.lower().startswith(("cuda", "tensorrt")) for name in chain(*providers.values()))
        return cls(url, plan, Identity.of(plan, digest, TRITON, precision, "cuda" if is_on_gpu else "cpu"))


def embedded_rows(export: Export, work: Workload, machine: Machine) -> list[LoadRow | Absent]:
    """Serve an export on this machine's loopback, and return what readers met there, or why nothing ran."""
    from samkit.triton_models.server import serve_export

    identity = Identity.of(export.plan, export.digest, TRITON, BASE.name, "cpu")
    logger.info("%s: a server ...", identity.method)
    try:
        with serve_export(export.folder) as server:
            url = f"triton://{server.grpc}/{identity.method}"
            return list(reader_rows(Endpoint(url, export.plan, identity, server.pid), work, machine))
    except (MissingDependencyError, ServingError) as error:
        stage, is_failure = judged_stage(export.method), isinstance(error, ServingError)
        return [
            Absent("load", _at(identity, mode, work, sessions=readers, stage=stage), str(error), is_failure)
            for mode, readers in product(work.modes, work.sessions)
        ]


def reader_rows(endpoint: Endpoint, work: Workload, machine: Machine) -> Iterator[LoadRow | Absent]:
    """Yield the rows of every level of every mode, and how calls grow with the readers where that is asked for."""
    method = get_method(endpoint.plan.method)
    logger.info("%s: clicks on a phantom ...", method.name)
    case = cost_case(method, endpoint.plan.config, COST_SHAPES.get(endpoint.plan.size, COST_SHAPES[None]))
    if isinstance(method, SliceMethod) and method.is_automatic:
        case = repeated(case, AUTOMATIC_SLICES)
    with endpoint.open() as session:
        case = with_clicks(case, session, method, CLICKS)
    scans, stage = count(1), judged_stage(method)
    for mode in work.modes:
        at = partial(_at, endpoint.identity, mode, work)
        levels, ended = climb(partial(_level, endpoint, case, at(), work.seconds, scans, machine), work, stage)
        *rows, last = (row for level in levels for row in level_rows(level, at(), case, work.limit_ms))
        yield from rows
        yield replace(last, note=f"{method.name}, {mode}: {ended}")
        for readers in work.sessions[len(levels) :]:
            yield Absent("load", at(sessions=readers, stage=stage), f"not tried: {ended}", is_failure=False)
        if SESSIONS in work.scaling:
            for call in GROWING if len(case.clicks) > 1 else GROWING[:1]:
                yield growth_row(at(), call, SESSIONS, over_sessions(levels, call))


def judged_stage(method: Method) -> str:
    """Return the stage that the limit is for: clicks, or what is decided on a scan where nobody clicks."""
    return "scan" if isinstance(method, SliceMethod) and "point" not in method.prompts else "click"


def climb(run: Callable[[int], LoadLevel], work: Workload, stage: str) -> tuple[list[LoadLevel], str]:
    """Return the levels that were run, and why they went no further, or what became of the last that was asked for."""
    levels: list[LoadLevel] = []
    for readers in work.sessions:
        levels.append(level := run(readers))
        with_readers = f"with {readers} reader{'s' * (readers > 1)}"
        if level.errors:
            return levels, f"{with_readers} {level.failures}"
        if (p95 := level.p95_ms(stage)) > work.limit_ms:
            slow = f"the 95th percentile of a {stage} was {p95:.0f} ms, above the limit of {work.limit_ms:g}"
            return levels, f"{with_readers} {slow}"
    last, most = levels[-1], f"with {levels[-1].readers}, the most that were asked for,"
    if last.samples[stage]:
        return levels, f"{most} {stage}s stayed within {work.limit_ms:g} ms at p95"
    lack = f"no {stage} came up in {last.seconds:.0f} s, so nothing is known of its time; give --seconds more"
    return levels, f"{most} {lack}"


def _level(
    endpoint: Endpoint, case: Case, own: Identity, seconds: float, scans: count[int], machine: Machine, readers: int
) -> LoadLevel:
    time.sleep(REST_SECONDS)
    machine.sample()
    crowd = [VirtualReader(number, case, endpoint.open, scans, own.think_s) for number in range(readers)]
    level = run_level(crowd, seconds, endpoint.pid)
    slowest = ", ".join(f"{stage} {level.p95_ms(stage):.0f}" for stage in STAGES if level.samples[stage])
    logger.info("%s, %s, %d at once: p95 [ms] %s; %.2f clicks/s", own.method, own.mode, readers, slowest,
                level.clicks_per_second)  # fmt: skip
    return level


def _at(identity: Identity, mode: str, work: Workload, **more: Any) -> Identity:
    """Return the identity of what readers meet in a mode; `more` as its fields are called."""
    return replace(identity, mode=mode, think_s=work.think_s if mode == "think" else None, **more)


def level_rows(level: LoadLevel, identity: Identity, case: Case, limit_ms: float) -> list[LoadRow | Absent]:
    """Return one row for each stage that a reader comes through; what did not come up says so."""
    several = f"{len(case.volumes)} x " if len(case.volumes) > 1 else ""
    shared: dict[str, Any] = {
        **level.figures,
        "seconds": level.seconds,
        "errors": level.errors,
        "scan": f"{case.name}, {several}{' x '.join(map(str, case.shape))} {case.first.array.dtype.name}",
        "limit_ms": limit_ms,
        "clicks_per_second": significant(level.clicks_per_second, 4) if case.clicks else None,
    }
    rows: list[LoadRow | Absent] = []
    for stage in STAGES if len(case.clicks) > 1 else STAGES[:2]:
        own, words = replace(identity, sessions=level.readers, stage=stage), stage.replace("_", " ")
        if level.samples[stage]:
            rows.append(LoadRow(own, Times.of(level.samples[stage], MOST_SAMPLES), **shared))
            continue
        why = f"no {words} came up in {level.seconds:.0f} s; give --seconds more"
        if level.errors:
            why = f"no {words} was answered, {level.failures}; see the server's log"
        rows.append(Absent("load", own, why, is_failure=bool(level.errors)))
    return rows
