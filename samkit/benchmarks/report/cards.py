"""Cards of a report: each run at a glance, in a headline and a few lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, TypeAlias

from samkit.benchmarks.record.figures import interval, number, overlap
from samkit.benchmarks.record.rows import Absent, AccuracyRow, LatencyRow, LoadRow
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.report.table import backend_of, is_eager, measured, method_of, part_of, worst_of
from samkit.benchmarks.report.tables import graph_ratios

Card: TypeAlias = tuple[str, list[str], str]
"""Headline, lines, and state: good, bad, or empty where nothing was judged."""


def card_of(run: Run) -> Card:
    """Return what a run came to."""
    ran: list[Any] = [row for row in run.rows if measured(row)]
    absent = [row for row in run.rows if isinstance(row, Absent)]
    lost = sum(row.is_failure for row in absent)
    if run.kind == "accuracy":
        headline, lines, state = _accuracy(ran, lost, run.data)
    else:
        headline, lines, state = _latency(ran) if run.kind == "latency" else _load(ran)
    if lost:
        lines.append(f"{lost} of {len(run.rows)} rows: error")
    if missing := {backend_of(row) for row in absent if not row.is_failure} - set(map(backend_of, ran)):
        lines.append(f"not run: {missing.pop() if len(missing) == 1 else f'{len(missing)} backends'}")
    return headline, lines, state


def _accuracy(rows: Sequence[AccuracyRow], lost: int, data: str) -> Card:
    """Return the card of rows; `lost` more were to be compared, and failed before they could be."""
    compared = [row for row in rows if not is_eager(row)]
    if not compared:
        return "Nothing was compared", [], "bad"
    failed = sum(bool(row.failures) for row in compared) + lost
    worst = worst_of(compared, "parity_dice")
    cases = {(row.identity.method, case.case) for row in rows for case in row.cases}
    lines = [
        f"worst Dice to PyTorch {overlap(worst.parity.dice)}: {worst.identity.method}, {backend_of(worst)}",
        f"{len({row.identity.method for row in rows})} methods, {len(cases)} cases of {data}",
    ]
    if failed:
        return f"Gate FAILED in {failed} of {len(compared) + lost} rows", lines, "bad"
    return f"Gate passed in all {len(compared)} rows", lines, "good"


def _latency(rows: Sequence[LatencyRow]) -> Card:
    lines = [f"{len(rows)} rows of {len(set(map(method_of, rows)))} methods"]
    medians = {name: median(ratio for ratio, _ in ratios) for name, ratios in graph_ratios(rows).items() if ratios}
    if medians:
        fastest = min(medians, key=medians.__getitem__)
        lines.append(f"{fastest} takes {number(medians[fastest], 2)} of PyTorch eager's time, the median of graphs")
    clicks: dict[str, list[float]] = {}
    for row in rows:
        if row.identity.stage == "click" and not row.identity.backend.startswith("torch"):
            clicks.setdefault(backend_of(row), []).append(row.times.p50_ms)
    if not clicks:
        return f"{len(rows)} timings", lines, ""
    quickest = min(clicks, key=lambda backend: median(clicks[backend]))
    ends = dict.fromkeys(number(end(clicks[quickest])) for end in (min, max))
    return f"A click takes {' to '.join(ends)} ms", [f"the median of each method, with {quickest}", *lines], ""


def _load(rows: Sequence[LoadRow]) -> Card:
    scaled = [(row, row.scaling.exponent) for row in rows if row.scaling is not None]
    clicks = [(row, exponent) for row, exponent in scaled if str(row.identity.stage).startswith("click")]
    growth = [f"{row.identity.method}: {part_of(row)}: exponent {interval(exponent)}" for row, exponent in clicks]
    clicking = {row.identity.method for row in rows if row.identity.stage == "click"}
    waits = {row.identity.method: "click" if row.identity.method in clicking else "scan" for row in rows}
    levels = [row for row in rows if row.identity.sessions and row.identity.stage == waits[row.identity.method]]
    levels.sort(key=lambda row: row.identity.sessions or 0)
    if not levels:
        return f"{len(scaled)} growths of cost", growth, ""
    # So many readers are held where all of them were answered, and in time
    answered = [row for row in levels if not any(row.errors.values())]
    held = [row for row in answered if row.times.p95_ms <= (math.inf if row.limit_ms is None else row.limit_ms)]
    best = {(row.identity.method, row.identity.mode or "closed"): row for row in held}
    lines = [
        f"{method}, {mode}: {row.identity.sessions}, p95 of a {row.identity.stage} {number(row.times.p95_ms)} ms"
        for (method, mode), row in best.items()
    ]
    if beyond := len(levels) - len(held):
        lines.append(f"{beyond} level{'s' * (beyond > 1)} beyond the limit, or with errors")
    if not held:
        return "No reader was held", lines + growth, "bad"
    most = held[-1].identity.sessions
    return f"{most} reader{'s' * (most != 1)} held at once", lines + growth, ""
