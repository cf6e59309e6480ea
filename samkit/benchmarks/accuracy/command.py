"""`sam-bench accuracy`: every backend's masks beside PyTorch float32's and the truth, per case and click; a gate.

For each export, case and policy of the reader (`simulated_user`) the PyTorch originals are clicked on, and all backends
get the same clicks: so each mask has one to be compared with. Where a mask differs, the backend is clicked on once more
on its own errors. Every output of every graph is compared, too (`outputs`).

A run holds parts of images (`slices` of a row): share it as you would share the scans, or measure with --anonymous,
which leaves them out. Cases go by numbers; folders and files are named with --show-names alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from samkit.benchmarks.accuracy.candidates import BACKENDS, TRITON, Compared, choose_backends, open_all
from samkit.benchmarks.accuracy.comparison import compare
from samkit.benchmarks.accuracy.outcome import what_broke
from samkit.benchmarks.accuracy.settings import AccuracySettings
from samkit.benchmarks.cases.folders import FolderCases
from samkit.benchmarks.cases.phantom_scans import phantom_cases
from samkit.benchmarks.measure.machine import Machine, finished_run
from samkit.benchmarks.record.rows import Row
from samkit.benchmarks.record.run import Measured, Run, describe_export
from samkit.command import THREADS, show_progress, typed_words
from samkit.errors import OptionError, SamkitError
from samkit.manifest import Export
from samkit.precisions import BASE, PRECISIONS
from samkit.protocols.simulated_user import POLICIES
from samkit.runtime.backends import get_backend

log = logging.getLogger(__name__)

_LEAST_DICE = ", ".join([f"{BASE.min_dice:g}", *(f"and {one.min_dice:g} in {one.title}" for one in PRECISIONS[1:])])
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_COUNT = click.IntRange(min=1)
_UNSAID = (
    "it could be measured on no case, and why is left out, because it may name a file; measure it alone, or with "
    "show_names, to read it"
)


@click.command()
@click.option("--export", "exports", multiple=True, required=True, metavar="DIR", type=_FOLDER,
              help="An export; may be given again.")  # fmt: skip
@click.option("--data", type=_FOLDER,
              help="Folder of scans or pictures with labels, as for sam-train. Default: phantoms.")  # fmt: skip
@click.option("--backends", metavar="LIST", help=f"Of {', '.join(BACKENDS)}. Default: what is there.")
@click.option("--cases", default=AccuracySettings.cases, show_default=True, type=_COUNT,
              help="Subjects, spread over the folder.")  # fmt: skip
@click.option("--clicks", default=AccuracySettings.clicks, show_default=True, type=_COUNT, help="Clicks on each.")
@click.option("--policy", "policies", multiple=True, type=click.Choice(POLICIES), default=POLICIES,
              help="Default: all that fit.")  # fmt: skip
@click.option("--min-parity-dice", type=click.FloatRange(0, 1), metavar="DICE",
              help=f"Least Dice of a mask against PyTorch's. Default: {_LEAST_DICE}.")  # fmt: skip
@click.option("--max-parity-hd95", type=click.FloatRange(min=0), metavar="MM",
              help="Largest HD95 of a mask against PyTorch's. Default: a voxel's longest edge.")  # fmt: skip
@click.option("--tolerance-mm", default=AccuracySettings.tolerance_mm, show_default=True,
              type=click.FloatRange(0, min_open=True), help="How far apart two surfaces are one to NSD.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Of PyTorch.")
@click.option("--threads", type=THREADS, help="Of one operator on the CPU. Default: all cores.")
@click.option("--server", metavar="URL",
              help="triton://HOST:PORT/NAME that serves the export. Default: one is started.")  # fmt: skip
@click.option("--label", type=_COUNT, help="The value of the labels that counts. Default: all above 0.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Keep the worst slice of each case.")
@click.option("--anonymous", is_flag=True, help="Keep no pictures, and nothing of names.")
@click.option("--show-names", is_flag=True, help="Name folders and files, which else go by the option or are left out.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), default=Path("bench/accuracy.json"),
              show_default=True, help="Where the run is written.")  # fmt: skip
def command(exports: tuple[Path, ...], backends: str | None, out: Path, **asked: Any) -> Measured:
    """Compare exports with their PyTorch originals and with the truth.

    A backend that --backends names and that is not to be had, a mask beyond the limits, and a graph's output beyond its
    tolerance end with exit code 1; the figures are written all the same. The file holds parts of the images unless
    --no-pictures or --anonymous is given.
    """
    show_progress(quiet=False)
    named = [word.strip() for word in (backends or "").split(",") if word.strip()]
    settings = AccuracySettings(choose_backends(named, asked["device"]), **asked)
    if settings.server is not None and len(exports) > 1:
        raise OptionError(
            "{server} serves one export, and several are given; measure one at a time", options=("server",)
        )
    if settings.label is not None and settings.data is None:
        raise OptionError(
            "{label} names a value of the labels in {data}, and phantoms have none; give {data}, too",
            options=("label", "data"),
        )
    if settings.anonymous and settings.show_names:
        raise OptionError(
            "{anonymous} leaves names out and {show_names} puts them in; give one of them",
            options=("anonymous", "show_names"),
        )
    run = measure_accuracy(exports, settings)
    typed = typed_words(show_paths=settings.show_names)
    failures = what_broke(run, [BACKENDS[name] for name in named])
    return Measured(replace(run, command=("sam-bench", *typed)), out, failures=failures)


def measure_accuracy(exports: Sequence[Path], settings: AccuracySettings) -> Run:
    """Return a run with a row for each export, backend and policy, and for each detector.

    Raises ManifestError for an export whose files changed, before anything else, PromptError for one that knows none of
    the policies. What keeps an export from being measured is raised where it is the only one, else it is its row.
    """
    started = datetime.now(UTC)
    backends = [get_backend(BACKENDS[name].backend) for name in settings.backends if name != TRITON]
    opened = [Export.open(folder, engines=any(one.checks_bytes for one in backends)) for folder in exports]
    all_compared = [Compared.of(export, settings) for export in opened]
    rows: list[Row] = []
    notes: list[str] = []
    with Machine(settings.threads, settings.device) as machine:
        for compared in all_compared:
            name = compared.export.method.name
            try:
                found, remarks = _compare(compared)
            except SamkitError as error:
                if len(opened) == 1:
                    raise
                log.warning("%s: %s", name, error)
                why = _UNSAID if settings.hides_names else error
                rows.append(compared.absent(compared.baseline, why, is_failure=True))
            else:
                rows += found
                notes += [f"{name}: {said}" for said in dict.fromkeys(remarks)]
            machine.sample()
        facts = machine.describe()
    notes += [settings.limits, f"NSD within {settings.tolerance_mm:g} mm"]
    if settings.pictures and not settings.anonymous:
        notes.append("this file holds parts of the images; share it as you would share the scans")
    return finished_run("accuracy", started, [describe_export(one.manifest) for one in opened], facts, rows, notes)


def _compare(compared: Compared) -> tuple[list[Row], list[str]]:
    """Return the rows of one export, and remarks on them; raises SamkitError where there is nothing to compare."""
    method, config, settings = compared.export.method, compared.export.config, compared.settings
    log.info("%s: opening %s", method.name, ", ".join(settings.backends))
    with ExitStack() as held:
        baseline, candidates, absent = open_all(compared, held)
        folder = settings.data and FolderCases(settings.data, method, config, settings.cases, label=settings.label)
        cases = folder or phantom_cases(method, config, settings.cases)
        rows, notes = compare(compared, baseline, candidates, cases)
    remarks = folder.remarks if folder else []
    if settings.hides_names and remarks:
        remarks = [f"{len(remarks)} remarks on the files of the data are left out, because they may name somebody"]
    return [*rows, *absent], [*remarks, *(folder.told if folder else ()), *notes]
