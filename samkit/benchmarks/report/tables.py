"""Tables of runs, made of their JSON alone: the same ones are printed, written into Markdown and set in the report.

What a table is stands in table.py, what is in those of each kind in layouts.py, what papers print in papers.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.benchmarks.record.figures import DETECTOR_METRICS, METRICS, NONE, number, overlap
from samkit.benchmarks.record.rows import Absent, AccuracyRow, LatencyRow, Row
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.report.layouts import LAYOUTS, entries_of, is_masks, is_reference, peers
from samkit.benchmarks.report.papers import paper_tables
from samkit.benchmarks.report.table import (
    Table,
    backend_of,
    by_backend,
    is_eager,
    measured,
    method_of,
    or_worst,
    part_of,
)

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 200
"""Columns of a print that no terminal shows."""


def tables_of(run: Run) -> list[Table]:
    """Return the tables of a run, those that would say nothing left out."""
    entries = entries_of(run)
    return [table for layout in LAYOUTS[run.kind] if (table := layout.table(entries)) is not None]


# --- What stands above the tables of a run ---


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
    packages = ", ".join(f"{name} {text}" for name, text in run.versions.items() if name != "samkit")
    return [
        ("command", run.command_line),
        *([("data", run.data)] if run.kind == "accuracy" else []),
        ("machine", "; ".join(str(word) for word in words if word)),
        *([("settled", _settled(run))] if run.kind != "accuracy" else []),
        ("versions", f"samkit {run.samkit} at {run.commit or 'no commit'}; {packages}"),
        ("exports", _exports(run.exports)),
        ("started", f"{run.started}, for {number(run.seconds)} s"),
        *(("note", note) for note in run.notes),
    ]


def _settled(run: Run) -> str:
    if run.machine.get("settled") is None:
        return "not asked"
    return f"NO: {run.disturbance}" if run.disturbance else "yes"


def _before_and_after(name: str, pair: Mapping[str, Any] | None) -> str | None:
    if not pair or pair.get("before") in (None, []):
        return None
    words = [", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in pair.values()]
    return f"{name} {words[0]} before, {words[-1]} after"


def _exports(exports: Iterable[Mapping[str, Any]]) -> str:
    """Return which exports took part, those of one size and one kind of weights together."""
    found: dict[str, list[str]] = {}
    for export in exports:
        kind = f"{export.get('size') or 'own size'}, {export.get('weights')} weights"
        found.setdefault(kind, []).append(f"{export['method']} {str(export.get('manifest'))[:12]}")
    return "; ".join(f"{kind}: {', '.join(named)}" for kind, named in found.items()) or "none"


def definitions() -> Table:
    """Return what each metric is."""
    rows = tuple(
        (metric.label, metric.unit or "share", metric.better or NONE, metric.definition, metric.source)
        for metric in (*METRICS.values(), *DETECTOR_METRICS.values())
    )
    return Table("What the metrics are", ("metric", "unit", "better", "definition", "source"), rows, detail=True)


# --- At a glance ---


def summary_tables(runs: Sequence[Run]) -> list[Table]:
    """Return what is read first: worst parity of each backend, and how much faster than PyTorch each is."""
    rows = [row for run in runs for row in run.rows]
    found = [
        _parity_summary([row for row in rows if row.kind == "accuracy" and is_masks(row) and not is_reference(row)]),
        _speed_summary([row for row in rows if row.kind == "latency"]),
    ]
    return [table for table in found if table.rows]


def _parity_summary(rows: Sequence[Row]) -> Table:
    """Return the worst parity of each backend, over all methods."""
    columns = ("backend", "gate", "methods", "worst Dice", "most voxels that differ", "worst HD95 [mm]")
    lines = (_summary_line(name, [row for row in rows if backend_of(row) == name]) for name in by_backend(rows))
    return Table("Masks against PyTorch float32", columns, tuple(lines))


def _summary_line(backend: str, rows: Sequence[Row]) -> tuple[str, ...]:
    ran = [row for row in rows if isinstance(row, AccuracyRow)]
    lost = [row.is_failure for row in rows if isinstance(row, Absent)]
    if not ran:
        return (backend, "error" if any(lost) else "not run", *(NONE,) * 4)
    failed = sum(bool(row.failures) for row in ran) + sum(lost)
    dice = min(ran, key=lambda row: or_worst(row.parity.dice, -math.inf))
    flipped = max(ran, key=lambda row: or_worst(row.parity.flipped_voxels, math.inf))
    distance = max(ran, key=lambda row: or_worst(row.parity.hd95_mm, math.inf))

    def at_worst(row: AccuracyRow, words: str, is_best: bool) -> str:
        return words if is_best else f"{words} ({row.identity.method})"  # the best is that of all methods

    return (
        backend,
        f"FAILED in {failed} of {len(rows)} rows" if failed else f"passed in {len(ran)} rows",
        str(len({row.identity.method for row in ran})),
        at_worst(dice, overlap(dice.parity.dice), dice.parity.dice == 1),
        at_worst(flipped, number(flipped.parity.flipped_voxels), flipped.parity.flipped_voxels == 0),
        at_worst(distance, number(distance.parity.hd95_mm), distance.parity.hd95_mm == 0),
    )


def graph_ratios(rows: Iterable[Row]) -> dict[str, list[tuple[float, str]]]:
    """Return each graph's median over PyTorch eager's with its name, the fastest first, by backend."""
    rows = list(rows)
    timed = [row for row in rows if isinstance(row, LatencyRow)]
    eager = {peers(row): row for row in timed if is_eager(row)}
    others = [row for row in rows if not is_eager(row)]
    found: dict[str, list[tuple[float, str]]] = {name: [] for name in by_backend(others)}
    for row in timed:
        if row.identity.graph and not is_eager(row) and (base := eager.get(peers(row))):
            ratio = row.times.p50_ms / base.times.p50_ms
            found[backend_of(row)].append((ratio, f"{method_of(row)} {part_of(row)}"))
    return {backend: sorted(ratios) for backend, ratios in found.items()}


def median_ratio_of(ratios: Sequence[tuple[float, str]]) -> float:
    """Return the median of what `graph_ratios` has of a backend."""
    return float(np.median([ratio for ratio, _ in ratios]))


def _speed_summary(rows: Sequence[Row]) -> Table:
    """Return how much faster or slower than PyTorch each backend is, over all graphs."""
    lines = []
    for backend, ratios in graph_ratios(rows).items():
        if ratios:
            ends = (f"{number(ratio, 2)}x ({where})" for ratio, where in (ratios[0], ratios[-1]))
            lines.append((backend, str(len(ratios)), f"{number(median_ratio_of(ratios), 2)}x", *ends))
        else:
            ours = [row for row in rows if backend_of(row) == backend]
            words = ours[0].word.replace("_", " ") if isinstance(ours[0], Absent) else ""
            words = "no ratio" if any(map(measured, ours)) else words
            lines.append((backend, words, NONE, NONE, NONE))
    columns = ("backend", "graphs", "median", "fastest", "slowest")
    return Table("Time of graphs, times PyTorch eager float32", columns, tuple(lines))


# --- On a terminal ---


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


# --- As Markdown ---


def markdown(runs: Sequence[Run], papers: Path | None = None) -> str:
    """Return all tables of runs as Markdown, those of one run under what it is: the body of docs/results/benchmarks.md.

    `papers` is the folder of the papers' tables, which stand at the end where one is given.
    """
    parts = [markdown_table(table, 3) for table in summary_tables(runs)]
    for run in runs:
        parts.append(f"## {run.kind.capitalize()}: {', '.join(run.methods)}")
        parts.append(
            "\n".join(f"- {name}: {_code(text) if name == 'command' else _plain(text)}" for name, text in facts(run))
        )
        parts += [markdown_table(table, 3) for table in tables_of(run)]
    if any(run.kind == "accuracy" for run in runs):
        parts.append(markdown_table(definitions(), 2))
    said, printed = paper_tables(runs, papers)
    if printed:
        parts += ["## What the papers print", said, *(markdown_table(table, 3) for table in printed)]
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
