"""`sam-bench report`: one HTML file of any runs, made of their JSON alone, which asks no other host for anything.

What is read first stands on top, then one section for each run. Everything that comes from a run is escaped; a policy
in the page forbids it scripts and every address.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from samkit.benchmarks.record.run import Run, load_run
from samkit.benchmarks.report.kinds import tables_of
from samkit.benchmarks.report.papers import paper_tables
from samkit.benchmarks.report.pictures import cases_of
from samkit.benchmarks.report.table import failures
from samkit.benchmarks.report.tables import card_of, definitions, facts, summary_tables
from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install
from samkit.files import make_folder, write_whole
from samkit.protocols.papers import FOLDER

_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_|<>#"} | {"\n": " "})
"""What text takes so that Markdown shows every character as it is."""


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
    papers = FOLDER if papers is None and FOLDER.is_dir() else papers
    if papers is None and any(run.kind == "accuracy" for run in runs):
        click.echo(
            "no figures of the papers: docs/results/papers of a checkout has them; give it with --papers", err=True
        )
    _write(out, render(runs, papers))
    if tables is not None:
        _write(tables, markdown(runs, papers))


def _write(path: Path, text: str) -> None:
    make_folder(path.parent)
    write_whole(path, text)
    click.echo(path, err=True)


def render(runs: Sequence[Run], papers: Path | None = None) -> str:
    """Return the page of runs, with the tables in the folder `papers`; the same runs give the same text.

    Raises InputRefused where a picture in a run, or a file in `papers`, is none, and MissingDependencyError without
    Jinja2 and Matplotlib.
    """
    cases = [list(cases_of(run, f"run-{place}")) for place, run in enumerate(runs, 1)]
    exports = [export for run in runs for export in run.exports]
    demo = [one["method"] for one in exports if one.get("demonstration") or one.get("weights") == "demonstration"]
    random = [one["method"] for one in exports if one.get("weights") == "random"]
    return _fill("report.html.j2", runs, papers, cases=cases, demonstrated=demo, random=random)


def markdown(runs: Sequence[Run], papers: Path | None = None) -> str:
    """Return all tables of runs as Markdown, those of one run under what it is: the body of docs/results/benchmarks.md.

    The tables in the folder `papers` stand at the end; raises what `render` does.
    """
    return _fill("report.md.j2", runs, papers).strip() + "\n"


def _fill(template: str, runs: Sequence[Run], papers: Path | None, **more: Any) -> str:
    try:
        import jinja2

        from samkit.benchmarks.report.plots import plots_of
    except ImportError as error:
        raise MissingDependencyError(f"the report needs Jinja2 and Matplotlib; {how_to_install('bench')}") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = lambda text: text.translate(_MARKS)
    return environment.get_template(template).render(
        runs=runs, folder=papers, card_of=card_of, definitions=definitions, facts=facts, failures=failures,
        paper_tables=paper_tables, plots_of=plots_of, summary_tables=summary_tables, tables_of=tables_of, **more,
    )  # fmt: skip
