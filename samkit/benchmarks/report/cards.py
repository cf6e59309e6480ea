"""Cards of a report: each run at a glance, in a headline and a few lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samkit.benchmarks.record.run import Row, Run
from samkit.benchmarks.report.speed_tables import median_ratios
from samkit.benchmarks.report.table import (
    backend_of,
    interval,
    is_eager,
    measured,
    method_of,
    number,
    or_worst,
    overlap,
    part_of,
)


@dataclass(frozen=True)
class Card:
    """A run at a glance."""

    headline: str
    lines: tuple[str, ...]
    state: str
    """good, bad, or empty where nothing was judged."""
    settled: bool | None
    """None where nothing was timed."""


def card_of(run: Run) -> Card:
    """Return what a run came to."""
    rows = [row for row in run.rows if measured(row)]
    lost = sum("error" in row for row in run.rows)
    if run.kind == "accuracy":
        headline, lines, state = _accuracy_card(rows, lost, run.data)
    else:
        headline, lines, state = _latency_card(rows) if run.kind == "latency" else _load_card(rows)
    if lost:
        lines.append(f"{lost} of {len(run.rows)} rows: error")
    missing = {backend_of(row) for row in run.rows if "not_run" in row} - {backend_of(row) for row in rows}
    if missing:
        lines.append(f"not run: {', '.join(missing) if len(missing) == 1 else f'{len(missing)} backends'}")
    return Card(headline, tuple(lines), state, None if run.kind == "accuracy" else run.machine.get("settled"))


def _accuracy_card(rows: Sequence[Row], lost: int, data: str) -> tuple[str, list[str], str]:
    """Return headline, lines and state; `lost` rows more were to be compared, and failed before they could be."""
    compared = [row for row in rows if not is_eager(row)]
    if not compared:
        return "Nothing was compared", [], "bad"
    failed = sum(bool(row.get("failures")) for row in compared) + lost
    worst = min(compared, key=lambda row: or_worst(row["parity_dice"], -math.inf))
    cases = {(row["method"], case["case"]) for row in rows for case in row.get("cases") or ()}
    lines = [
        f"worst Dice to PyTorch {overlap(worst['parity_dice'])}: {worst['method']}, {backend_of(worst)}",
        f"{len({row['method'] for row in rows})} methods, {len(cases)} cases of {data}",
    ]
    if failed:
        return f"Gate FAILED in {failed} of {len(compared) + lost} rows", lines, "bad"
    return f"Gate passed in all {len(compared)} rows", lines, "good"


def _latency_card(rows: Sequence[Row]) -> tuple[str, list[str], str]:
    methods = {method_of(row) for row in rows}
    lines = [f"{len(rows)} rows of {len(methods)} methods"]
    if ratios := median_ratios(rows):
        fastest = min(ratios, key=lambda backend: ratios[backend])
        lines.append(f"{fastest} takes {number(ratios[fastest], 2)} of PyTorch eager's time, the median of graphs")
    clicks: dict[str, list[float]] = {}
    for row in rows:
        if row.get("stage") == "click" and not row["backend"].startswith("torch"):
            clicks.setdefault(backend_of(row), []).append(row["p50_ms"])
    if not clicks:
        return f"{len(rows)} timings", lines, ""
    quickest = min(clicks, key=lambda backend: float(np.median(clicks[backend])))
    least, most = (number(end(clicks[quickest])) for end in (min, max))
    lines.insert(0, f"the median of each method, with {quickest}")
    return f"A click takes {least if least == most else f'{least} to {most}'} ms", lines, ""


def _load_card(rows: Sequence[Row]) -> tuple[str, list[str], str]:
    scaled = [row for row in rows if "scaling" in row]
    growth = [
        f"{row['method']}: {part_of(row)}: exponent {interval(row['scaling']['exponent'])}"
        for row in scaled
        if str(row["stage"]).startswith("click")
    ]
    clicking = {row["method"] for row in rows if row["stage"] == "click"}
    levels = [
        row
        for row in rows
        if row.get("sessions") and row["stage"] == ("click" if row["method"] in clicking else "scan")
    ]
    if not levels:
        return f"{len(scaled)} growths of cost", growth, ""
    held = [row for row in levels if _is_held(row)]
    best = {(row["method"], row.get("mode", "closed")): row for row in sorted(held, key=lambda row: row["sessions"])}
    lines = [
        f"{method}, {mode}: {row['sessions']}, p95 of a {row['stage']} {number(row['p95_ms'])} ms"
        for (method, mode), row in best.items()
    ]
    if beyond := len(levels) - len(held):
        lines.append(f"{beyond} level{'s' * (beyond > 1)} beyond the limit, or with errors")
    if not held:
        return "No reader was held", lines + growth, "bad"
    most = max(row["sessions"] for row in held)
    return f"{most} reader{'s' * (most > 1)} held at once", lines + growth, ""


def _is_held(row: Row) -> bool:
    """Return whether so many readers were answered, all of them and in time."""
    return not any((row.get("errors") or {}).values()) and row["p95_ms"] <= row.get("limit_ms", math.inf)
