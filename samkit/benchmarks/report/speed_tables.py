"""Tables of time: what each graph and each stage takes beside PyTorch eager, readers on a server, how cost grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from samkit.benchmarks.record.run import IDENTITY, Row, Run
from samkit.benchmarks.record.statistics import median_ratio
from samkit.benchmarks.report.table import (
    NONE,
    Table,
    backend_of,
    by_backend,
    figure,
    interval,
    is_eager,
    line_columns,
    listing,
    measured,
    method_of,
    number,
    part_of,
    pivot,
    reasons,
)

FEW = 3
"""Samples below which a ratio has no interval."""

# --- Latency ---


def latency_tables(run: Run) -> list[Table]:
    """Return medians with a column for each backend, and every row with its percentiles, for graphs and for stages."""
    eager = {_peers(row): row for row in run.rows if is_eager(row) and measured(row)}
    found = []
    for part, title in (("graph", "Time of each graph"), ("stage", "Time that a reader waits, by stage")):
        rows = [row for row in run.rows if part in row]
        lines = line_columns(rows, part, ("threads", "batch", "points"))
        note = ("in brackets: times PyTorch eager float32, of medians",)
        found += [
            pivot(f"{title}: median [ms]", rows, lines, lambda row: _median_cell(row, eager), note),
            listing(f"{title}: percentiles", rows, lines, _latency_figures(eager), _details_note(rows), detail=True),
        ]
    return [table for table in found if table.rows]


def _peers(row: Row) -> tuple[Any, ...]:
    """Return what a row has in common with those of other backends."""
    keys = [key for key in IDENTITY if key not in ("backend", "precision")]
    return tuple(row.get(key) for key in (*keys, *row.get("identity", ())))


def _median_cell(row: Row, eager: Mapping[tuple[Any, ...], Row]) -> str:
    base = eager.get(_peers(row))
    if base is None or is_eager(row):
        return number(row["p50_ms"])
    return f"{number(row['p50_ms'])} ({number(row['p50_ms'] / base['p50_ms'], 2)}x)"


def _latency_figures(eager: Mapping[tuple[Any, ...], Row]) -> Mapping[str, Callable[[Row], str]]:
    def ratio(row: Row) -> str:
        base = eager.get(_peers(row))
        if base is None or is_eager(row) or not (row.get("samples_ms") and base.get("samples_ms")):
            return NONE
        ratio_ = median_ratio(row["samples_ms"], base["samples_ms"])
        few = min(len(row["samples_ms"]), len(base["samples_ms"])) < FEW
        return number(ratio_.value) if few else interval(ratio_.to_dict())

    return {
        "n": lambda row: number(len(row["samples_ms"])) if row.get("samples_ms") else NONE,
        **{f"{name} [ms]": figure(f"{name}_ms") for name in ("p50", "p95", "p99")},
        "times PyTorch eager [95 %]": ratio,
        "GFLOP": figure("gflop"),
        "share of the limit": lambda row: f"{row['limit_share']:.0%}" if row.get("limit_share") is not None else NONE,
        "peak memory [MB]": figure("peak_mb"),
        "above the session [MB]": figure("above_session_mb"),
        "relative error": figure("relative_error"),
    }


def _details_note(rows: Sequence[Row]) -> tuple[str, ...]:
    limits = [str(row["limit"]) for row in rows if row.get("limit")]
    said = (
        [f"the limit: {', '.join(dict.fromkeys(limits))} of this machine, measured in the same rounds"]
        if limits
        else []
    )
    return (*said, *dict.fromkeys(str(row["note"]) for row in rows if row.get("note")))


# --- Load ---


def load_tables(run: Run) -> list[Table]:
    """Return each level of sessions with its stages, and how cost grows."""
    growth = [row for row in run.rows if _is_growth(row)]
    levels = sorted(
        (row for row in run.rows if not _is_growth(row)),
        key=lambda row: (row["method"], str(row.get("mode")), row.get("sessions", 0)),
    )
    pauses = sorted({row["think_s"] for row in levels if row.get("think_s")})
    note = [f"think: a reader looks for {number(pause)} s on average before the next click" for pause in pauses]
    lines = line_columns(levels, "", ("mode", "sessions", "stage"))
    found = [
        (listing("Readers on a server", levels, lines, LOAD_FIGURES, note), levels),
        (
            listing("How cost grows: time = c * size^exponent", growth, line_columns(growth, "", ()), SCALING_FIGURES),
            growth,
        ),
    ]
    return [replace(table, notes=(*table.notes, *reasons(rows))) for table, rows in found if rows]


def _is_growth(row: Row) -> bool:
    """Return whether a row is of how a cost grows; one without figures tells by its stage."""
    return "scaling" in row or " over " in str(row.get("stage"))


def _errors(row: Row) -> str:
    errors: Mapping[str, int] = row.get("errors") or {}
    return ", ".join(f"{count} {name}" for name, count in errors.items()) or "none"


LOAD_FIGURES: Mapping[str, Callable[[Row], str]] = {
    "n": lambda row: number(row.get("count", len(row.get("samples_ms", ())))),
    "sessions held": figure("sessions_held"),
    **{f"{name} [ms]": figure(f"{name}_ms") for name in ("p50", "p95", "p99")},
    "clicks per second": figure("clicks_per_second"),
    "errors": _errors,
    "server memory, RSS [MB]": figure("server_rss_mb"),
    "readers' share of the processors": figure("client_cpu_share"),
    "server's": figure("server_cpu_share"),
}


def _span(row: Row) -> str:
    x = row["scaling"]["x"]
    return f"{number(min(x))} to {number(max(x))}"


def _ends(row: Row) -> str:
    medians = [float(np.median(values)) for values in row["scaling"]["y_ms"]]
    return f"{number(medians[0])} to {number(medians[-1])}"


SCALING_FIGURES: Mapping[str, Callable[[Row], str]] = {
    "cost": part_of,
    "over": lambda row: str(row["scaling"]["over"]),
    "from, to": _span,
    "median [ms]": _ends,
    "exponent [95 %]": lambda row: interval(row["scaling"]["exponent"]),
}


# --- At a glance ---


def median_ratios(rows: Iterable[Row]) -> dict[str, float]:
    """Return how long graphs take on each backend, times PyTorch eager, as the median of all graphs."""
    found = _ratios(list(rows)).items()
    return {backend: float(np.median([ratio for ratio, _ in ratios])) for backend, ratios in found if ratios}


def _ratios(rows: Sequence[Row]) -> dict[str, list[tuple[float, str]]]:
    """Return each graph's median over PyTorch eager's with its name, the fastest first, by backend."""
    eager = {_peers(row): row for row in rows if is_eager(row) and measured(row)}
    found: dict[str, list[tuple[float, str]]] = {name: [] for name in by_backend(r for r in rows if not is_eager(r))}
    for row in rows:
        if measured(row) and "graph" in row and not is_eager(row) and (base := eager.get(_peers(row))):
            found[backend_of(row)].append((row["p50_ms"] / base["p50_ms"], f"{method_of(row)} {part_of(row)}"))
    return {backend: sorted(ratios) for backend, ratios in found.items()}


def speed_summary(runs: Iterable[Run]) -> Table:
    """Return how much faster or slower than PyTorch each backend is, over all graphs of runs of latency."""
    rows = [row for run in runs if run.kind == "latency" for row in run.rows]
    medians = median_ratios(rows)
    lines = []
    for backend, ratios in _ratios(rows).items():
        if ratios:
            ends = (f"{number(ratio, 2)}x ({where})" for ratio, where in (ratios[0], ratios[-1]))
            lines.append((backend, str(len(ratios)), f"{number(medians[backend], 2)}x", *ends))
        else:
            ours = [row for row in rows if backend_of(row) == backend]
            words = "no ratio" if any(map(measured, ours)) else "not run" if "not_run" in ours[0] else "error"
            lines.append((backend, words, NONE, NONE, NONE))
    columns = ("backend", "graphs", "median", "fastest", "slowest")
    return Table("Time of graphs, times PyTorch eager float32", columns, tuple(lines))
