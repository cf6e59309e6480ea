"""The tables of each kind of run: accuracy, latency, load.

Accuracy: a backend may have stopped sooner than PyTorch, as a server does where its last mask is to go in as a prompt.
So figures against the truth say after which click they are, PyTorch's of that click stand beside them, and a parity of
fewer clicks than PyTorch's says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from samkit.benchmarks.record.figures import FIGURES, METRICS, NONE, interval, number, overlap, share
from samkit.benchmarks.record.rows import DETECTOR, AccuracyRow, LoadRow, Row, Summary, summarise
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.record.statistics import percentile_ratio
from samkit.benchmarks.report import table
from samkit.benchmarks.report.table import Entry, Table, backend_of, is_eager, measured, method_of, part_of
from samkit.json_records import find

TARGETS = ("0.80", "0.85", "0.90")
FIRST = ("dice", "nsd", "hd95_mm", "volume_error_ml")
"""Metrics of the first table against the truth; the others are details."""
FEW_CASES, FEW_SAMPLES = 5, 3
"""Below which the interval of a mean is little more than the least and the greatest, and a ratio has no interval."""


def tables_of(run: Run) -> list[Table]:
    """Return the tables of a run, those that would say nothing left out."""
    make = {"accuracy": _accuracy, "latency": _latency, "load": _load}[run.kind]
    return [made for made in make(entries_of(run.rows)) if made is not None]


def entries_of(rows: Sequence[Row]) -> list[Entry]:
    """Return rows of one kind with PyTorch's beside them.

    PyTorch's masks stand once more before each row that stopped sooner, as they were after the same clicks.
    """
    bases = {_peers(row): row for row in rows if measured(row) and is_eager(row)}
    found: list[Entry] = []
    for row in rows:
        base, stopped = bases.get(_peers(row)), False
        if isinstance(row, AccuracyRow) and isinstance(base, AccuracyRow):
            clicks = {case.case: len(case.clicks) for case in row.cases}
            stopped = any(clicks.get(case.case, 0) < len(case.clicks) for case in base.cases)
            if stopped and clicks and (same := Entry(_after(base, clicks))) not in found:
                found.append(same)
        found.append(Entry(row, None if row is base else base, stopped))
    return found


def _after(row: AccuracyRow, clicks: Mapping[str, int]) -> AccuracyRow:
    """Return a row as it was after so many clicks of each case."""
    cases = tuple(replace(case, clicks=case.clicks[:n]) for case in row.cases if (n := clicks.get(case.case)))
    return replace(row, cases=cases, figures=summarise(case.clicks[-1] for case in cases))


def _peers(row: Row) -> tuple[tuple[str, Any], ...]:
    """Return what a row has in common with those of other backends; masks are PyTorch's of any device."""
    return row.identity.key(without=("backend", "precision", "device" if row.kind == "accuracy" else ""))


def _written(row: Row, *keys: str) -> dict[str, str]:
    return {FIGURES[key].title: FIGURES[key].write(find(row, key)) for key in keys}


# --- Accuracy ---


def _accuracy(entries: Sequence[Entry]) -> Iterator[Table | None]:
    boxes = [one for one in entries if one.row.identity.graph == DETECTOR]
    masks = [one for one in entries if one.row.identity.graph != DETECTOR]
    compared = [one for one in masks if is_compared(one.row)]
    title = "Masks against PyTorch float32: worst Dice (most voxels that differ) of all cases and clicks"
    yield table.pivot(title, compared, _parity_cell, _parity_notes(compared))
    yield table.listing("Masks against PyTorch float32: all measures at worst", compared, _parity_line, detail=True)
    others = [key for key in METRICS if key not in FIRST]
    yield _truth("", masks, FIRST)
    yield _truth(": other overlaps", masks, [key for key in others if METRICS[key].write is share], detail=True)
    yield _truth(": other distances and sizes", masks, [key for key in others if METRICS[key].unit], detail=True)
    title = "Clicks to reach a Dice: median of the cases that did, and how many did"
    yield table.listing(title, masks, _clicks_line, is_short=True)
    yield table.listing("Detector: mean average precision against boxes of the truth", boxes, _detector_line)


def is_compared(row: Row) -> bool:
    """Return whether a row is of masks that are compared with PyTorch's."""
    return row.identity.graph != DETECTOR and not (is_eager(row) and measured(row))


def _last_clicks(row: AccuracyRow) -> str:
    """Return after which click the cases of a row ended; 0 is before any, where a method decides by itself."""
    last = [case.clicks[-1].click for case in row.cases if case.clicks]
    return " to ".join(map(str, sorted({min(last), max(last)}))) if last else NONE


def _parity_cell(entry: Entry) -> str:
    row = entry.row
    sooner = f", to click {_last_clicks(row)}" if entry.stopped else ""
    failed = ", FAILED" if row.failures else ""
    return f"{overlap(row.parity.dice)} ({number(row.parity.flipped_voxels)}){sooner}{failed}"


def _parity_notes(entries: Sequence[Entry]) -> Iterator[str]:
    for name in dict.fromkeys(backend_of(entry.row) for entry in entries if entry.row.identity.emulated):
        yield (
            f"{name} on a CPU is emulated: it rounds and overflows as on a GPU, because ONNX Runtime on a CPU would "
            "compute in float32"
        )
    places: dict[tuple[str, str], list[str]] = {}
    for row in (entry.row for entry in entries if entry.stopped):
        # A note begins with its case and click, and every case has one
        why = "; ".join(dict.fromkeys(note.partition(": ")[2] for note in row.notes)) or "see the failures"
        places.setdefault((backend_of(row), why), []).append(f"{method_of(row)} {row.identity.policy}")
    for (backend, why), where in places.items():
        yield f"to click ...: {backend} stopped sooner than PyTorch in {', '.join(where)}: {why}"


def _parity_line(entry: Entry) -> dict[str, str]:
    errors: Mapping[str, float] = entry.row.parity.relative_error
    worst = [*errors][np.argmax([*errors.values()])] if errors else ""  # argmax takes the first nan
    drift = [entry.row.click_drift.get(target) for target in TARGETS]
    drifted = ", ".join(map(number, drift)) if set(drift) != {None} else NONE
    return {
        **_written(entry.row, "parity_dice", "parity_hd95_mm", "flipped_voxels", "logit_difference"),
        "largest relative error (graph)": f"{number(errors[worst], 2)} ({worst})" if errors else NONE,
        f"drift of clicks to Dice {', '.join(TARGETS)}": drifted,
    }


def _detector_line(entry: Entry) -> dict[str, str]:
    dice = overlap(entry.row.parity.dice)
    return {**_written(entry.row, "map50", "map50_95"), "boxes against PyTorch's: worst Dice": dice}


def _truth(title: str, entries: Sequence[Entry], keys: Sequence[str], *, detail: bool = False) -> Table | None:
    def line(entry: Entry) -> dict[str, str]:
        figures = entry.row.figures
        cases = {"cases": number(len(entry.row.cases)), "after click": _last_clicks(entry.row)}
        metrics = {METRICS[key].title: _mean(key, figures[key]) if key in figures else NONE for key in keys}
        return cases | metrics if any(key in figures for key in keys) else {}

    notes = [
        "mean over the cases [where it lies in 95 of 100 bootstrap draws]; worst case. A backend stands here where it "
        "differs from PyTorch as printed. Distances are infinite where one of two masks is empty; those cases are "
        "counted and left out of the mean"
    ]
    few = f"of fewer than {FEW_CASES} cases the interval is little more than the least and the greatest of them"
    if any(0 < len(one.row.cases) < FEW_CASES and line(one) for one in entries if measured(one.row)):
        notes.append(few)
    return table.listing(f"Masks against the truth{title}", entries, line, notes, detail=detail, is_short=True)


def _mean(key: str, found: Summary) -> str:
    write = METRICS[key].write
    worst = f"; {write(found.worst)}" if found.worst is not None else ""
    infinite = f" in {found.not_finite}" if found.not_finite else ""
    return f"{interval(found.mean, write)}{worst}{infinite}"


def _clicks_line(entry: Entry) -> dict[str, str]:
    clicks_to = entry.row.clicks_to
    return {f"Dice {key}": _clicks(clicks_to.get(key, ())) for key in TARGETS} if any(clicks_to.values()) else {}


def _clicks(counts: Sequence[int | None]) -> str:
    reached = [count for count in counts if count is not None]
    words = f"{number(median(reached)) if reached else 'not reached'} ({len(reached)} of {len(counts)})"
    return words if counts else NONE


# --- Times ---


def _latency(entries: Sequence[Entry]) -> Iterator[Table | None]:
    for part, title in (("graph", "Time of each graph"), ("stage", "Time that a reader waits, by stage")):
        found = [one for one in entries if getattr(one.row.identity, part) is not None]
        note = "in brackets: times PyTorch eager float32, of medians"
        yield table.pivot(f"{title}: median [ms]", found, _median_cell, [note], part=part)
        yield table.listing(f"{title}: percentiles", found, _times_line, _times_notes(found), part=part, detail=True)


def _median_cell(entry: Entry) -> str:
    ours = entry.row.times.p50_ms
    return number(ours) + (f" ({number(ours / entry.base.times.p50_ms, 2)}x)" if entry.base is not None else "")


def _times_line(entry: Entry) -> dict[str, str]:
    row = entry.row
    return {
        "n": number(row.times.n or None),
        **_written(row, "p50_ms", "p95_ms", "p99_ms"),
        "times PyTorch eager [95 %]": _ratio(entry),
        **_written(row, "gflop", "limit_share", "peak_mb", "above_session_mb", "relative_error"),
    }


def _ratio(entry: Entry) -> str:
    ours, theirs = (row.times.samples_ms if row is not None else () for row in (entry.row, entry.base))
    if not (ours and theirs):
        return NONE
    ratio = percentile_ratio(ours, theirs)
    return number(ratio.value) if min(len(ours), len(theirs)) < FEW_SAMPLES else interval(ratio.rounded())


def _times_notes(entries: Sequence[Entry]) -> Iterator[str]:
    rows = [entry.row for entry in entries]
    if limits := dict.fromkeys(row.limit for row in rows if measured(row) and row.limit):
        yield f"the limit: {', '.join(limits)} of this machine, measured in the same rounds"
    yield from dict.fromkeys(row.note for row in rows if row.note)


# --- Readers on a server ---


def _load(entries: Sequence[Entry]) -> Iterator[Table | None]:
    levels = [one for one in entries if not _is_growth(one.row)]
    levels.sort(key=lambda one: (one.row.identity.method, str(one.row.identity.mode), one.row.identity.sessions or 0))
    pauses = [
        f"think: a reader looks for {number(pause)} s on average before the next click"
        for pause in sorted({one.row.identity.think_s for one in levels if one.row.identity.think_s})
    ]
    yield table.listing("Readers on a server", levels, _level_line, pauses, settings=("mode", "sessions", "stage"))
    growths = [one for one in entries if _is_growth(one.row)]
    yield table.listing("How cost grows: time = c * size^exponent", growths, _growth_line)


def _is_growth(row: Row) -> bool:
    """Return whether a row is of how a cost grows; one without figures tells by its stage."""
    return (isinstance(row, LoadRow) and row.scaling is not None) or " over " in str(row.identity.stage)


def _level_line(entry: Entry) -> dict[str, str]:
    row = entry.row
    return {
        "n": number(row.times.n),
        **_written(row, "sessions_held", "p50_ms", "p95_ms", "p99_ms", "clicks_per_second"),
        "errors": ", ".join(f"{count} {name}" for name, count in row.errors.items()) or "none",
        **_written(row, "server_rss_mb", "client_cpu_share", "server_cpu_share"),
    }


def _growth_line(entry: Entry) -> dict[str, str]:
    growth = entry.row.scaling
    return {
        "cost": part_of(entry.row),
        "over": growth.over,
        "from, to": f"{number(min(growth.x))} to {number(max(growth.x))}",
        "median [ms]": " to ".join(number(median(growth.y_ms[end])) for end in (0, -1)),
        "exponent [95 %]": interval(growth.exponent),
    }
