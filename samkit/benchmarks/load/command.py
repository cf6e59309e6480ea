"""`sam-bench load`: readers on a Triton server, more and more of them, and how the cost of a call grows.

Each export gets an embedded server of its own, on loopback, unless `--server` names one that runs. The readers
(readers.py) go up level by level until clicks are slower than the limit, or calls fail. Server, readers and whatever
else runs share one machine, so figures of a level are what this machine holds, not what a server alone could; every row
says which part of the processors the readers took. Then calls are timed over sizes (scaling.py).

Scans are phantoms, and no reader gets one that the server has seen.
"""

from __future__ import annotations

import ipaddress
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.cases.phantom_scans import COST_SHAPES, cost_case, repeated, with_clicks
from samkit.benchmarks.load.readers import MODES, STAGES, Level, Reader, run_level
from samkit.benchmarks.load.scaling import (
    CLICKS,
    MOST_CLICKS,
    SCALINGS,
    SESSIONS,
    SLICES,
    VOLUME,
    Scaling,
    over_clicks,
    over_sessions,
    over_slices,
    over_volume,
    spread,
)
from samkit.benchmarks.measure.machine import Machine, versions
from samkit.benchmarks.record.rows import Absent, read_row
from samkit.benchmarks.record.run import Row, Run, commit, describe_export, now
from samkit.benchmarks.record.statistics import percentiles, significant
from samkit.errors import MissingDependencyError, SamkitError, ServingError
from samkit.manifest import ExportPlan, Manifest
from samkit.methods import SliceMethod, get_method

if TYPE_CHECKING:
    from samkit.runtime import Session

Say = Callable[[str], object]

SESSION_LEVELS = (1, 2, 4, 8, 16)
GROWING = ("scan", "first_click", "click")
"""Stages whose growth with the number of readers is fitted."""
POINTS = 6
"""Clicks of a reader on one scan."""
AUTOMATIC_SLICES = 8
"""Slices of a scan for a method that decides on all of them by itself."""
SCALING_SHAPES = {"tiny": (32, 32, 32)}
"""Voxels of the smallest phantom that calls are timed on, by the network's size; else the next."""
SCALING_SHAPE = (96, 96, 96)
ROUNDS = 5
"""Samples at each size."""
MOST_SAMPLES = 2000
"""Kept in a row."""
CALL_SECONDS = 60.0
"""How long a reader waits for one answer; later it is an error."""
REST_SECONDS = 0.5
"""Between two levels: what was begun ends."""


@dataclass(frozen=True)
class Workload:
    """What readers are to do."""

    sessions: tuple[int, ...] = SESSION_LEVELS
    """Readers of each level, in turn."""
    modes: tuple[str, ...] = MODES
    think_s: float = 2.0
    """Mean time between two calls of a reader in the mode `think` [s]."""
    seconds: float = 20.0
    """How long a level takes."""
    limit_ms: float = 1000.0
    """Levels go up until the 95th percentile of clicks passes this [ms]."""

    def judged(self, plan: ExportPlan) -> str:
        """Return the stage that the limit is for: clicks, or what is decided on a scan where nobody clicks."""
        return "click" if takes_clicks(plan) else "scan"


@dataclass(frozen=True)
class Served:
    """What is served somewhere, and what every row says of it."""

    url: str
    plan: ExportPlan
    row: Row
    pid: int | None = None
    """Of the server, where it is ours."""


# --- The command ---


def _numbers(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or any(a >= b for a, b in zip((0, *found), found, strict=False)):
        raise click.BadParameter(f"'{text}' are no numbers that go up, such as 1,2,4,8", context, option)
    return found


def _scalings(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    words = tuple(word for word in text.split(",") if word and word != "none")
    if unknown := [word for word in words if word not in SCALINGS]:
        raise click.BadParameter(f"'{unknown[0]}' is none of {', '.join(SCALINGS)}; or none", context, option)
    return words


_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option("--export", "exports", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder of sam-export; each is served in turn.")  # fmt: skip
@click.option("--server", metavar="URL", help="A server that runs, such as triton://127.0.0.1:8001/m-sam.")
@click.option("--not-loopback", is_flag=True, help="--server is on another machine, and it is yours to load.")
@click.option("--sessions", default="1,2,4,8,16", show_default=True, callback=_numbers, help="Readers of each level.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES), default=MODES, show_default=True,
              help="think: a reader waits before each call; closed: none does.")  # fmt: skip
@click.option("--think-s", default=2.0, show_default=True, type=_POSITIVE, help="Mean time between two calls [s].")
@click.option("--seconds", default=20.0, show_default=True, type=_POSITIVE, help="How long a level takes.")
@click.option("--limit-ms", default=1000.0, show_default=True, type=_POSITIVE, help="p95 of clicks that ends it.")
@click.option("--scaling", default=",".join(SCALINGS), show_default=True, callback=_scalings,
              help="What cost is fitted over; none: nothing.")  # fmt: skip
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(min=1), help="Samples at each size.")
@click.option("--json", "out", default=Path("bench/load.json"), show_default=True, help="Where the run is written.",
              type=click.Path(dir_okay=False, path_type=Path))  # fmt: skip
def command(
    exports: tuple[Path, ...],
    server: str | None,
    not_loopback: bool,
    sessions: tuple[int, ...],
    modes: tuple[str, ...],
    think_s: float,
    seconds: float,
    limit_ms: float,
    scaling: tuple[str, ...],
    rounds: int,
    out: Path,
) -> None:
    """Readers on a Triton server: sessions held, clicks per second, percentiles, memory; how cost grows."""
    if not exports and server is None:
        raise click.UsageError("there is nothing to serve; give --export DIR, or --server URL of what is served")
    if len(exports) > 1 and server is not None:
        raise click.UsageError("--server serves one export, and several are given; give that one alone, or none")
    if server is not None and not not_loopback:
        check_own_machine(server)
    work = Workload(sessions, modes, think_s, seconds, limit_ms)
    run = measure_load(
        exports, server=server, work=work, scaling=scaling, rounds=rounds, say=partial(click.echo, err=True)
    )
    run = replace(run, command=("sam-bench", *sys.argv[1:]))
    run.save(out)
    from samkit.benchmarks.report.tables import show

    show(run)
    if failed := [row.reason for row in run.rows if isinstance(row, Absent) and row.is_failure]:
        parts = f"{len(failed)} part{'s' * (len(failed) > 1)}"
        raise SamkitError(f"{parts} failed, the first: {failed[0]} ({out} has what was measured)")


def check_own_machine(url: str) -> None:
    """Raise click.UsageError unless `url` is one of this machine's own addresses; PromptError where it is none."""
    from samkit.runtime.client.triton_transport import Address

    server = Address.parse(url).server
    host = server.rpartition(":")[0].strip("[]")
    try:
        is_own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = host == "localhost"
    if not is_own:
        raise click.UsageError(
            f"{server} is not on this machine, and readers by the dozen keep others from their work there; give a "
            "loopback address, or --not-loopback where the server is yours to load"
        )


# --- All of it ---


def measure_load(
    exports: Sequence[Path],
    *,
    server: str | None = None,
    work: Workload | None = None,
    scaling: Sequence[str] = SCALINGS,
    rounds: int = ROUNDS,
    say: Say = lambda line: None,
) -> Run:
    """Return what readers met on a server of each export, or on `server`, and how cost grows over `scaling`.

    What can't be measured is a row, too. Raises ManifestError for what is no export and, where `server` is given,
    ServerUnreachable and ServingError where nothing answers there or something else is served.
    """
    started, start = now(), time.perf_counter()
    work = Workload() if work is None else work
    rows: list[Row] = []
    described: list[dict[str, Any]] = []
    with Machine() as machine:
        for export in exports:
            manifest = Manifest.load(export)
            row = _row(manifest.plan, manifest.digest)
            described.append(describe_export(export, manifest))
            if server is None:
                rows += _embedded_rows(export, manifest.plan, row, work, SESSIONS in scaling, machine, say)
            else:
                served = _look_at(server, manifest.digest)
                rows += _reader_rows(served, work, SESSIONS in scaling, machine, say)
            rows += _scaling_rows(export, manifest.plan, row, scaling, rounds, machine, say)
        if server is not None and not exports:
            served = _look_at(server, None)
            described.append({"method": served.plan.method, "size": served.plan.size,
                              "weights": served.plan.weights.kind, "demonstration": served.plan.is_demonstration,
                              "manifest": served.row["manifest"]})  # fmt: skip
            rows += _reader_rows(served, work, SESSIONS in scaling, machine, say)
        described_machine = machine.describe()
    return Run(
        kind="load",
        command=("sam-bench", "load"),
        started=started,
        seconds=round(time.perf_counter() - start, 1),
        exports=tuple(described),
        machine=described_machine,
        versions=versions(),
        rows=tuple(map(read_row, rows)),
        commit=commit(),
        notes=(
            _PHANTOMS,
            _TOGETHER if server is None else _ELSEWHERE,
            *(str(row["note"]) for row in rows if "note" in row),
        ),
    )


_PHANTOMS = "Scans are phantoms, sent anew by each reader; a click is timed until its whole mask is there."
_TOGETHER = "Readers and server shared one machine, over loopback: figures are what both together held."
_ELSEWHERE = "The server ran already, so its memory and its share of the processors are not known."


def takes_clicks(plan: ExportPlan) -> bool:
    """Return whether a reader can click."""
    method = get_method(plan.method)
    return not isinstance(method, SliceMethod) or "point" in method.prompts


def _row(plan: ExportPlan, digest: str) -> Row:
    return {"kind": "load", "method": plan.method, "size": plan.size, "weights": plan.weights.kind, "manifest": digest,
            "backend": "triton", "device": "cpu", "precision": "fp32"}  # fmt: skip


# --- Readers on a server ---


def _embedded_rows(
    export: Path, plan: ExportPlan, row: Row, work: Workload, fits: bool, machine: Machine, say: Say
) -> list[Row]:
    """Serve an export on this machine's loopback, and return what readers met there, or why nothing ran."""
    from samkit.triton_models.repository import write_repository
    from samkit.triton_models.server import EmbeddedServer

    say(f"{plan.method}: a server ...")
    try:
        with tempfile.TemporaryDirectory(prefix="sam-bench-load-") as folder:
            repository = Path(folder) / "repository"
            write_repository([export], repository)
            with EmbeddedServer(repository) as server:
                served = Served(f"triton://{server.grpc}/{plan.method}", plan, row, server.pid)
                return _reader_rows(served, work, fits, machine, say)
    except MissingDependencyError as missing:
        return _empty_rows(row, work, work.sessions, plan, "not_run", str(missing))
    except ServingError as error:
        return _empty_rows(row, work, work.sessions, plan, "error", str(error))


def _look_at(url: str, digest: str | None) -> Served:
    """Return what runs at `url`; raises ServingError where it serves another export than that of `digest`."""
    with _open(url) as session:
        found, method, precision, providers = session.manifest, session.method, session.precision, session.providers
    if digest is not None and found.digest != digest:
        raise ServingError(
            f"{url} serves an export of {method.name} with digest {found.digest[:12]}, and the one given has "
            f"{digest[:12]}; give the folder that is served, or leave --export out"
        )
    on_gpu = any(name.lower().startswith(_ON_GPU) for names in providers.values() for name in names)
    device = {"device": "cuda" if on_gpu else "cpu", "precision": precision}
    return Served(url, found.plan, _row(found.plan, found.digest) | device)


_ON_GPU = ("cuda", "tensorrt")


def _open(url: str) -> Session:
    """Return a session on a server."""
    from samkit.runtime import open_session

    return open_session(url, timeout=CALL_SECONDS)


def _reader_rows(served: Served, work: Workload, fits: bool, machine: Machine, say: Say) -> list[Row]:
    """Return the rows of every level of every mode; with `fits`, how calls grow with the number of readers, too."""
    say(f"{served.plan.method}: clicks on a phantom ...")
    with _open(served.url) as session:
        case = with_clicks(_case(served.plan), session, get_method(served.plan.method), POINTS)
    scans = count(1)
    rows: list[Row] = []
    for mode in work.modes:
        own = served.row | _mode(mode, work)
        levels, stopped = climb(partial(_level, served, case, mode, work, scans, machine, say), work, served.plan)
        shared = own | {"scan": _name(case), "limit_ms": work.limit_ms}
        rows += [row for level in levels for row in level_rows(level, shared, case)]
        rows[-1]["note"] = f"{served.plan.method}, {mode}: {stopped or end_of(levels[-1], work, served.plan)}"
        rest = work.sessions[len(levels) :]
        rows += _empty_rows(own, replace(work, modes=(mode,)), rest, served.plan, "not_run", f"not tried: {stopped}")
        if fits:
            grown = over_sessions(levels, [stage for stage in _met(case) if stage in GROWING], mode)
            rows += [scaling_row(own, scaling) for scaling in grown]
    return rows


def end_of(level: Level, work: Workload, plan: ExportPlan) -> str:
    """Return what became of the last level that was asked for, where nothing stopped it before."""
    stage = work.judged(plan)
    most = f"with {level.readers}, the most that were asked for,"
    if not level.samples[stage]:
        return (
            f"{most} no {stage} came up in {level.seconds:.0f} s, so nothing is known of its time; give --seconds more"
        )
    return f"{most} {stage}s stayed within {work.limit_ms:g} ms at p95"


def _case(plan: ExportPlan) -> Case:
    """Return what readers open: a head, or of it a few slices where the method decides on each of them."""
    method = get_method(plan.method)
    case = cost_case(method, plan.config, COST_SHAPES.get(plan.size, COST_SHAPES[None]))
    is_short = isinstance(method, SliceMethod) and method.is_automatic
    return repeated(case, AUTOMATIC_SLICES) if is_short else case


def _name(case: Case) -> str:
    volumes = list(case.volumes.values())
    times = f"{len(volumes)} x " if len(volumes) > 1 else ""
    return f"{case.name}, {times}{' x '.join(map(str, case.shape))} {volumes[0].array.dtype.name}"


def _met(case: Case) -> tuple[str, ...]:
    """Return the stages that a reader comes through."""
    return STAGES if len(case.clicks) > 1 else STAGES[:2]


def _level(
    served: Served, case: Case, mode: str, work: Workload, scans: count[int], machine: Machine, say: Say, readers: int
) -> Level:
    time.sleep(REST_SECONDS)
    machine.sample()
    think_s = work.think_s if mode == "think" else None
    crowd = [Reader(number, case, partial(_open, served.url), scans, think_s) for number in range(readers)]
    level = run_level(crowd, work.seconds, served.pid)
    slowest = ", ".join(
        f"{stage} {percentiles([1e3 * value for value in level.samples[stage]])['p95_ms']:.0f}"
        for stage in STAGES
        if level.samples[stage]
    )
    say(f"{served.plan.method}, {mode}, {readers} at once: p95 [ms] {slowest}; {level.clicks_per_second:.2f} clicks/s")
    return level


def climb(run: Callable[[int], Level], work: Workload, plan: ExportPlan) -> tuple[list[Level], str]:
    """Return the levels that were run, and why they went no further; the list of sessions may have ended."""
    levels: list[Level] = []
    for readers in work.sessions:
        levels.append(run(readers))
        if stopped := why_stop(levels[-1], work.judged(plan), work.limit_ms):
            return levels, stopped
    return levels, ""


def why_stop(level: Level, stage: str, limit_ms: float) -> str | None:
    """Return why more readers make no sense after a level, None where they do."""
    with_readers = f"with {level.readers} reader{'s' * (level.readers > 1)}"
    if level.errors:
        return f"{with_readers} {errors_in_words(level.errors)}"
    times = level.samples[stage]
    if times and (p95 := percentiles([1e3 * value for value in times])["p95_ms"]) > limit_ms:
        return f"{with_readers} the 95th percentile of a {stage} was {p95:.0f} ms, above the limit of {limit_ms:g}"
    return None


def errors_in_words(errors: Mapping[str, int]) -> str:
    """Return what failed, as part of a sentence.

    >>> errors_in_words({"AtCapacity": 3})
    'calls failed: AtCapacity 3 times'
    """
    return f"calls failed: {', '.join(f'{name} {times} times' for name, times in sorted(errors.items()))}"


# --- Rows ---


def _mode(mode: str, work: Workload) -> Row:
    think = {"think_s": work.think_s} if mode == "think" else {}
    return {"mode": mode, **think, "identity": ["mode", *think, "sessions"]}


def level_rows(level: Level, row: Row, case: Case) -> list[Row]:
    """Return one row for each stage that a reader comes through; what did not come up says so."""
    shared = row | {
        "sessions": level.readers,
        "sessions_held": level.held,
        "seconds": significant(level.seconds, 4),
        "clicks_per_second": significant(level.clicks_per_second, 4) if case.clicks else None,
        "errors": dict(level.errors),
        "server_rss_mb": None if level.server_mb is None else level.server_mb["rss"],
        "server_pss_mb": None if level.server_mb is None else level.server_mb["pss"],
        "client_cpu_share": significant(level.client_share, 3),
        "server_cpu_share": None if level.server_share is None else significant(level.server_share, 3),
    }
    return [shared | {"stage": stage} | _figures(level, stage) for stage in _met(case)]


def _figures(level: Level, stage: str) -> Row:
    milliseconds = [1e3 * value for value in level.samples[stage]]
    if milliseconds:
        kept = [significant(value) for value in spread(milliseconds, MOST_SAMPLES)]
        return {**percentiles(milliseconds), "count": len(milliseconds), "samples_ms": kept}
    if level.errors:
        return {"error": f"no {_words(stage)} was answered, {errors_in_words(level.errors)}; see the server's log"}
    return {"not_run": f"no {_words(stage)} came up in {level.seconds:.0f} s; give --seconds more"}


def _words(stage: str) -> str:
    return stage.replace("_", " ")


def _empty_rows(row: Row, work: Workload, sessions: Sequence[int], plan: ExportPlan, key: str, why: str) -> list[Row]:
    """Return a row for each level that was not run, of the stage that decides about a level."""
    stage = work.judged(plan)
    return [
        row | _mode(mode, work) | {"stage": stage, "sessions": readers, key: why}
        for mode in work.modes
        for readers in sessions
    ]


def scaling_row(row: Row, scaling: Scaling) -> Row:
    """Return the row of one fit; readers' rows keep the mode that they were met in."""
    identity = [key for key in row.get("identity", ()) if key != "sessions"]
    figures = {"not_run": lack} if (lack := scaling.lack) else scaling.figures(MOST_SAMPLES)
    return row | {"stage": scaling.name, "identity": identity} | figures


# --- Calls in-process ---


def _scaling_rows(
    export: Path, plan: ExportPlan, row: Row, scaling: Sequence[str], rounds: int, machine: Machine, say: Say
) -> list[Row]:
    """Return how calls on an export grow over VOLUME, SLICES and CLICKS, as far as its method has them."""
    from samkit.runtime import open_session

    own = row | {"backend": "onnxruntime"}
    rows: list[Row] = []
    if not (wanted := [over for over in scaling if over != SESSIONS]):
        return rows
    session: Any = open_session(export)
    with session:
        method = get_method(plan.method)
        case = cost_case(method, plan.config, SCALING_SHAPES.get(plan.size or "", SCALING_SHAPE))
        case = case if case.across is None else repeated(case, 1)
        case = with_clicks(case, session, method, MOST_CLICKS)
        for over in wanted:
            machine.sample()
            grown = _grown(over, session, case, own, rounds)
            rows += grown
            for one in grown:
                say(f"{plan.method}: {one['stage']}: {_verdict(one)}")
    return rows


def _grown(over: str, session: Any, case: Case, row: Row, rounds: int) -> list[Row]:
    """Return the rows of calls over one of VOLUME, SLICES and CLICKS, or one that says why there is nothing."""
    if why := _lacks(over, case):
        return [row | {"stage": f"click over {over}", "not_run": f"{row['method']} {why}"}]
    try:
        return [scaling_row(row, found) for found in _OVER[over](session, case, rounds)]
    except SamkitError as error:
        return [row | {"stage": f"click over {over}", "error": str(error)}]


def _verdict(row: Row) -> str:
    """Return the exponent of a row in words, or why it has none."""
    if "scaling" not in row:
        return str(row.get("not_run", row.get("error")))
    fit = row["scaling"]["exponent"]
    return f"exponent {fit['value']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})"


_OVER: Mapping[str, Callable[[Any, Case, int], list[Scaling]]] = {
    VOLUME: over_volume,
    SLICES: over_slices,
    CLICKS: over_clicks,
}


def _lacks(over: str, case: Case) -> str | None:
    """Return why nothing can be timed over this, None where it can."""
    if over == VOLUME and case.across is not None:
        return "works slice by slice; what counts is their number"
    if over == SLICES and case.across is None:
        return "works on volumes, not on slices"
    if over == CLICKS and not case.clicks:
        return "takes no clicks"
    return None
