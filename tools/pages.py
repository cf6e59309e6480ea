"""Write the tables of docs/ that are made of records, each between the two comments that name it.

    python -m tools.pages

A page says `<!-- table: graphs, by python -m tools.pages -->`, the table follows, and `<!-- end of table -->`. What is
around the tables is written by hand. `--check` writes nothing and exits with 1 where a page differs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import click

import samkit
from samkit.benchmarks.report.tables import definitions
from samkit.methods import GraphSpec, Method
from samkit.methods.method import OfficialFile
from samkit.runtime.protocol.tables import tables as protocol_tables
from samkit.tensors import TensorSpec

DOCS = Path(__file__).parents[1] / "docs"
_MARKS = str.maketrans({"|": "\\|", "_": "\\_"})
_TABLE = re.compile(r"(<!-- table: (.+?), by python -m tools\.pages -->\n\n).*?(\n\n<!-- end of table -->)", re.S)


def tables() -> dict[str, str]:
    """Return each table in Markdown, by its name in the comments."""
    methods = [samkit.get_method(name) for name in samkit.list_methods()]
    metrics = definitions()
    return {
        "graphs": _graphs(methods),
        "official files": _table(("file", "licence", "SHA-256", "who states it"), _files(methods)),
        "exports of official files": _table(
            ("`--method`", "command"),
            [
                (f"`{method.name}`", f"`{_export(method, file)}`")
                for method in methods
                for file in method.official_files
            ],
        ),
        "trainings from official files": _table(
            ("`--method`", "command"),
            [(f"`{method.name}`", f"`{_train(method, file)}`") for method in methods for file in method.starts_from],
        ),
        "metrics": _table(metrics.columns, [[cell.translate(_MARKS) for cell in cells] for cells in metrics.rows]),
        **protocol_tables(),
    }


def filled(page: str, made: dict[str, str]) -> str:
    """Return the text of a page with every table that it names as `made` has it; raises KeyError for another name."""
    return _TABLE.sub(lambda found: f"{found[1]}{made[found[2]]}{found[3]}", page)


def pages() -> dict[Path, str]:
    """Return the text that each page with tables should have."""
    made = tables()
    texts = {path: path.read_text() for path in sorted(DOCS.rglob("*.md"))}
    return {path: filled(text, made) for path, text in texts.items() if _TABLE.search(text)}


def _graphs(methods: Iterable[Method]) -> str:
    """Return a section for each set of graphs; methods whose graphs are equal share one."""
    found = sorted(methods, key=lambda method: (repr(method.graphs(method.sizes["full"])), method.name))
    sections = []
    for _, alike in groupby(found, key=lambda method: repr(method.graphs(method.sizes["full"]))):
        group = list(alike)
        rows = [row for graph in group[0].graphs(group[0].sizes["full"]) for row in _graph_rows(graph)]
        names = ", ".join(f"`{method.name}`" for method in group)
        sections.append((group[0].name, f"## {names}\n\n{_table(('graph', '', 'tensor', 'axes'), rows)}"))
    return "\n\n".join(text for _, text in sorted(sections))


def _graph_rows(graph: GraphSpec) -> list[tuple[str, str, str, str]]:
    notes = [f"`{graph.name}`"]
    if graph.refinements:
        notes.append(f"in {' and '.join(graph.refinements)} exports")
    if graph.is_rewrite:
        notes.append("not with `--no-fold`")
    if graph.works_for:
        notes.append(f"does the work of `{graph.works_for}` sooner")
    tensors = [("in", spec) for spec in graph.inputs] + [("out", spec) for spec in graph.outputs]
    return [
        ("; ".join(notes) if number == 0 else "", way, f"`{spec.name}`", _axes(spec))
        for number, (way, spec) in enumerate(tensors)
    ]


def _axes(spec: TensorSpec) -> str:
    axes = ", ".join(axis.to_text().replace("=", " ") for axis in spec.axes)
    return axes if spec.dtype == "float32" else f"{spec.dtype}: {axes}"


def _files(methods: Iterable[Method]) -> list[tuple[str, ...]]:
    """Return a row for each file, once, however many methods take it."""
    files = dict.fromkeys(file for method in methods for file in (*method.official_files, *method.starts_from))
    return [
        (f"[`{file.name}`]({file.address})", file.licence, f"`{file.sha256}`" if file.sha256 else "-", file.stated)
        for file in sorted(files, key=lambda file: file.name)
    ]


def _export(method: Method, file: OfficialFile) -> str:
    given = sorted([(file.option, file.name), *file.beside], key=lambda option: option[0] != "checkpoint")
    return f"sam-export --method {method.name} " + " ".join(f"--{option} {name}" for option, name in given)


def _train(method: Method, file: OfficialFile) -> str:
    return f"sam-train --method {method.name} --data DIR --out RUN --preset paper --init {file.name}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") for cells in (head, *rows)]
    return "\n".join((lines[0], "|" + " --- |" * len(head), *lines[1:]))


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where a page differs.")
def main(check: bool) -> None:
    """Write the tables of docs/ that are made of records."""
    stale = [path for path, text in pages().items() if path.read_text() != text]
    for path in stale:
        if not check:
            path.write_text(pages()[path])
        click.echo(f"{path.relative_to(DOCS.parent)}: {'differs' if check else 'written'}")
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
