"""`sam-bench accuracy`: every backend's masks beside PyTorch float32's and the truth, per case and click; a gate.

For each export, each case and each of the reader's policies (`simulated_user`) the PyTorch originals are clicked on,
and every backend gets the same clicks: so each mask has one to be compared with. Where a mask differs, the backend is
clicked on once more on its own errors. Every output of every graph is compared, too (`outputs`). All figures are
written before the exit code says whether a limit broke.

Files that changed since their export are refused before anything else. An export that can't be measured among others
is a row that says why, and fails the gate.

What a run holds of the data: `slices` of a row are parts of images, `notes` may name files that were left out, and
`command` has the folder as it was typed. Cases are called by their place in the folder, never by a file. So share a run
as you would share the scans, or measure with --anonymous, which leaves out pictures, names of files, and the folder.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from samkit.benchmarks.accuracy.candidates import (
    BACKENDS,
    BASELINE,
    Candidate,
    check_names,
    default_backends,
    identity_of,
    in_row,
    open_baseline,
    open_candidate,
)
from samkit.benchmarks.accuracy.comparison import Comparison, Settings
from samkit.benchmarks.accuracy.gate import Limits, what_broke
from samkit.benchmarks.cases.folders import FolderCases
from samkit.benchmarks.cases.phantom_scans import phantom_cases
from samkit.benchmarks.cases.simulated_user import POLICIES, policies_of, recipe_of
from samkit.benchmarks.measure.machine import Machine, versions
from samkit.benchmarks.record.metrics import TOLERANCE_MM
from samkit.benchmarks.record.rows import Absent, Row
from samkit.benchmarks.record.run import Measured, Run, commit, describe_export, now
from samkit.command import show_progress
from samkit.errors import OptionError, PromptError, SamkitError
from samkit.manifest import Export
from samkit.precisions import BASE, PRECISIONS
from samkit.runtime import backends as known_backends
from samkit.runtime.backends.backend import Variant

log = logging.getLogger(__name__)

CASES, CLICKS = 4, 6
_LEAST_DICE = ", ".join([f"{BASE.min_dice:g}", *(f"and {one.min_dice:g} in {one.title}" for one in PRECISIONS[1:])])


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
              help=f"Least Dice of a mask against PyTorch's. Default: {_LEAST_DICE}.")  # fmt: skip
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
) -> Measured:
    """Compare exports with their PyTorch originals and with the truth.

    A backend that --backends names and that is not to be had, a mask beyond the limits, and a graph's output beyond its
    tolerance end with exit code 1; the figures are written all the same. The file holds parts of the images unless
    --no-pictures or --anonymous is given.
    """
    show_progress(quiet=False)
    named = [word.strip() for word in backends.split(",") if word.strip()] if backends else []
    names = check_names(named) if named else default_backends(device)
    if server is not None and len(exports) > 1:
        raise OptionError(
            "{server} serves one export, and several are given; measure one at a time", options=("server",)
        )
    if label is not None and data is None:
        raise OptionError(
            "{label} names a value of the labels in {data}, and phantoms have none; give {data}, too",
            options=("label", "data"),
        )
    typed = [word.replace(str(data), "DATA") if anonymous and data else word for word in sys.argv[1:]]
    run = measure_accuracy(
        exports, backends=names, data=data, cases=cases, clicks=clicks,
        limits=Limits.of(min_parity_dice, max_parity_hd95), threads=threads, device=device, pictures=pictures,
        anonymous=anonymous, policies=policies or POLICIES, tolerance_mm=tolerance_mm, label=label, server=server,
        command=("sam-bench", *typed),
    )  # fmt: skip
    return Measured(run, out, failures=what_broke(run, [BACKENDS[name] for name in named]))


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
) -> Run:
    """Return a run with a row for each export, backend and policy, and for each detector.

    `backends` are of BACKENDS; those left out of which a table has a column get a row that says so. `data` is a folder
    as `sam-train` reads it, of which `cases` are taken; without one as many phantoms. `threads` are of one operator,
    `device` is PyTorch's. What is beyond `limits` raises nothing: it is in the rows, as `failures`.

    Raises ManifestError for an export whose files changed, before anything else, PromptError for an export that knows
    none of the `policies`. InputRefused for data that an export can't be measured on, and whatever keeps PyTorch's
    originals from running, are raised where it is the only one; among several they are its row.
    """
    started, begun = now(), time.perf_counter()
    settings = Settings(
        clicks, limits or Limits(), tolerance_mm, tuple(policies), pictures and not anonymous, anonymous
    )
    with_engines = any(BACKENDS[name].backend in _ON_ENGINES for name in backends)
    opened = [Export.open(folder, verify=False) for folder in exports]
    for export in opened:
        export.manifest.verify(export.folder, engines=with_engines)
    for export in opened:
        known = policies_of(export.method, recipe_of(export.method, export.plan.size))
        if not set(known) & set(policies):
            raise PromptError(
                f"{export.method.name} knows the policies {', '.join(known)} and not {', '.join(policies)}; name one "
                "of them"
            )
    rows: list[Row] = []
    notes: list[str] = []
    with Machine(threads, device) as machine:
        for export in opened:
            log.info("%s: opening %s", export.method.name, ", ".join(backends))
            try:
                with ExitStack() as held:
                    baseline = open_baseline(export, device, threads, held)
                    others = [
                        open_candidate(name, export, baseline.recording, threads, server, held)
                        for name in backends
                        if name != BASELINE
                    ]
                    folder = data and FolderCases(data, export.method, export.config, cases, label=label)
                    comparison = Comparison(
                        export, baseline, [one for one in others if isinstance(one, Candidate)], settings
                    )
                    comparison.run(folder or phantom_cases(export.method, export.config, cases))
                    found = comparison.rows() + [one for one in others if isinstance(one, Absent)]
            except SamkitError as error:
                if len(opened) == 1:
                    raise
                log.warning("%s: %s", export.method.name, error)
                why = _UNSAID if anonymous else in_row(error)
                original = identity_of(export, Variant(BASELINE, BASE.name, device), stage="masks")
                rows.append(Absent("accuracy", original, why, is_failure=True))
            else:
                rows += found + _left_out(export, backends)
                remarks = folder.remarks if folder else []
                if anonymous and remarks:
                    remarks = [
                        f"{len(remarks)} remarks on the files of the data are left out, because they may name somebody"
                    ]
                notes += [f"{export.method.name}: {said}" for said in dict.fromkeys((*remarks, *comparison.notes))]
            machine.sample()
        facts = machine.describe()
    return Run(
        kind="accuracy",
        command=tuple(command),
        started=started,
        seconds=round(time.perf_counter() - begun, 1),
        exports=tuple(describe_export(export.manifest) for export in opened),
        machine=facts,
        versions=versions(),
        rows=tuple(rows),
        commit=commit(),
        notes=(*notes, f"{settings.limits}", f"NSD within {tolerance_mm:g} mm", *_PICTURE_NOTES[settings.pictures]),
    )


_ON_ENGINES = {backend.name for backend in known_backends.BACKENDS if backend.checks_bytes}
"""Backends that run files which nothing else of an export needs."""
_UNSAID = (
    "it could be measured on no case, and why is left out, because it may name a file; measure it alone to read it"
)
_PICTURE_NOTES = {True: ("this file holds parts of the images; share it as you would share the scans",), False: ()}


def _left_out(export: Export, backends: Sequence[str]) -> list[Row]:
    """Return a row for each backend that nobody asked for and that tables have a column for."""
    return [
        Absent("accuracy", identity_of(export, variant, stage="masks"), "not among --backends", is_failure=False)
        for name, variant in BACKENDS.items()
        if name not in backends and variant.device == "cuda"
    ]
