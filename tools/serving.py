"""Measure what serving costs: clicks through a server beside the same clicks in-process, first masks, and memory.

    python -m tools.serving [--method m-sam] [--size full|small|tiny] [--clicks 10] [--rounds 5]
        [--sessions 200] [--export FOLDER | --recipe FILE] [--scan FILE --point I,J,K,+ ...] [--json FILE]

A method of volumes is exported, written as a repository and served by the embedded server on this machine, on a phantom
or a scan that is given with its points. Three parts:

1. Clicks. Three sessions on one scan, in-process, over gRPC and over HTTP, are given the same clicks, click by click in
   turns; one sample is `click()` and the whole `.mask`. Embeddings are there already. All masks must be equal.
2. From opening a session to the first mask: on a scan that the server never saw, and by a second session on the same
   scan while the first is open, which must not run the encoder.
3. Memory of all processes of the server while sessions are opened, clicked once and closed one after the other.

Weights are the demonstration ones for `small`; for other sizes seeded random ones, or a recipe's (fp16.py says what
that is). The goal for clicks is printed and not judged, because a shared machine is never twice the same.
"""

from __future__ import annotations

import gc
import http.client
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from samkit.benchmarks.cases.phantom_scans import COST_SHAPES, brighter, click_on, cost_case, with_clicks
from samkit.benchmarks.measure.machine import PRODUCT_GFLOP, load, matrix_product, processor, versions
from samkit.benchmarks.measure.processes import memory_of
from samkit.benchmarks.measure.turns import seconds_of, take_round, take_turns
from samkit.benchmarks.record.statistics import median_difference
from samkit.command import run_command, show_progress
from samkit.errors import PromptError, SamkitError, ServingError
from samkit.export.export import run_export
from samkit.export.plan import plan_export
from samkit.geometry import Volume
from samkit.imageio.reading import read_scan
from samkit.manifest import Export
from samkit.methods import VolumeMethod, get_method, list_methods
from samkit.prompts import Point, parse_point
from samkit.protocols.case import Case
from samkit.runtime import Session, open_session, opening
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server import EmbeddedServer
from tools.fp16 import read_recipe, write_weights

GOAL_MS = 10.0
"""How much longer the median click through the server may take than the median click in-process."""
EVERY = 20
"""Sessions between two readings of memory."""
IN_PROCESS, GRPC, HTTP = "in-process", "gRPC", "HTTP"
SERVED = (GRPC, HTTP)
STAGES = ("crop", "encode", "decode", "merge", "restore")
"""Stages of a click, as every session tells them."""
PACKAGES = ("samkit", "numpy", "onnxruntime", "tritonclient", "grpcio", "nvidia-pytriton")


@click.command()
@click.option(
    "--method",
    "name",
    default="m-sam",
    show_default=True,
    type=click.Choice([name for name in list_methods() if isinstance(get_method(name), VolumeMethod)]),
)
@click.option(
    "--size",
    default="full",
    show_default=True,
    type=click.Choice([size for size in COST_SHAPES if size]),
    help="small has the demonstration weights, the others random ones; tiny shows that it works.",
)
@click.option("--clicks", default=10, show_default=True, type=click.IntRange(min=1), help="Clicks on the phantom.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Turns of all clicks.")
@click.option("--sessions", default=200, show_default=True, type=click.IntRange(min=0), help="For memory; 0: none.")
@click.option(
    "--export",
    "export",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="An export that is there already; --size says nothing then but how large the phantom is.",
)
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Weights, as in fp16.")
@click.option("--keys", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the listings.")
@click.option("--scan", type=click.Path(exists=True, path_type=Path), help="A scan in place of the phantom.")
@click.option("--point", "points", multiple=True, metavar="I,J,K,+", help="A click on that scan.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write figures and all samples.")
def serving(
    name: str,
    size: str,
    clicks: int,
    rounds: int,
    sessions: int,
    export: Path | None,
    recipe: Path | None,
    keys: Path | None,
    scan: Path | None,
    points: tuple[str, ...],
    out: Path | None,
) -> None:
    """Print one table for each part."""
    show_progress(quiet=False, timed=True)
    logging.getLogger(opening.__name__).setLevel(logging.ERROR)  # hundreds of sessions would say what weights these are
    if (scan is None) != (not points):
        raise click.UsageError("--scan and --point go together: clicks on a phantom are simulated, on a scan given")
    if export is not None and recipe is not None:
        raise click.UsageError("--export brings its weights, so --recipe has nothing to fill; leave one out")
    with tempfile.TemporaryDirectory() as work:
        folder = export_method(name, size, recipe, keys, Path(work)) if export is None else export
        gc.collect()  # the exporter's programs hold the network in cycles
        given = None if scan is None else read_case(scan, points)
        record = measure(
            Export.open(folder), Path(work) / "repository", given, COST_SHAPES[size], clicks, rounds, sessions
        )
    record["command"] = ["python", "-m", "tools.serving", *sys.argv[1:]]
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
    show(record)


def export_method(name: str, size: str, recipe_path: Path | None, keys: Path | None, work: Path) -> Path:
    """Export a method in float32 below `work` and return the folder."""
    files: dict[str, Path] = {}
    if recipe_path is not None:
        keys = recipe_path.resolve().parent.parent / "keys" if keys is None else keys
        files = write_weights(get_method(name), size, read_recipe(recipe_path), keys, work)
    checkpoint = files.pop("checkpoint", None)
    plan = plan_export(name, checkpoint=checkpoint, others=files, size=size if checkpoint is None else None)
    run_export(plan, work / name)
    return work / name


def read_case(path: Path, texts: Sequence[str]) -> Case:
    """Return a scan and points on it as sam-segment takes them; raises InputRefused and PromptError."""
    points = [parse_point(text) for text in texts]
    in_volume = tuple(point for point in points if isinstance(point, Point))
    if len(in_volume) < len(points):
        raise PromptError("a click on a scan has three indices; give --point I,J,K,+ or I,J,K,-")
    return Case("scan", {"": read_scan(path).volume}, {}, clicks=in_volume)


def measure(
    export: Export,
    repository: Path,
    case: Case | None,
    shape: tuple[int, int, int],
    clicks: int,
    rounds: int,
    sessions: int,
) -> dict[str, Any]:
    """Serve an export and return the record of all parts; without a `case` clicks are simulated on a phantom."""
    plan = export.plan
    name = plan.method.replace("-", "_")
    write_repository([export.folder], repository)
    record: dict[str, Any] = {
        "method": plan.method, "size": plan.size, "weights": plan.weights.kind, "refinement": plan.refinement,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load_before": load()},
        "versions": versions(PACKAGES),
    }  # fmt: skip
    with ExitStack() as stack:
        product = stack.enter_context(matrix_product(os.cpu_count() or 1))
        inside = stack.enter_context(open_session(export.folder))
        if case is None:
            click.echo("clicks on the phantom ...", err=True)
            case = with_clicks(cost_case(export.method, export.config, shape), inside, export.method, clicks)
        record |= {"scan": case.name, "shape": list(case.shape), "dtype": case.first.array.dtype.name,
                   "clicks": len(case.clicks)}  # fmt: skip
        click.echo("server ...", err=True)
        server = stack.enter_context(EmbeddedServer(repository))
        targets = {
            GRPC: f"triton://{server.grpc}/{plan.method}",
            HTTP: f"triton+http://{server.http}/{plan.method}",
        }
        click.echo("1. clicks ...", err=True)
        with ExitStack() as opened:
            held = {IN_PROCESS: inside}
            for way in SERVED:
                held[way] = opened.enter_context(open_session(targets[way]))
            record["click"] = measure_clicks(held, case, rounds, product)
        click.echo("2. first masks ...", err=True)
        numbers = count(1)
        encoder = Encoder(server.http, f"{name}_image_encoder")
        record["first_mask"] = measure_first_masks(export.folder, targets, case, rounds, numbers, encoder)
        if sessions:
            click.echo("3. memory ...", err=True)
            record["memory"] = measure_memory(server.pid, targets[GRPC], case, sessions, numbers)
    gflops = PRODUCT_GFLOP / float(np.median(record["click"]["samples"]["product"]))
    record["machine"] |= {"gemm_gflops": round(gflops, 1), "load_after": load()}
    return record


# --- 1. Clicks ---


def measure_clicks(
    sessions: Mapping[str, Session], case: Case, rounds: int, product: Callable[[], object]
) -> dict[str, Any]:
    """Return seconds of every click, of stages as the sessions tell them, and of calls that do nothing.

    `sessions` are by way, IN_PROCESS and SERVED; with every round there is one run of `product`. Raises SamkitError
    where two ways give different masks.
    """
    samples: dict[str, list[float]] = {way: [] for way in sessions}
    stages: dict[str, list[dict[str, float]]] = {way: [] for way in sessions}
    empty: dict[str, list[float]] = {way: [] for way in sessions if way != IN_PROCESS}
    products: list[float] = []
    crops: list[int] = []
    changed: list[int] = []
    for session in sessions.values():
        session.set_image(case.first)
        for point in case.clicks:  # nothing is encoded later, and memory is there
            click_on(session, point)
        session.reset()
    busy = load()
    for turn in range(rounds):
        products += take_round({"product": partial(seconds_of, product)}, turn).values()
        for number, point in enumerate(case.clicks):
            clicked = take_round({way: partial(_click, sessions[way], point) for way in sessions}, turn + number)
            masks = {way: mask for way, (_, mask) in clicked.items()}
            for way, session in sessions.items():
                samples[way].append(clicked[way][0])
                stages[way].append(dict(session.steps[-1].seconds))
            crops.append(sessions[IN_PROCESS].steps[-1].crops or 0)
            changed.append(sessions[IN_PROCESS].last_update().change[1].size)
            if different := [way for way, mask in masks.items() if not np.array_equal(mask, masks[IN_PROCESS])]:
                raise SamkitError(
                    f"click {number + 1} gives another mask over {', '.join(different)} than in-process, so there is "
                    "nothing to compare; run the server's tests"
                )
            checks = {way: partial(seconds_of, partial(sessions[way].check, point)) for way in empty}
            for way, seconds in take_round(checks, turn + number).items():
                empty[way].append(seconds)
        for session in sessions.values():
            session.reset()
    return {
        "rounds": rounds,
        "load_before": busy,
        "figures": click_figures(samples, stages, empty),
        "samples": {**samples, "product": products},
        "stages": stages,
        "empty": empty,
        "crops": crops,  # in use after every click: each that holds the click was decoded once, and each that followed
        "changed": changed,  # voxels of the box that changed, which travel as bytes
    }


def _click(session: Session, point: Point) -> tuple[float, np.ndarray]:
    """Return how long a click and its whole mask took, and the mask."""
    start = time.perf_counter()
    mask = click_on(session, point)
    return time.perf_counter() - start, mask


def click_figures(
    samples: Mapping[str, Sequence[float]],
    stages: Mapping[str, Sequence[Mapping[str, float]]],
    empty: Mapping[str, Sequence[float]],
) -> dict[str, dict[str, Any]]:
    """Return figures [ms] by way: percentiles, what lies between it and in-process, medians of stages."""
    found: dict[str, dict[str, Any]] = {}
    for way, seconds in samples.items():
        figures: dict[str, Any] = {"p50": milliseconds(seconds, 50), "p95": milliseconds(seconds, 95)}
        figures["stages"] = {stage: milliseconds([s[stage] for s in stages[way]], 50) for stage in (*STAGES, "total")}
        if way in empty:
            figures["above_in_process"] = round(figures["p50"] - milliseconds(samples[IN_PROCESS], 50), 2)
            difference = median_difference(seconds, samples[IN_PROCESS])
            figures["interval"] = (round(1e3 * difference.low, 2), round(1e3 * difference.high, 2))
            figures["goal"] = judge(figures["interval"])
            # Of one click each: what the client waited beyond the time that the session itself took
            figures["around"] = milliseconds([t - s["total"] for t, s in zip(seconds, stages[way], strict=True)], 50)
            figures["empty_call"] = milliseconds(empty[way], 50)
        found[way] = figures
    return found


def judge(interval: tuple[float, float]) -> str:
    """Return whether a difference in `interval` [ms] meets the goal, as far as these samples can tell.

    >>> judge((2.0, 5.0)), judge((-100.0, 50.0)), judge((12.0, 20.0))
    ('met', 'not decided: run again on an idle machine', 'missed')
    """
    low, high = interval
    if high <= GOAL_MS:
        return "met"
    return "missed" if low > GOAL_MS else "not decided: run again on an idle machine"


def milliseconds(seconds: Sequence[float] | np.ndarray, percent: float) -> float:
    """Return a percentile of times in seconds [ms].

    >>> milliseconds([0.001, 0.002, 0.004], 50)
    2.0
    """
    return round(1e3 * float(np.percentile(seconds, percent)), 2)


# --- 2. First masks ---


@dataclass(frozen=True)
class Encoder:
    """The model of an encoder, as the server's statistics know it."""

    server: str
    """Host and port of HTTP."""
    model: str

    def runs(self) -> int:
        """Return how many requests it has answered; raises ServingError where the server does not say."""
        _, answer = get(self.server, f"/v2/models/{self.model}/stats")
        return count_runs(answer, self.model)


def get(address: str, path: str) -> tuple[int, bytes]:
    """Return status and content of a page of the server at `address`, host and port."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def count_runs(answer: bytes, model: str) -> int:
    """Return the requests that a model has answered, of all its versions, from the server's JSON."""
    try:
        return sum(int(entry["inference_stats"]["success"]["count"]) for entry in json.loads(answer)["model_stats"])
    except (ValueError, KeyError, TypeError) as error:
        raise ServingError(
            f"the server's statistics of {model} are not in the form of Triton's ({answer[:80]!r}); compare its version"
        ) from error


def measure_first_masks(
    export: Path, targets: Mapping[str, str], case: Case, rounds: int, numbers: count[int], encoder: Encoder
) -> dict[str, Any]:
    """Return seconds from opening to the first mask, by part, and how often the encoder ran for it."""
    busy = load()

    def turn(target: str | Path, states: Sequence[str]) -> list[dict[str, float]]:
        volume, found = brighter(case, next(numbers)).first, []
        with ExitStack() as opened:
            for _ in states:
                before = encoder.runs()
                session, seconds = _first_mask(target, volume, case.clicks[0])
                opened.enter_context(session)
                found.append({**seconds, "encoder_runs": encoder.runs() - before})
        return found

    states = {IN_PROCESS: ("cold",), **dict.fromkeys(targets, ("cold", "warm"))}
    turns = {way: partial(turn, targets.get(way, export), of_way) for way, of_way in states.items()}
    rows: dict[str, list[dict[str, float]]] = {
        f"{way}, {state}": [found[number] for found in measured]
        for way, measured in take_turns(turns, rounds).items()
        for number, state in enumerate(states[way])
    }
    figures = {
        way: {part: milliseconds([row[part] for row in samples], 50) for part in ("open", "scan", "click", "total")}
        | {"encoder_runs": max(row["encoder_runs"] for row in samples)}
        for way, samples in rows.items()
    }
    return {"rounds": rounds, "load_before": busy, "figures": figures, "samples": rows}


def _first_mask(target: str | Path, volume: Volume, point: Point) -> tuple[Session, dict[str, float]]:
    """Return an open session and the seconds that each part of its first mask took."""
    times = [time.perf_counter()]
    session = open_session(target)
    times.append(time.perf_counter())
    session.set_image(volume)
    times.append(time.perf_counter())
    click_on(session, point)
    times.append(time.perf_counter())
    parts = dict(zip(("open", "scan", "click"), np.diff(times).tolist(), strict=True))
    return session, {**parts, "total": times[-1] - times[0]}


# --- 3. Memory ---


def measure_memory(pid: int, target: str, case: Case, sessions: int, numbers: count[int]) -> dict[str, Any]:
    """Return the memory [MB, 10^6 bytes] of a server after every EVERY sessions, and its slope."""
    readings = [{"sessions": 0, **memory_of(pid)}]
    start = time.perf_counter()
    for number in range(1, sessions + 1):
        with open_session(target) as session:
            session.set_image(brighter(case, next(numbers)).first)
            click_on(session, case.clicks[0])
        if number % EVERY == 0:
            readings.append({"sessions": number, **memory_of(pid)})
    return {
        "sessions": sessions,
        "seconds": round(time.perf_counter() - start, 1),
        "readings": readings,
        **{f"{kind}_slope": growth(readings, kind) for kind in ("rss", "pss")},
    }


def growth(readings: Sequence[Mapping[str, Any]], kind: str) -> float | None:
    """Return by how much `kind` grows [MB per 100 sessions], over the second half of `readings`."""
    late = readings[len(readings) // 2 :]  # the first half fills what is kept for later
    if len(late) < 3:
        return None
    sessions, megabytes = ([float(reading[key]) for reading in late] for key in ("sessions", kind))
    return round(100 * float(np.polyfit(sessions, megabytes, 1)[0]), 2)


# --- Tables ---


def show(record: Mapping[str, Any]) -> None:
    """Print one table for each part, and under them what they were measured on."""
    console = Console(width=160)
    shape = " x ".join(str(side) for side in record["shape"])
    console.print(
        f"{record['method']} {record['size']}, {record['weights']} weights, {record['refinement']}; {record['scan']} "
        f"{shape} {record['dtype']}"
    )
    console.print(_click_table(record["click"]["figures"]))
    for way in SERVED:
        figures = record["click"]["figures"][way]
        console.print(
            f"{way}: p50 is {figures['above_in_process']:.1f} ms above in-process, in 95 of 100 cases "
            f"{figures['interval'][0]:.1f} to {figures['interval'][1]:.1f}; the goal, at most {GOAL_MS:g}, is "
            f"{figures['goal']}"
        )
    console.print(_first_mask_table(record["first_mask"]["figures"]))
    if "memory" in record:
        memory = record["memory"]
        console.print(_memory_table(memory["readings"]))
        if memory["rss_slope"] is not None:
            slopes = " and ".join(f"{memory[f'{kind}_slope']} MB of {kind.upper()}" for kind in ("rss", "pss"))
            console.print(f"slope over the second half: {slopes} per 100 sessions")
    machine, loads = record["machine"], [record[part]["load_before"] for part in ("click", "first_mask")]
    console.print(
        f"{machine['processor']}; {machine['cores']} cores; a matrix product in the same rounds: "
        f"{machine['gemm_gflops']} GF/s; load before each part: {', '.join(str(busy) for busy in loads)}"
    )
    console.print("; ".join(f"{package} {number}" for package, number in record["versions"].items()))
    console.print(
        f"{record['click']['rounds']} rounds of {record['clicks']} clicks; means of a click: "
        f"{np.mean(record['click']['crops']):.1f} crops in use, {np.mean(record['click']['changed']) / 1e6:.2f} MB "
        "changed; times are medians but for p95; loopback, no TLS"
    )


def _click_table(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(
        "click and mask", "p50 ms", "p95 ms", "above", "around the session", "empty call", "session total", *STAGES
    )
    for way, found in figures.items():
        table.add_row(
            way,
            f"{found['p50']:.1f}",
            f"{found['p95']:.1f}",
            *(f"{found[key]:.1f}" if key in found else "" for key in ("above_in_process", "around", "empty_call")),
            *(f"{found['stages'][stage]:.1f}" for stage in ("total", *STAGES)),
        )
    return table


def _first_mask_table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("open to first mask", "open ms", "scan ms", "click ms", "total ms", "encoder runs of the server")
    for way, found in figures.items():
        parts = (f"{found[part]:.0f}" for part in ("open", "scan", "click", "total"))
        table.add_row(way, *parts, f"{found['encoder_runs']:.0f}")
    return table


def _memory_table(readings: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("sessions closed", "RSS MB", "PSS MB")
    for reading in readings:
        table.add_row(str(reading["sessions"]), f"{reading['rss']:.0f}", f"{reading['pss']:.0f}")
    return table


def main() -> None:
    """Run the command."""
    run_command(serving, "serving")


if __name__ == "__main__":
    main()
