"""`sam-bench report`: one HTML file of any runs, made of their JSON alone, which asks no other host for anything.

What is read first stands on top: what ran, whether the gate passed, how far from PyTorch, whether the machine was
settled. Then one section for each run: plots, tables, and for each case the slice with the largest disagreement.
Everything that comes from a run is escaped; a policy in the page forbids it scripts and every address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from samkit.benchmarks.record.run import Run, load_run
from samkit.benchmarks.report.cards import Card, card_of
from samkit.benchmarks.report.layouts import failures
from samkit.benchmarks.report.papers import paper_tables
from samkit.benchmarks.report.pictures import PicturedCase, cases_of
from samkit.benchmarks.report.plots import Plot, plots_of
from samkit.benchmarks.report.table import Table
from samkit.benchmarks.report.tables import definitions, facts, markdown, summary_tables, tables_of
from samkit.errors import MissingDependencyError
from samkit.protocols.papers import FOLDER

TEMPLATE = "report.html.j2"
SHOWN = 6
"""Cases of a run that are not folded away."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", default=Path("bench/report.html"), show_default=True, help="Where the page is written.",
              type=click.Path(dir_okay=False, path_type=Path))  # fmt: skip
@click.option("--tables", type=click.Path(dir_okay=False, path_type=Path), help="Write all tables as Markdown, too.")
@click.option("--papers", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder of the papers' tables. Default: docs/results/papers of the checkout that runs.")  # fmt: skip
def command(files: tuple[Path, ...], out: Path, tables: Path | None, papers: Path | None) -> None:
    """Write one HTML file of the runs in FILES; it holds slices of the cases, unless they were measured without."""
    runs = [load_run(path) for path in files]
    if papers is None and FOLDER.is_dir():
        papers = FOLDER
    if papers is None and any(run.kind == "accuracy" for run in runs):
        click.echo(
            "no figures of the papers: docs/results/papers of a checkout has them; give it with --papers", err=True
        )
    write_report(runs, out, papers)
    click.echo(out)
    if tables is not None:
        _write(tables, markdown(runs, papers))
        click.echo(tables)


def write_report(runs: Sequence[Run], path: Path, papers: Path | None = None) -> None:
    """Write the page of `runs`, with the tables in the folder `papers`; a folder that is missing is made.

    Raises InputRefused where a picture in a run, or a file in `papers`, is none, and MissingDependencyError without
    Jinja2 or Matplotlib.
    """
    _write(path, render(runs, papers))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def render(runs: Sequence[Run], papers: Path | None = None) -> str:
    """Return the page; the same runs give the same text."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError("the report needs Jinja2; pip install 'samkit[bench]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [_section(run, place) for place, run in enumerate(runs, 1)]
    papers_note, printed = paper_tables(runs, papers)
    return environment.get_template(TEMPLATE).render(
        title="samkit: " + ", ".join(dict.fromkeys(run.kind for run in runs)),
        subtitle=_subtitle(runs),
        banners=_banners(runs, any(section.different or section.identical for section in sections)),
        sections=sections,
        shown=SHOWN,
        failures=failures(runs),
        summary=summary_tables(runs),
        definitions=definitions() if any(run.kind == "accuracy" for run in runs) else None,
        papers=printed,
        papers_note=papers_note,
    )


# --- What is read first ---


@dataclass(frozen=True)
class Banner:
    """What a reader must be told before any figure."""

    title: str
    words: str
    grave: bool = False


def _subtitle(runs: Sequence[Run]) -> str:
    methods = dict.fromkeys(method for run in runs for method in run.methods)
    machines = dict.fromkeys(str(run.machine.get("processor", "an unnamed processor")) for run in runs)
    commits = dict.fromkeys(run.commit or "no commit" for run in runs)
    return f"{', '.join(methods)}. On {'; '.join(machines)}. samkit {runs[0].samkit} at {', '.join(commits)}."


def _banners(runs: Sequence[Run], pictured: bool) -> list[Banner]:
    exports = [export for run in runs for export in run.exports]
    found = [Banner("Not a medical device.", "Nothing here says that a mask is fit for a patient.")]
    for kind, words in (
        (
            "demonstration",
            "trained on phantoms, to show that everything works; metrics to the truth say nothing of the method.",
        ),
        ("random", "figures of time and of parity hold, Dice to the truth means nothing."),
    ):
        named = dict.fromkeys(
            str(export["method"])
            for export in exports
            if export.get("weights") == kind or (kind == "demonstration" and export.get("demonstration"))
        )
        if named:
            found.append(Banner(f"{kind.upper()} WEIGHTS ({', '.join(named)}):", words, grave=True))
    if pictured:
        found.append(
            Banner("This file holds image data", "of the cases that were measured. Treat it as you treat their scans.")
        )
    found += [
        Banner(f"The machine was NOT SETTLED during {run.kind}:", why) for run in runs if (why := run.disturbance)
    ]
    return found


# --- One run ---


@dataclass(frozen=True)
class Section:
    """All of one run."""

    id: str
    title: str
    card: Card
    facts: Sequence[tuple[str, str]]
    plots: Sequence[Plot]
    tables: Sequence[Table]
    different: Sequence[PicturedCase]
    """Cases in which voxels differ, the most first."""
    identical: Sequence[PicturedCase]


def _section(run: Run, place: int) -> Section:
    name = f"run-{place}"
    cases = list(cases_of(run, name))
    methods = ", ".join(run.methods) if len(run.methods) <= 3 else f"{len(run.methods)} methods"
    return Section(
        name,
        f"{run.kind.capitalize()}: {methods}",
        card_of(run),
        facts(run),
        plots_of(run),
        tables_of(run),
        sorted((case for case in cases if case.flipped), key=lambda case: -case.flipped),
        [case for case in cases if not case.flipped],
    )
