"""`sam-bench latency`: how long graphs take and how long a reader waits, beside PyTorch, by turns, on one machine.

`graphs.py` and `stages.py` say what of; what can't be measured here has rows that say why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from samkit.benchmarks.latency.settings import BASELINES, PARTS, LatencySettings
from samkit.command import THREADS, show_progress, typed_words
from samkit.errors import OptionError

if TYPE_CHECKING:
    from samkit.benchmarks.record.rows import Absent, LatencyRow
    from samkit.benchmarks.record.run import Measured, Run

_COUNT = click.IntRange(min=1)
logger = logging.getLogger(__name__)


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(map(int, value.split(","))))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of numbers such as 1,4") from None
    if min(found) < 1:
        raise click.BadParameter(f"'{value}' holds a number below 1")
    return found


@click.command()
@click.option("--export", "exports", multiple=True, required=True, help="Folder that sam-export wrote. Repeat it.",
              type=click.Path(exists=True, file_okay=False, path_type=Path))  # fmt: skip
@click.option("--rounds", default=7, show_default=True, type=_COUNT, help="Turns of each backend.")
@click.option("--threads", multiple=True, type=THREADS, help="Repeat it to compare; default: all cores.")
@click.option("--batch", "batches", default="1", show_default=True, callback=_numbers, help="Rows of a graph: 1,4.")
@click.option("--points", default="1", show_default=True, callback=_numbers, help="Points of each row: 1,5.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS,
              help="Repeat it; default: all.")  # fmt: skip
@click.option("--graph", "graphs", multiple=True, help="One graph, such as image_encoder. Repeat it; default: all.")
@click.option("--baseline", "--rival", "baselines", multiple=True, type=click.Choice(BASELINES), default=BASELINES,
              help="What graphs are compared with; default: all.")  # fmt: skip
@click.option("--cold-starts", default=LatencySettings.cold_starts, show_default=True, type=click.IntRange(min=0))
@click.option("--show-names", is_flag=True, help="Name folders in the run, which else go by the option.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), default=Path("bench/latency.json"),
              show_default=True, help="All samples, and what they were measured on.")  # fmt: skip
def command(exports: tuple[Path, ...], out: Path, show_names: bool, **asked: Any) -> Measured:
    """Time graphs and stages of exports beside PyTorch; percentiles, memory, and the share of the machine's limit.

    Exit code 1 where a file or a session of an export failed, or computed something else.
    """
    from samkit.benchmarks.record.rows import Absent
    from samkit.benchmarks.record.run import Measured

    show_progress(quiet=False)
    readings = logging.getLogger("samkit.segment")
    with ExitStack() as quiet:
        quiet.callback(readings.setLevel, readings.level)
        readings.setLevel(logging.WARNING)  # each click of a timed reading would be a line
        run = replace(
            measure_latency(exports, LatencySettings(**asked)),
            command=("sam-bench", *typed_words(show_paths=show_names)),
        )
    absent = [row for row in run.rows if isinstance(row, Absent)]
    ours = [row for row in absent if row.is_failure and row.identity.backend not in BASELINES]
    failures = tuple(
        f"{len(ours)} times are missing of what was exported, the first {first.identity.method} "
        f"{first.identity.graph or first.identity.stage} {first.identity.backend} {first.identity.precision}: "
        f"{first.reason}"
        for first in ours[:1]
    )
    unsettled = tuple(f"UNSETTLED MACHINE: {sentence}" for sentence in run.machine["unsettled"])
    return Measured(run, out, unsettled, failures)


def measure_latency(exports: Sequence[Path], settings: LatencySettings) -> Run:
    """Return the run of all `exports`.

    Raises MissingDependencyError without PyTorch or the device, ManifestError for a folder that is no export or was
    changed, OptionError for a graph that none of them has.
    """
    from samkit.benchmarks.latency.candidates import check_device, rows_of_gpu
    from samkit.benchmarks.latency.graphs import GraphTimer
    from samkit.benchmarks.latency.stages import time_stages
    from samkit.benchmarks.measure.machine import Machine, finished_run
    from samkit.benchmarks.record.run import describe_export
    from samkit.manifest import Export

    check_device(settings.device)
    started = datetime.now(UTC)
    opened = [Export.open(folder) for folder in exports]
    known = dict.fromkeys(name for export in opened for name in export.plan.graphs)
    if unknown := [name for name in settings.graphs if name not in known]:
        raise OptionError(
            f"none of these exports has a graph {unknown[0]}, they have {', '.join(known)}; name one with {{graphs}}",
            options=("graphs",),
        )
    rows: list[LatencyRow | Absent] = []
    with ExitStack() as stack:
        counts = dict.fromkeys(settings.threads) or [None]
        machines = [stack.enter_context(Machine(count, settings.device)) for count in counts]
        for export in opened:
            for machine in machines:
                began = time.perf_counter()
                if {"graphs", "memory"} & set(settings.parts):
                    with ExitStack() as held:
                        rows += GraphTimer(export, machine, settings, held).rows()
                if "stages" in settings.parts:
                    rows += time_stages(export, machine, settings)
                said = f"{export.plan.method} ({export.plan.size}), {machine.threads} threads"
                logger.info("%s: %.0f s", said, time.perf_counter() - began)
        described = [machine.describe() for machine in machines]
    if settings.device == "cpu":
        rows += list(rows_of_gpu(rows))  # a list: what grows is not what is read
    note = "inputs of graphs are seeded, scans are phantoms; every backend was held to PyTorch eager's outputs first"
    there = [describe_export(export.manifest) for export in opened]
    return finished_run("latency", started, there, _together(described), rows, (note,))


def _together(described: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the machine as the first number of threads found it, with what any of them found unsettled."""
    if len(described) == 1:
        return described[0]
    unsettled = [f"{each['threads']} threads: {text}" for each in described for text in each["unsettled"]]
    by_threads = {str(each["threads"]): each for each in described}
    return described[0] | {"settled": not unsettled, "unsettled": unsettled, "at_threads": by_threads}
