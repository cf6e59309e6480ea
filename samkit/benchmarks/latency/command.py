"""`sam-bench latency`: how long graphs take and how long a reader waits, beside PyTorch, by turns, on one machine.

Graphs: each file of an export in ONNX Runtime against PyTorch eager, autocast, torch.compile and ONNX Runtime of
`--no-fold`, with their share of what the machine can do at best, and their memory. Stages: cold start, load, encode,
click, undo, end to end. With `--device cuda` it is the same on a GPU, with the TensorRT engines of an export that has
some. What can't be measured here has rows that say why.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from samkit.benchmarks.latency.baselines import RIVALS
from samkit.errors import PromptError, SamkitError

if TYPE_CHECKING:
    from samkit.benchmarks.measure.machine import Machine
    from samkit.benchmarks.record.run import Row, Run

PARTS = ("graphs", "memory", "stages")
"""`memory` is that of graphs, and comes with their times."""
ON_GPU = (
    ("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("torch", "fp32"), ("torch-autocast", "fp16"),
    ("torch-compile", "fp32"),
)  # fmt: skip
"""Backend and precision of the rows that a run with `--device cuda` has of each graph."""
ON_GPU_IN_STAGES = ON_GPU[:3]
TENSORRT = ("tensorrt", "fp16")
NO_GPU = "no CUDA device here"
NOT_ASKED = "this run was on the CPU; sam-bench latency --device cuda measures it"
COLD_STARTS = 3
"""New processes for each backend: a second or two each."""

Say = Callable[[str], object]


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in value.split(",")))
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of numbers such as 1,4") from None
    if min(found) < 1:
        raise click.BadParameter(f"'{value}' holds a number below 1")
    return found


@click.command()
@click.option(
    "--export", "exports", multiple=True, required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder that sam-export wrote. Repeat it.",
)  # fmt: skip
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1), help="Turns of each backend.")
@click.option(
    "--threads", "threads", multiple=True, type=click.IntRange(min=1), help="Repeat it to compare; default: all cores."
)
@click.option("--batch", "batches", default="1", show_default=True, callback=_numbers, help="Rows of a graph: 1,4.")
@click.option("--points", default="1", show_default=True, callback=_numbers, help="Points of each row: 1,5.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Repeat it; default: all.")
@click.option("--graph", "graphs", multiple=True, help="One graph, such as image_encoder. Repeat it; default: all.")
@click.option(
    "--rival", "rivals", multiple=True, type=click.Choice(RIVALS), help="What graphs are compared with; default: all."
)
@click.option("--cold-starts", default=COLD_STARTS, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--json", "out", type=click.Path(dir_okay=False, path_type=Path), default=Path("bench/latency.json"),
    show_default=True, help="All samples, and what they were measured on.",
)  # fmt: skip
def command(
    exports: tuple[Path, ...],
    rounds: int,
    threads: tuple[int, ...],
    batches: tuple[int, ...],
    points: tuple[int, ...],
    device: str,
    parts: tuple[str, ...],
    graphs: tuple[str, ...],
    rivals: tuple[str, ...],
    cold_starts: int,
    out: Path,
) -> None:
    """Time graphs and stages of exports beside PyTorch; percentiles, memory, and the share of the machine's limit.

    Exit code 1 where a file or a session of an export failed, or computed something else.
    """
    from samkit.benchmarks.record.rows import Absent
    from samkit.benchmarks.report import tables

    run = measure_latency(
        exports, rounds=rounds, threads=threads, device=device, parts=parts or PARTS, graphs=graphs or None,
        rivals=rivals or RIVALS, batches=batches, points=points, cold_starts=cold_starts,
        command=["sam-bench", *sys.argv[1:]], say=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    run.save(out)
    tables.show(run)
    for sentence in run.machine["unsettled"]:
        click.secho(f"UNSETTLED MACHINE: {sentence}", err=True, fg="red", bold=True)
    failed = [row for row in run.rows if isinstance(row, Absent) and row.is_failure]
    if failed := [row for row in failed if row.identity.backend in ("onnxruntime", "tensorrt")]:
        first = failed[0].identity
        raise SamkitError(
            f"{len(failed)} times are missing of what was exported, the first {first.method} "
            f"{first.graph or first.stage} {first.backend} {first.precision}: {failed[0].reason}"
        )


def measure_latency(
    exports: Sequence[Path],
    *,
    rounds: int,
    threads: int | Sequence[int] | None = None,
    device: str = "cpu",
    parts: Collection[str] = PARTS,
    graphs: Collection[str] | None = None,
    rivals: Collection[str] = RIVALS,
    batches: Sequence[int] = (1,),
    points: Sequence[int] = (1,),
    cold_starts: int = COLD_STARTS,
    command: Sequence[str] = ("sam-bench", "latency"),
    say: Say = lambda line: None,
) -> Run:
    """Return the run of all `exports`, with `rounds` turns of each backend.

    `threads` is how many an operator may use on the CPU, one number or several to compare; all cores when left out.
    `graphs` (None: all), `rivals`, `batches` (rows) and `points` (of each row) are for the graphs among PARTS. Raises
    MissingDependencyError without PyTorch or the device, ManifestError for a folder that is no export or was changed,
    PromptError for one of `graphs` that none of them has.
    """
    from samkit.benchmarks.latency.baselines import check_device
    from samkit.benchmarks.measure.machine import Machine, versions
    from samkit.benchmarks.record import run as run_file
    from samkit.benchmarks.record.rows import read_row
    from samkit.manifest import Manifest

    check_device(device)
    started, start = run_file.now(), time.perf_counter()
    manifests = [Manifest.load(folder) for folder in exports]
    there = dict.fromkeys(name for manifest in manifests for name in manifest.plan.graphs)
    if unknown := [name for name in graphs or () if name not in there]:
        raise PromptError(f"none of these exports has a graph {unknown[0]}, they have {', '.join(there)}; name one")
    for folder, manifest in zip(exports, manifests, strict=True):
        manifest.verify(folder, engines=False)
    rows: list[Row] = []
    with ExitStack() as stack:
        counts: Sequence[int | None] = [threads] if threads is None or isinstance(threads, int) else threads
        machines = [stack.enter_context(Machine(count, device)) for count in dict.fromkeys(counts or [None])]
        for folder, manifest in zip(exports, manifests, strict=True):
            for machine in machines:
                began = time.perf_counter()
                said = f"{manifest.plan.method} ({manifest.plan.size}), {machine.threads} threads"
                if {"graphs", "memory"} & set(parts):
                    rows += _graphs(folder, machine, rounds, "memory" in parts, rivals, graphs, batches, points)
                if "stages" in parts:
                    rows += _stages(folder, machine, rounds, cold_starts)
                say(f"{said}: {time.perf_counter() - began:.0f} s")
        described = [machine.describe() for machine in machines]
    return run_file.Run(
        kind="latency",
        command=tuple(command),
        started=started,
        seconds=round(time.perf_counter() - start, 1),
        exports=tuple(run_file.describe_export(f, m) for f, m in zip(exports, manifests, strict=True)),
        machine=_together(described),
        versions=versions(),
        rows=tuple(map(read_row, (*rows, *(not_run_rows(rows) if device == "cpu" else ())))),
        commit=run_file.commit(),
        notes=(
            "inputs of graphs are seeded, scans are phantoms; every backend was held to PyTorch eager's outputs first",
        ),
    )


def _graphs(
    folder: Path,
    machine: Machine,
    rounds: int,
    memory: bool,
    rivals: Collection[str],
    graphs: Collection[str] | None,
    batches: Sequence[int],
    points: Sequence[int],
) -> list[Row]:
    from samkit.benchmarks.latency.graphs import GraphTimer

    with GraphTimer(folder, rounds=rounds, machine=machine, rivals=rivals, memory=memory) as timer:
        return list(timer.rows(graphs, batches, points))


def _stages(folder: Path, machine: Machine, rounds: int, cold_starts: int) -> list[Row]:
    from samkit.benchmarks.latency.stages import time_stages

    return list(time_stages(folder, rounds=rounds, machine=machine, cold_starts=cold_starts))


def _together(described: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the machine as the first number of threads found it, with what any of them found unsettled."""
    unsettled = [f"{each['threads']} threads: {text}" for each in described for text in each["unsettled"]]
    if len(described) == 1:
        return described[0]
    return {
        **described[0],
        "settled": not unsettled,
        "unsettled": unsettled,
        "at_threads": {str(each["threads"]): each for each in described},
    }


def not_run_rows(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield, for the rows of a run on the CPU, those of all that needs CUDA."""
    from samkit.benchmarks.measure.machine import gpus

    why = NOT_ASKED if gpus() else NO_GPU
    of_place = ("method", "size", "weights", "manifest", "graph", "stage", "batch", "points", "identity", "threads")
    for row in rows:
        if (row["backend"], row["precision"]) != ("onnxruntime", "fp32"):
            continue
        place = {key: row[key] for key in of_place if key in row}
        for backend, precision in (*(ON_GPU if "graph" in row else ON_GPU_IN_STAGES), TENSORRT):
            absent = {"backend": backend, "device": "cuda", "precision": precision, "not_run": why}
            yield {"kind": "latency", **place, **absent}
