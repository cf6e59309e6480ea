"""Whether a server that loses its processes loses a click: readers click while stubs and the server itself are killed.

    python -m tools.outages [--export FOLDER] [--clients 8] [--seconds 180] [--every 20] [--killed 50] [--sessions 200]

An export (without one, M-SAM's demonstration) is served by `sam-serve start`, as a hospital would. Three parts:

1. Readers click, undo, redo and rest, each on a scan of their own. Every so often a random process of a model gets
   SIGKILL, once the server itself. Every mask must be the one that the same acts give in-process, nobody may get an
   error, and no probe may hear "ready" later than 0.25 s after a death, until all runs again.
2. Programs with sessions, in the middle of opening or of a click, get SIGKILL: all places are free within 70 s.
3. Sessions are opened, clicked once and closed, and memory stays what it was.

Each miss is a sentence, and then the exit code is 1. Times depend on the machine; misses of masks do not.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import numpy as np

from samkit.benchmarks.cases.phantom_scans import COST_SHAPES, brighter, cost_case, with_clicks
from samkit.benchmarks.measure.machine import load, processor
from samkit.benchmarks.measure.processes import memory_of
from samkit.command import run_command, show_progress
from samkit.errors import SamkitError
from samkit.geometry import Volume
from samkit.manifest import Export
from samkit.prompts import FOREGROUND, Point
from samkit.runtime import Session, open_session, opening
from samkit.triton_models.limits import Limits
from samkit.triton_models.processes import stubs
from samkit.triton_models.repository import write_repository
from tools.serving import export_method, get

LATEST_LIE = 0.25
"""How long after a death a probe may still hear "ready" [s]."""
PLACES_FREE = 70.0
"""Within how long the places of clients that were killed are free [s]."""
MOST_GROWTH = 1.1
"""Memory at the end, as a part of what it was."""
CLICKS = 3
IN_ONE = 10
"""Sessions of one program that is killed."""


@dataclass
class Served:
    """A running `sam-serve start`."""

    process: subprocess.Popen[str]
    grpc: str
    """As `open_session` takes it."""
    http: str
    """Host and port."""
    metrics: str
    """Host and port."""

    @property
    def server(self) -> int | None:
        """Return the process of tritonserver; None while there is none."""
        with suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def is_ready(self) -> bool:
        """Return what a probe hears."""
        try:
            return get(self.http, "/v2/health/ready")[0] == HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def sessions(self) -> int:
        """Return how many places are taken, by the page of metrics."""
        _, page = get(self.metrics, "/metrics")
        counts = re.findall(r"^samkit_sessions_open\{[^}]*\} (\S+)", page.decode(), re.MULTILINE)
        return int(sum(map(float, counts)))

    def memory(self) -> float:
        """Return what all processes of it hold [MB]."""
        return float(memory_of(self.process.pid)["pss"])


@contextmanager
def serving(repository: Path, log: Path) -> Iterator[Served]:
    """Start a server on free ports, which writes its messages to `log`, and stop it."""
    command = [sys.executable, "-m", "samkit.triton_models.cli", "start", str(repository), "--restarts", "1000"]
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    with log.open("w") as messages:
        process = subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, stderr=messages, text=True)
    lines = process.stdout
    if lines is None or lines.readline() != "READY\n":
        raise SamkitError(f"the server did not start: {_last_line(log)}")
    grpc, over_http, metrics = (lines.readline().strip() for _ in range(3))
    try:
        yield Served(process, grpc, urlsplit(over_http).netloc, urlsplit(metrics).netloc)
    finally:
        process.terminate()
        process.wait()


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]


# --- 1. Deaths while readers click ---


@dataclass
class Reader:
    """One who clicks, in a thread."""

    url: str
    scan: Volume
    clicks: tuple[Point, ...]
    right: list[np.ndarray]
    """The masks of these acts, in-process."""
    acts: int = 0
    wrong: int = 0
    restored: int = 0
    errors: list[str] = field(default_factory=list)

    def work(self, until: float, chance: np.random.Generator) -> None:
        """Go through the acts again and again; the last time is never cut short."""
        try:
            with open_session(self.url) as session:
                session.set_image(self.scan)
                while time.monotonic() < until:
                    for mask, right in zip(self._masks(session), self.right, strict=True):
                        self.acts += 1
                        self.wrong += not np.array_equal(mask, right)
                    session.reset()
                    time.sleep(2 * chance.random())
        except SamkitError as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def _masks(self, session: Session) -> Iterator[np.ndarray]:
        for update in acts_on(session, self.clicks):
            self.restored += update.restored
            yield update.mask


def acts_on(session: Session, clicks: tuple[Point, ...]) -> Iterator[Any]:
    """Give the update of each click, with an undo and a redo before the last."""
    for number, point in enumerate(clicks):
        if number == len(clicks) - 1:
            yield session.undo()
            yield session.redo()
        yield session.click(point.index, point.label == FOREGROUND, structure=point.structure)


@dataclass
class Death:
    """One process that was killed."""

    model: str
    at: float
    last_ready: float = 0.0
    """How long after it a probe heard "ready" for the last time before all ran again [s]."""
    back: float | None = None
    """How long after it one heard "ready" again [s]."""


def kill_and_probe(served: Served, model: str, pid: int) -> Death:
    """Kill a process, and probe until all runs again."""
    death = Death(model, time.monotonic())
    os.kill(pid, signal.SIGKILL)
    was_down = False
    while death.back is None and (now := time.monotonic() - death.at) < 60:
        ready = served.is_ready()
        if ready and was_down:
            death.back = time.monotonic() - death.at
        elif ready:
            death.last_ready = now
        was_down = was_down or not ready
        time.sleep(0.01)
    return death


def let_die(
    served: Served, readers: list[Reader], seconds: float, every: float, chance: np.random.Generator
) -> dict[str, Any]:
    """Have readers work while processes die; return what came of it."""
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=reader.work, args=(until, np.random.default_rng(number)))
        for number, reader in enumerate(readers)
    ]
    for thread in threads:
        thread.start()
    deaths: list[Death] = []
    memory: list[float] = []
    half: float | None = until - seconds / 2
    time.sleep(every / 2)
    while time.monotonic() < until:
        server = served.server
        if server is None:
            raise SamkitError("tritonserver is gone and was not started again; run again with --log and read its end")
        if half is not None and time.monotonic() > half:
            victim, half = (server, "tritonserver"), None
        else:
            there = sorted(stubs(server).items())
            victim = there[chance.integers(len(there))]
        memory.append(served.memory())  # as all readers have their sessions
        death = kill_and_probe(served, victim[1], victim[0])
        deaths.append(death)
        click.echo(f"  {death.model}: last ready {death.last_ready:.3f} s, back {death.back} s", err=True)
        time.sleep(max(0.0, min(death.at + every, until) - time.monotonic()))
    for thread in threads:
        thread.join()
    return {
        "deaths": [vars(death) for death in deaths],
        "acts": sum(reader.acts for reader in readers),
        "wrong": sum(reader.wrong for reader in readers),
        "restored": sum(reader.restored for reader in readers),
        "errors": [error for reader in readers for error in reader.errors],
        "memory_mb": memory,
    }


# --- 2. Clients that are killed ---


def hold(url: str, count: int) -> None:
    """Open sessions in threads for good: one half clicks, the other opens and opens again."""
    case = np.load(sys.argv[1], allow_pickle=False)
    scan, place = Volume(case["array"], case["affine"]), tuple(case["place"].tolist())

    def click_for_ever() -> None:
        session = open_session(url)
        session.set_image(scan)
        while True:
            session.click(place)

    def open_for_ever() -> None:
        while True:
            open_session(url).set_image(scan)

    for number in range(count):
        threading.Thread(target=click_for_ever if number % 2 else open_for_ever).start()


def kill_clients(served: Served, scan: Volume, point: Point, count: int, chance: np.random.Generator) -> dict[str, Any]:
    """Kill programs that hold `count` sessions, and wait until their places are free."""
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder) / "case.npz"
        np.savez(case, array=scan.array, affine=scan.affine, place=np.array(point.index))
        script = f"from tools.outages import hold; hold({served.grpc!r}, {IN_ONE})"
        programs = [
            subprocess.Popen([sys.executable, "-c", script, str(case)], stderr=subprocess.DEVNULL)
            for _ in range(max(1, count // IN_ONE))
        ]
        most = 0
        began = time.monotonic()
        while most < count // 2 and time.monotonic() - began < 120:  # they need seconds to import
            most = max(most, served.sessions())
            time.sleep(0.2)
        for program in programs:
            time.sleep(chance.random())
            most = max(most, served.sessions())
            program.kill()
            program.wait()
    killed = time.monotonic()
    while (left := served.sessions()) and time.monotonic() - killed < 2 * PLACES_FREE:
        time.sleep(0.5)
    return {"most": most, "left": left, "free_after": time.monotonic() - killed}


# --- 3. Sessions that come and go ---


def come_and_go(served: Served, scan: Volume, point: Point, count: int) -> dict[str, Any]:
    """Open, click and close sessions one after the other; return memory [MB] every 20."""
    memory = []
    for number in range(count + 1):
        if number % 20 == 0:
            memory.append(served.memory())
        with open_session(served.grpc) as session:
            session.set_image(scan)
            session.click(point.index)
    return {"memory_mb": memory}


@click.command()
@click.option("--export", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Of a method of volumes.")
@click.option("--clients", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=180.0, show_default=True, type=click.FloatRange(min=1), help="Of the first part.")
@click.option("--every", default=20.0, show_default=True, type=click.FloatRange(min=1), help="Between two deaths [s].")
@click.option(
    "--killed", default=50, show_default=True, type=click.IntRange(min=0), help="Sessions whose program dies."
)
@click.option("--sessions", default=200, show_default=True, type=click.IntRange(min=0), help="That come and go.")
@click.option("--seed", default=0, show_default=True, help="Of what dies and when.")
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="Keep the server's messages.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures.")
def outages(
    export: Path | None,
    clients: int,
    seconds: float,
    every: float,
    killed: int,
    sessions: int,
    seed: int,
    log: Path | None,
    out: Path | None,
) -> None:
    """Print figures of each part; exit code 1 when something was lost."""
    show_progress(quiet=False, timed=True)
    logging.getLogger(opening.__name__).setLevel(logging.ERROR)  # hundreds of sessions would say what weights these are
    record: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "load_before": load()}
    with tempfile.TemporaryDirectory() as name:
        work, chance = Path(name), np.random.default_rng(seed)
        folder = export_method("m-sam", "small", None, None, work) if export is None else export
        readers = _readers(Export.open(folder), clients)
        write_repository([folder], work / "repository", limits=Limits(max_sessions=2 * max(killed, clients)))
        with serving(work / "repository", work / "server.log" if log is None else log) as served:
            for reader in readers:
                reader.url = served.grpc
            first = readers[0]
            parts: dict[str, Callable[[], dict[str, Any]]] = {
                "deaths": lambda: let_die(served, readers, seconds, every, chance),
                "clients": lambda: kill_clients(served, first.scan, first.clicks[0], killed, chance) if killed else {},
                "sessions": lambda: come_and_go(served, first.scan, first.clicks[0], sessions) if sessions else {},
            }
            for part, run in parts.items():
                click.echo(f"{part} ...", err=True)
                record[part] = run()
                click.echo(json.dumps({part: record[part]}))
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
    misses = find_misses(record)
    for sentence in misses:
        click.echo(sentence, err=True)
    if misses:
        raise SamkitError(f"{len(misses)} goals were missed, named above")


def _readers(export: Export, count: int) -> list[Reader]:
    """Return readers with scans of their own and the masks that they must get."""
    shape = COST_SHAPES[export.plan.size]
    with open_session(export.folder) as inside:
        case = with_clicks(cost_case(export.method, export.config, shape), inside, export.method, CLICKS)
        readers = []
        for number in range(count):
            scan = brighter(case, number).first
            inside.set_image(scan)
            right = [update.mask for update in acts_on(inside, case.clicks)]
            readers.append(Reader("", scan, case.clicks, right))
    return readers


def find_misses(record: dict[str, Any]) -> list[str]:
    """Return a sentence for each thing that was lost."""
    deaths, clients, sessions = record["deaths"], record["clients"], record["sessions"]
    found = [f"a reader got {error}" for error in deaths["errors"]]
    if deaths["wrong"]:
        found.append(f"{deaths['wrong']} of {deaths['acts']} masks are not those of the same acts in-process")
    for death in deaths["deaths"]:
        if death["back"] is None:
            found.append(f"60 s after {death['model']} died nothing was ready again")
        if death["last_ready"] > LATEST_LIE:
            found.append(f"{death['last_ready']:.2f} s after {death['model']} died a probe heard that all is ready")
    if clients and (clients["left"] or clients["free_after"] > PLACES_FREE):
        seconds, left = clients["free_after"], clients["left"]
        found.append(f"{seconds:.0f} s after their clients were killed {left} places are taken")
    for part in (deaths, sessions):
        memory = part.get("memory_mb")
        if memory and memory[-1] > MOST_GROWTH * memory[0]:
            found.append(f"memory grew from {memory[0]:.0f} to {memory[-1]:.0f} MB")
    return found


def main() -> None:
    """Run the command."""
    run_command(outages, "outages")


if __name__ == "__main__":
    main()
