"""`sam-bench load`: readers on a Triton server, more and more of them, and how the cost of a call grows."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from samkit.benchmarks.load.workload import MODES, SCALINGS, Workload
from samkit.command import show_progress, typed_words
from samkit.errors import OptionError

if TYPE_CHECKING:
    from samkit.benchmarks.record.rows import Absent, LoadRow
    from samkit.benchmarks.record.run import Measured, Run

_POSITIVE = click.FloatRange(min=0, min_open=True)


def _numbers(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        found = tuple(map(int, text.split(",")))
    except ValueError:
        found = ()
    if not found or [0, *found] != sorted({0, *found}):
        raise click.BadParameter(f"'{text}' are no numbers that go up, such as 1,2,4,8")
    return found


def _scalings(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    words = tuple(word for word in text.split(",") if word and word != "none")
    if unknown := [word for word in words if word not in SCALINGS]:
        raise click.BadParameter(f"'{unknown[0]}' is none of {', '.join(SCALINGS)}; or none")
    return words


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
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="Samples at each size.")
@click.option("--show-names", is_flag=True, help="Name folders in the run, which else go by the option.")
@click.option("--json", "out", default=Path("bench/load.json"), show_default=True, help="Where the run is written.",
              type=click.Path(dir_okay=False, path_type=Path))  # fmt: skip
def command(
    exports: tuple[Path, ...], server: str | None, not_loopback: bool, out: Path, show_names: bool, **asked: Any
) -> Measured:
    """Readers on a Triton server: sessions held, clicks per second, percentiles, memory; how cost grows."""
    if not exports and server is None:
        raise click.UsageError("there is nothing to serve; give --export DIR, or --server URL of what is served")
    if len(exports) > 1 and server is not None:
        raise click.UsageError("--server serves one export, and several are given; give that one alone, or none")
    if server is not None and not not_loopback:
        check_own_machine(server)
    from samkit.benchmarks.record.rows import Absent
    from samkit.benchmarks.record.run import Measured

    show_progress(quiet=False)
    run = replace(
        measure_load(exports, Workload(**asked), server), command=("sam-bench", *typed_words(show_paths=show_names))
    )
    failed = [row.reason for row in run.rows if isinstance(row, Absent) and row.is_failure]
    parts = f"{len(failed)} part{'s' * (len(failed) > 1)} failed, the first"
    return Measured(run, out, failures=tuple(f"{parts}: {why} ({out} has what was measured)" for why in failed[:1]))


def check_own_machine(url: str) -> None:
    """Raise OptionError unless `url` is one of this machine's own addresses; PromptError where it is none."""
    from samkit.runtime.client.triton_transport import Address

    server = Address.parse(url).server
    host = server.rpartition(":")[0].strip("[]")
    try:
        is_own = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = host == "localhost"
    if not is_own:
        raise OptionError(
            f"{server} is not on this machine, and readers by the dozen keep others from their work there; give a "
            "loopback address, or {not_loopback} where the server is yours to load",
            options=("not_loopback",),
        )


def measure_load(exports: Sequence[Path], work: Workload, server: str | None = None) -> Run:
    """Return what readers met on a server of each export, or on `server`, which has the only one; and how cost grows.

    What can't be measured is a row, too. Raises ManifestError for what is no export and, where `server` is given,
    ServerUnreachable and ServingError where nothing answers there or something else is served.
    """
    from samkit.benchmarks.load.levels import Endpoint, embedded_rows, reader_rows
    from samkit.benchmarks.load.scaling import growth_rows
    from samkit.benchmarks.measure.machine import Machine, finished_run
    from samkit.benchmarks.record.run import describe_export
    from samkit.manifest import Export

    started = datetime.now(UTC)
    opened = [Export.open(folder, verify=False) for folder in exports]
    described = [describe_export(export.manifest) for export in opened]
    rows: list[LoadRow | Absent] = []
    with Machine() as machine:
        if server is not None:
            found = Endpoint.look_at(server, *opened)
            rows += reader_rows(found, work, machine)
            plan = found.plan
            served = {"method": plan.method, "size": plan.size, "weights": plan.weights.kind,
                      "demonstration": plan.is_demonstration, "manifest": found.identity.manifest}  # fmt: skip
            described = described or [served]
        for export in opened:
            if server is None:
                rows += embedded_rows(export, work, machine)
            rows += growth_rows(export, work, machine)
        described_machine = machine.describe()
    notes = (
        "Scans are phantoms, sent anew by each reader; a click is timed until its whole mask is there.",
        "Readers and server shared one machine, over loopback: figures are what both together held."
        if server is None
        else "The server ran already, so its memory and its share of the processors are not known.",
        *(row.note for row in rows if row.note is not None),
    )
    return finished_run("load", started, described, described_machine, rows, notes)
