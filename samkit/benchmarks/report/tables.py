"""Tables of runs, made of their JSON alone: the same ones are printed, written into Markdown and set in the report.

What they are made of is in table.py, what stands in them in accuracy_tables.py, speed_tables.py and paper_tables.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from samkit.benchmarks.record.metrics import DETECTOR_METRICS, METRICS
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.report.accuracy_tables import accuracy_tables, parity_summary
from samkit.benchmarks.report.paper_tables import paper_tables
from samkit.benchmarks.report.speed_tables import latency_tables, load_tables, speed_summary
from samkit.benchmarks.report.table import NONE, Table, number

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 200
"""Columns of a print that no terminal shows."""

_OF_KIND: Mapping[str, Callable[[Run], list[Table]]] = {
    "accuracy": accuracy_tables,
    "latency": latency_tables,
    "load": load_tables,
}


def tables_of(run: Run) -> list[Table]:
    """Return the tables of a run, those without rows left out."""
    return _OF_KIND[run.kind](run)


def facts(run: Run) -> list[tuple[str, str]]:
    """Return what must stand above the tables of a run: command, machine, versions, exports, whether it was settled."""
    machine = run.machine
    words = [
        machine.get("processor"),
        *(f"{machine[key]} {key}" for key in ("cores", "threads") if machine.get(key)),
        *(f"{gpu.get('name')}, driver {gpu.get('driver_version')}" for gpu in machine.get("gpus") or ()),
        f"{number(machine['memory_gb'])} GB" if machine.get("memory_gb") else None,
        machine.get("system"),
        f"matrix product {number(machine['gemm_gflops'])} GFLOP/s" if machine.get("gemm_gflops") else None,
        f"memory copy {number(machine['copy_gb_per_s'])} GB/s" if machine.get("copy_gb_per_s") else None,
        _before_and_after("clocks [MHz]", machine.get("clock_mhz")),
        _before_and_after("load", machine.get("load")),
    ]
    return [
        ("command", run.command_line),
        *([("data", run.data)] if run.kind == "accuracy" else []),
        ("machine", "; ".join(str(word) for word in words if word)),
        *([("settled", settled(run))] if run.kind != "accuracy" else []),
        ("versions", f"samkit {run.samkit} at {run.commit or 'no commit'}; " + _named(run.versions)),
        ("exports", _exports(run.exports)),
        ("started", f"{run.started}, for {number(run.seconds)} s"),
        *(("note", note) for note in run.notes),
    ]


def settled(run: Run) -> str:
    """Return whether the machine was settled, and what disturbed it."""
    if run.machine.get("settled") is None:
        return "not asked"
    return "yes" if run.machine["settled"] else f"NO: {'; '.join(run.machine.get('unsettled') or ['no reason given'])}"


def _before_and_after(name: str, pair: Mapping[str, Any] | None) -> str | None:
    if not pair or pair.get("before") in (None, []):
        return None
    words = [", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in pair.values()]
    return f"{name} {words[0]} before, {words[-1]} after"


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in versions.items() if name != "samkit")


def _exports(exports: Iterable[Mapping[str, Any]]) -> str:
    """Return which exports took part, those of one size and one kind of weights together."""
    found: dict[str, list[str]] = {}
    for export in exports:
        kind = f"{export.get('size') or 'own size'}, {export.get('weights')} weights"
        found.setdefault(kind, []).append(f"{export['method']} {str(export.get('manifest'))[:12]}")
    return "; ".join(f"{kind}: {', '.join(named)}" for kind, named in found.items()) or "none"


def summary_tables(runs: Sequence[Run]) -> list[Table]:
    """Return what is read first: worst parity of each backend, and how much faster than PyTorch each is."""
    found = [parity_summary(runs), speed_summary(runs)]
    return [table for table in found if table.rows]


def definitions() -> Table:
    """Return what each metric is."""
    named = {**METRICS, **DETECTOR_METRICS}
    rows = tuple(
        (metric.label, metric.unit or "share", metric.better or NONE, metric.definition, metric.source)
        for metric in named.values()
    )
    return Table("What the metrics are", ("metric", "unit", "better", "definition", "source"), rows, detail=True)


def show(run: Run) -> None:
    """Print what a run came to, its tables but for details, and what they were measured on."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    found = [*summary_tables([run]), *tables_of(run)]
    for table in found:
        if not table.detail:
            _print(console, table)
    for name, text in facts(run):
        console.print(Text(f"{name}: {text}"))
    if details := [table.title for table in found if table.detail]:
        console.print(Text(f"not printed: {'; '.join(details)}. sam-bench report --tables writes all of them"))


def _print(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as Printed
    from rich.text import Text

    printed = Printed(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD)
    for name in table.columns:
        printed.add_column(Text(name))
    for words in table.rows:
        printed.add_row(*(Text(word) for word in words))
    console.print(printed)
    for note in table.notes:
        console.print(Text(note))


def markdown(runs: Sequence[Run]) -> str:
    """Return all tables of runs as Markdown, those of one run under what it is: the body of docs/benchmarks.md."""
    parts = [markdown_table(table, 3) for table in summary_tables(runs)]
    for run in runs:
        parts.append(f"## {run.kind.capitalize()}: {', '.join(dict.fromkeys(row['method'] for row in run.rows))}")
        parts.append(
            "\n".join(f"- {name}: {_code(text) if name == 'command' else _plain(text)}" for name, text in facts(run))
        )
        parts += [markdown_table(table, 3) for table in tables_of(run)]
    if any(run.kind == "accuracy" for run in runs):
        parts.append(markdown_table(definitions(), 2))
    said, papers = paper_tables(runs)
    if papers:
        parts += ["## What the papers print", said, *(markdown_table(table, 3) for table in papers)]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table, level: int) -> str:
    """Return one table as Markdown, under its title as a heading of that level."""
    lines = [f"{'#' * level} {_plain(table.title)}", ""]
    lines += [_markdown_line(table.columns), _markdown_line(["---"] * len(table.columns))]
    lines += [_markdown_line([_plain(word) for word in words]) for words in table.rows]
    if table.notes:
        lines += ["", *(f"- {_plain(note)}" for note in table.notes)]
    return "\n".join(lines)


def _markdown_line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_|<>#"} | {"\n": " "})


def _plain(text: str) -> str:
    """Return text of which Markdown shows every character as it is."""
    return text.translate(_MARKS)


def _code(text: str) -> str:
    return f"`{text.replace('`', ' ')}`"
