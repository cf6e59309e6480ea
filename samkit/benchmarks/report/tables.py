"""Tables of runs, made of their JSON alone: the same ones are printed, written into Markdown and set in the report.
The report has a card of each run, too: what it came to, in a headline and a few lines.

What a table is stands in table.py, what is in those of each kind in kinds.py, what papers print in papers.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from samkit.benchmarks.record.figures import DETECTOR_METRICS, FIGURES, METRICS, NONE, interval, number, overlap
from samkit.benchmarks.record.rows import Absent, AccuracyRow, LatencyRow, LoadRow, Row
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.report.kinds import entries_of, is_compared, tables_of
from samkit.benchmarks.report.table import Table, backend_of, by_backend, is_eager, method_of, part_of, spaced
from samkit.json_records import find

Card: TypeAlias = tuple[str, list[str], str]
"""Headline, lines, and state: good, bad, or empty where nothing was judged."""

# --- What stands above the tables of a run ---


def facts(run: Run) -> list[tuple[str, str]]:
    """Return what must stand above the tables of a run: command, machine, versions, exports, whether it was settled."""
    machine = run.machine
    settled = "not asked" if machine.get("settled") is None else "yes"
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
        *([("settled", f"NO: {run.disturbance}" if run.disturbance else settled)] if run.kind != "accuracy" else []),
        ("versions", f"samkit {run.samkit} at {run.commit or 'no commit'}; {packages}"),
        ("exports", _exports(run.exports)),
        ("started", f"{run.started}, for {number(run.seconds)} s"),
        *(("note", note) for note in run.notes),
    ]


def _before_and_after(name: str, pair: Mapping[str, Any] | None) -> str | None:
    if not pair or pair.get("before") in (None, []):
        return None
    words = [", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in pair.values()]
    return f"{name} {words[0]} before, {words[-1]} after"


def _exports(exports: Iterable[Mapping[str, Any]]) -> str:
    found: dict[str, list[str]] = {}
    for export in exports:
        kind = f"{export.get('size') or 'own size'}, {export.get('weights')} weights"
        found.setdefault(kind, []).append(f"{export['method']} {str(export.get('manifest'))[:12]}")
    return "; ".join(f"{kind}: {', '.join(named)}" for kind, named in found.items()) or "none"


def definitions() -> Table:
    """Return what each metric is."""
    found = {**METRICS, **DETECTOR_METRICS}.values()
    rows = tuple((one.label, one.unit or "share", one.better or NONE, one.definition, one.source) for one in found)
    return Table("What the metrics are", ("metric", "unit", "better", "definition", "source"), rows, detail=True)


def show(run: Run) -> None:
    """Print what a run came to, its tables but for details, and what they were measured on."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Printed
    from rich.text import Text

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 200
    found = [*summary_tables([run]), *tables_of(run)]
    for table in found:
        if not table.detail:
            # A title that is a Text has no style of its own
            printed = Printed(*table.columns, title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD)
            for words in table.rows:
                printed.add_row(*words)
            console.print(printed, *table.notes, sep="\n")
    for name, text in facts(run):
        console.print(f"{name}: {text}")
    if details := [table.title for table in found if table.detail]:
        console.print(f"not printed: {'; '.join(details)}. sam-bench report --tables writes all of them")


# --- At a glance ---


def summary_tables(runs: Sequence[Run]) -> list[Table]:
    """Return what is read first: worst parity of each backend, and how much faster than PyTorch each is."""
    rows = [row for run in runs for row in run.rows]
    compared = [row for row in rows if row.kind == "accuracy" and is_compared(row)]
    timed = [row for row in rows if row.kind == "latency"]
    parity = Table(
        "Masks against PyTorch float32",
        ("backend", "gate", "methods", "worst Dice", "most voxels that differ", "worst HD95 [mm]"),
        tuple(_parity_line(name, compared) for name in by_backend(compared)),
    )
    speed = Table(
        "Time of graphs, times PyTorch eager float32",
        ("backend", "graphs", "median", "fastest", "slowest"),
        tuple(_speed_line(name, ratios, timed) for name, ratios in _graph_ratios(timed).items()),
    )
    return [table for table in (parity, speed) if table.rows]


def _parity_line(backend: str, rows: Sequence[Row]) -> tuple[str, ...]:
    rows = [row for row in rows if backend_of(row) == backend]
    ran = [row for row in rows if isinstance(row, AccuracyRow)]
    lost = [row.is_failure for row in rows if isinstance(row, Absent)]
    if not ran:
        return (backend, "error" if any(lost) else "not run", *(NONE,) * 4)
    failed = sum(bool(row.failures) for row in ran) + sum(lost)
    gate = f"FAILED in {failed} of {len(rows)} rows" if failed else f"passed in {len(ran)} rows"
    worst = []
    for key, best in (("parity_dice", 1), ("flipped_voxels", 0), ("parity_hd95_mm", 0)):
        row = _worst_of(ran, key)
        value = find(row, key)
        whose = "" if value == best else f" ({row.identity.method})"  # the best is that of all methods
        worst.append(f"{FIGURES[key].write(value)}{whose}")
    return (backend, gate, str(len({row.identity.method for row in ran})), *worst)


def _graph_ratios(rows: Sequence[Row]) -> dict[str, list[tuple[float, str]]]:
    """Return each graph's median over PyTorch eager's with its name, the fastest first, by backend."""
    entries = [entry for entry in entries_of(rows) if not is_eager(entry.row)]
    found: dict[str, list[tuple[float, str]]] = {name: [] for name in by_backend(entry.row for entry in entries)}
    for row, base in ((entry.row, entry.base) for entry in entries):
        if base is not None and row.identity.graph and not isinstance(row, Absent):
            found[backend_of(row)].append((row.times.p50_ms / base.times.p50_ms, f"{method_of(row)} {part_of(row)}"))
    return {backend: sorted(ratios) for backend, ratios in found.items()}


def _speed_line(backend: str, ratios: Sequence[tuple[float, str]], rows: Sequence[Row]) -> tuple[str, ...]:
    if not ratios:
        words = [spaced(row.word) if isinstance(row, Absent) else "" for row in rows if backend_of(row) == backend]
        return (backend, words[0] if all(words) else "no ratio", NONE, NONE, NONE)
    ends = (f"{number(ratio, 2)}x ({where})" for ratio, where in (ratios[0], ratios[-1]))
    return (backend, str(len(ratios)), f"{number(median(ratio for ratio, _ in ratios), 2)}x", *ends)


def _worst_of(rows: Sequence[Any], key: str) -> Any:
    return rows[int(np.argmin([FIGURES[key].sign * find(row, key) for row in rows]))]  # argmin takes the first nan


def card_of(run: Run) -> Card:
    """Return what a run came to."""
    ran: list[Any] = [row for row in run.rows if not isinstance(row, Absent)]
    absent = [row for row in run.rows if isinstance(row, Absent)]
    lost = sum(row.is_failure for row in absent)
    if run.kind == "accuracy":
        headline, lines, state = _accuracy_card(ran, lost, run.data)
    else:
        headline, lines, state = _latency_card(ran) if run.kind == "latency" else _load_card(ran)
    if lost:
        lines.append(f"{lost} of {len(run.rows)} rows: error")
    if missing := {backend_of(row) for row in absent if not row.is_failure} - set(map(backend_of, ran)):
        lines.append(f"not run: {missing.pop() if len(missing) == 1 else f'{len(missing)} backends'}")
    return headline, lines, state


def _accuracy_card(rows: Sequence[AccuracyRow], lost: int, data: str) -> Card:
    """Return the card of rows; `lost` more were to be compared, and failed before they could be."""
    compared = [row for row in rows if not is_eager(row)]
    if not compared:
        return "Nothing was compared", [], "bad"
    failed = sum(bool(row.failures) for row in compared) + lost
    worst = _worst_of(compared, "parity_dice")
    cases = {(row.identity.method, case.case) for row in rows for case in row.cases}
    lines = [
        f"worst Dice to PyTorch {overlap(worst.parity.dice)}: {worst.identity.method}, {backend_of(worst)}",
        f"{len({row.identity.method for row in rows})} methods, {len(cases)} cases of {data}",
    ]
    if failed:
        return f"Gate FAILED in {failed} of {len(compared) + lost} rows", lines, "bad"
    return f"Gate passed in all {len(compared)} rows", lines, "good"


def _latency_card(rows: Sequence[LatencyRow]) -> Card:
    lines = [f"{len(rows)} rows of {len(set(map(method_of, rows)))} methods"]
    medians = {name: median(ratio for ratio, _ in ratios) for name, ratios in _graph_ratios(rows).items() if ratios}
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


def _load_card(rows: Sequence[LoadRow]) -> Card:
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
