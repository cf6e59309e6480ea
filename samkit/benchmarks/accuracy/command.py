"""`sam-bench accuracy`: every backend's masks beside PyTorch float32's and the truth, per case and click; a gate.

For each export, each subject and each of the reader's policies (`trajectories`) the PyTorch originals are clicked on,
and every backend gets the same clicks: so each mask has one to be compared with. Where a mask differs, the backend is
clicked on once more on its own errors. Every call of every graph is compared, too (`gate`). All figures are written
before the exit code says whether a limit broke.

Files that changed since their export are refused before anything else. An export that can't be measured among others
is a row that says why, and fails the gate. What this can't see stands in `gate`.

What a run holds of the data: `slices` of a row are parts of images, `notes` may name files that were left out, and
`command` has the folder as it was typed. Cases are called by their place in the folder, never by a file. So share a run
as you would share the scans, or measure with --anonymous, which leaves out pictures, names of files, and the folder.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from samkit.benchmarks.accuracy.candidates import (
    BACKENDS,
    TORCH,
    Absent,
    check_names,
    default_backends,
    open_contender,
    open_reference,
)
from samkit.benchmarks.accuracy.comparison import Say, Settings, Trial, identity_of
from samkit.benchmarks.accuracy.gate import Limits
from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.cases.folders import FolderCases
from samkit.benchmarks.cases.phantom_scans import phantom_cases
from samkit.benchmarks.cases.simulated_user import POLICIES, policies_of, recipe_of
from samkit.benchmarks.measure.machine import Machine, versions
from samkit.benchmarks.record.metrics import TOLERANCE_MM
from samkit.benchmarks.record.rows import Absent as AbsentRow
from samkit.benchmarks.record.rows import LatencyRow, LoadRow, read_row
from samkit.benchmarks.record.run import Row, Run, commit, describe_export, now
from samkit.errors import PromptError, SamkitError
from samkit.manifest import Export, Manifest
from samkit.methods import get_method
from samkit.precisions import BASE
from samkit.runtime.backends import Variant

CASES, CLICKS = 4, 6


@click.command()
@click.option(
    "--export", "exports", multiple=True, required=True, metavar="DIR", help="An export; may be given again.",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)  # fmt: skip
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of scans or pictures with labels, as for sam-train. Default: phantoms.",
)  # fmt: skip
@click.option("--backends", metavar="LIST", help=f"Of {', '.join(BACKENDS)}. Default: what is there.")
@click.option(
    "--cases", default=CASES, show_default=True, type=click.IntRange(min=1), help="Subjects, spread over the folder."
)
@click.option("--clicks", default=CLICKS, show_default=True, type=click.IntRange(min=1), help="Clicks on each.")
@click.option("--policy", "policies", multiple=True, type=click.Choice(POLICIES), help="Default: all that fit.")
@click.option("--min-parity-dice", type=click.FloatRange(0, 1), metavar="DICE",
              help="Least Dice of a mask against PyTorch's. Default: 0.9999, and 0.995 in float16.")  # fmt: skip
@click.option("--max-parity-hd95", type=click.FloatRange(min=0), metavar="MM",
              help="Largest HD95 of a mask against PyTorch's. Default: a voxel's longest edge.")  # fmt: skip
@click.option("--tolerance-mm", default=TOLERANCE_MM, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="How far apart two surfaces are one to NSD.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Of PyTorch.")
@click.option("--threads", type=click.IntRange(min=1), help="Of one operator on the CPU. Default: all cores.")
@click.option(
    "--server", metavar="URL", help="triton://HOST:PORT/NAME that serves the export. Default: one is started."
)
@click.option("--label", type=click.IntRange(min=1), help="The value of the labels that counts. Default: all above 0.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Keep the worst slice of each case.")
@click.option("--anonymous", is_flag=True, help="Keep no pictures, and nothing of names.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), default=Path("bench/accuracy.json"),
              show_default=True, help="Where the run is written.")  # fmt: skip
def command(
    exports: tuple[Path, ...],
    data: Path | None,
    backends: str | None,
    cases: int,
    clicks: int,
    policies: tuple[str, ...],
    min_parity_dice: float | None,
    max_parity_hd95: float | None,
    tolerance_mm: float,
    device: str,
    threads: int | None,
    server: str | None,
    label: int | None,
    pictures: bool,
    anonymous: bool,
    out: Path,
) -> None:
    """Compare exports with their PyTorch originals and with the truth.

    A backend that --backends names and that is not to be had, a mask beyond the limits, and a graph's output beyond its
    tolerance end with exit code 1; the figures are written all the same. The file holds parts of the images unless
    --no-pictures or --anonymous is given.
    """
    names = check_names(_words(backends), click.UsageError) if backends else default_backends(device)
    if server is not None and len(exports) > 1:
        raise click.UsageError("--server serves one export, and several are given; measure one at a time")
    if label is not None and data is None:
        raise click.UsageError(
            "--label names a value of the labels in --data, and phantoms have none; give --data, too"
        )
    limits = Limits(max_hd95_mm=max_parity_hd95)
    if min_parity_dice is not None:
        limits = replace(limits, min_dice=dict.fromkeys(limits.min_dice, min_parity_dice))
    typed = [word.replace(str(data), "DATA") if anonymous and data else word for word in sys.argv[1:]]
    run = measure_accuracy(
        exports, backends=names, data=data, cases=cases, clicks=clicks, limits=limits, threads=threads, device=device,
        pictures=pictures, anonymous=anonymous, policies=policies or POLICIES, tolerance_mm=tolerance_mm, label=label,
        server=server, command=("sam-bench", *typed), say=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    run.save(out)
    _show(run)
    fail_where_broken(run, _words(backends) if backends else [])


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _show(run: Run) -> None:
    from samkit.benchmarks.report import tables

    tables.show(run)


def fail_where_broken(run: Run, named: Sequence[str]) -> None:
    """Raise SamkitError where anything broke: one line for each export and backend, with what broke first there.

    The last line is the error, those before it go to stderr. A backend of `named` that did not run is broken, too.
    """
    lines: dict[tuple[Any, ...], tuple[float, str]] = {}
    asked = {(kind.backend, kind.precision, kind.device) for kind in (BACKENDS[name] for name in named)}
    for row in run.rows:
        if isinstance(row, LatencyRow | LoadRow):
            continue
        who = row.identity
        rival = (who.backend, who.precision, who.device)
        found = [f"{sentence}; export again, and report it if it stays" for sentence in row.failures]
        if isinstance(row, AbsentRow) and row.is_failure and not found:
            found = [f"{who.method} on {who.backend} ({who.precision}): {row.reason}"]
        if isinstance(row, AbsentRow) and not row.is_failure and who.stage and rival in asked:
            found = [f"{who.method} on {who.backend} ({who.precision}) was asked for and not run: {row.reason}"]
        if found:
            key = (who.method, who.manifest, *rival)
            # Of several policies the one that met the first case
            case = float(row.failed_case or math.inf)
            lines[key] = min(lines.get(key, (case, found[0])), (case, found[0]), key=lambda line: line[0])
    *others, last = [sentence for _, sentence in lines.values()] or [""]
    for sentence in others:
        click.echo(f"sam-bench: {sentence}", err=True)
    if last:
        raise SamkitError(last)


def measure_accuracy(
    exports: Sequence[Path],
    *,
    backends: Sequence[str],
    data: Path | None = None,
    cases: int = CASES,
    clicks: int = CLICKS,
    limits: Limits | None = None,
    threads: int | None = None,
    device: str = "cpu",
    pictures: bool = True,
    anonymous: bool = False,
    policies: Sequence[str] = POLICIES,
    tolerance_mm: float = TOLERANCE_MM,
    label: int | None = None,
    server: str | None = None,
    command: Sequence[str] = ("measure_accuracy",),
    say: Say = lambda line: None,
) -> Run:
    """Return a run with a row for each export, backend and policy, and for each detector.

    `backends` are of BACKENDS; those left out of which a table has a column get a row that says so. `data` is a folder
    as `sam-train` reads it, of which `cases` subjects are taken; without one as many phantoms. `threads` are of one
    operator, `device` is PyTorch's. What is beyond `limits` raises nothing: it is in the rows, as `failures`.

    Raises ManifestError for an export whose files changed, before anything else, PromptError for an export that knows
    none of the `policies`. InputRefused for data that an export can't be measured on, and whatever keeps PyTorch's
    originals from running, are raised where it is the only one; among several they are its row.
    """
    started, begun = now(), time.perf_counter()
    manifests = {folder: Manifest.load(folder) for folder in exports}
    for folder, manifest in manifests.items():
        manifest.verify(folder, engines=any(name.startswith("tensorrt") for name in backends))
    for manifest in manifests.values():
        _check_policies(manifest, policies)
    settings = Settings(
        clicks, limits or Limits(), tolerance_mm, tuple(policies), pictures and not anonymous, anonymous
    )
    rows: list[Row] = []
    notes: list[str] = []
    with Machine(threads, device) as machine:
        for folder, manifest in manifests.items():
            say(f"{manifest.plan.method}: opening {', '.join(backends)}")
            try:
                found, remarks = _measure_export(
                    folder, manifest, settings, say, backends=backends, data=data, cases=cases, label=label,
                    device=device, threads=threads, server=server,
                )  # fmt: skip
            except SamkitError as error:
                if len(manifests) == 1:
                    raise
                say(f"{manifest.plan.method}: {error}")
                found, remarks = [_failed(manifest, device, _UNSAID if anonymous else str(error))], []
            rows += found
            notes += remarks
            machine.sample()
        facts = machine.describe()
    return Run(
        kind="accuracy",
        command=tuple(command),
        started=started,
        seconds=round(time.perf_counter() - begun, 1),
        exports=tuple(describe_export(folder, manifest) for folder, manifest in manifests.items()),
        machine=facts,
        versions=versions(),
        rows=tuple(map(read_row, rows)),
        commit=commit(),
        notes=(*notes, f"{settings.limits}", f"NSD within {tolerance_mm:g} mm", *_PICTURE_NOTES[settings.pictures]),
    )


def _measure_export(
    folder: Path, manifest: Manifest, settings: Settings, say: Say, *, backends: Sequence[str], data: Path | None,
    cases: int, label: int | None, device: str, threads: int | None, server: str | None,
) -> tuple[list[Row], list[str]]:  # fmt: skip
    """Return the rows of one export, and what a reader must be told of them."""
    export = Export.of(folder, manifest)
    method, config = export.method, export.config
    found: Iterable[Case] = (
        phantom_cases(method, config, cases) if data is None else FolderCases(data, method, config, cases, label=label)
    )
    with ExitStack() as held:
        reference = open_reference(folder, manifest, device, threads, held)
        opened = [
            open_contender(name, folder, manifest, reference.tape, threads, server, held)
            for name in backends
            if name != TORCH
        ]
        trial = Trial(folder, manifest, reference, opened, settings, say)
        trial.run(found)
        rows = trial.rows() + _left_out(manifest, backends)
    said = found.remarks if isinstance(found, FolderCases) else []
    if settings.anonymous and said:
        said = [f"{len(said)} remarks on the files of the data are left out, because they may name somebody"]
    return rows, [f"{method.name}: {sentence}" for sentence in dict.fromkeys((*said, *trial.notes))]


def _failed(manifest: Manifest, device: str, why: str) -> Row:
    """Return the row of an export that could not be measured at all."""
    one = Absent(TORCH, Variant(TORCH, BASE.name, device), why, True)
    return {"kind": "accuracy", **identity_of(manifest, one), "stage": "masks", "error": why}


_UNSAID = (
    "it could be measured on no case, and why is left out, because it may name a file; measure it alone to read it"
)
_PICTURE_NOTES = {True: ("this file holds parts of the images; share it as you would share the scans",), False: ()}


def _check_policies(manifest: Manifest, policies: Sequence[str]) -> None:
    method = get_method(manifest.plan.method)
    known = policies_of(method, recipe_of(method, manifest.plan.size))
    if not set(known) & set(policies):
        raise PromptError(
            f"{method.name} knows the policies {', '.join(known)} and not {', '.join(policies)}; name one of them"
        )


def _left_out(manifest: Manifest, backends: Sequence[str]) -> list[Row]:
    """Return a row for each backend that nobody asked for and that tables have a column for."""
    return [
        {
            "kind": "accuracy", **identity_of(manifest, Absent(name, BACKENDS[name], "", False)), "stage": "masks",
            "not_run": "not among --backends",
        }
        for name in BACKENDS
        if name not in backends and BACKENDS[name].device == "cuda"
    ]  # fmt: skip
