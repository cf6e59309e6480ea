"""The tables of each kind of run: accuracy, latency, load, as layouts over the rows.

Accuracy: a backend may have stopped sooner than PyTorch, as a server does where its last mask is to go in as a prompt.
So figures against the truth say after which click they are, PyTorch's of that click stand beside them, and a parity of
fewer clicks than PyTorch's says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from samkit.benchmarks.record.figures import FIGURES, METRICS, NONE, interval, number, overlap, share
from samkit.benchmarks.record.rows import DETECTOR, AccuracyRow, LatencyRow, LoadRow, Row, Summary, summarise
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.record.statistics import percentile_ratio
from samkit.benchmarks.report.table import Entry, Layout, backend_of, is_eager, measured, method_of, part_of
from samkit.json_records import find

TARGETS = ("0.80", "0.85", "0.90")
FIRST = ("dice", "nsd", "hd95_mm", "volume_error_ml")
"""Metrics of the first table against the truth; the others are details."""
FEW_CASES = 5
"""Cases below which the interval of a mean is little more than the least and the greatest."""
FEW = 3
"""Samples below which a ratio has no interval."""


def entries_of(run: Run) -> list[Entry]:
    """Return the rows of a run with PyTorch's beside them, in the order of tables.

    PyTorch's masks stand once more before each row that stopped sooner, as they were after the same clicks.
    """
    if run.kind == "load":
        return [Entry(row) for row in sorted(run.rows, key=_level)]
    place, is_base = (_answered, is_reference) if run.kind == "accuracy" else (peers, _is_timed)
    bases = {place(row): row for row in run.rows if is_base(row)}
    found: list[Entry] = []
    for row in run.rows:
        base = bases.get(place(row))
        entry = Entry(row, None if row is base else base)
        if isinstance(row, AccuracyRow) and row.cases and _stopped(entry):
            same = Entry(_at_same_clicks(entry.base, row))
            found += [same] if same not in found else []
        found.append(entry)
    return found


def peers(row: Row) -> tuple[tuple[str, Any], ...]:
    """Return what a row has in common with those of other backends."""
    return row.identity.key(without=("backend", "precision"))


def _is_timed(row: Row) -> bool:
    return is_eager(row) and measured(row)


def _written(row: Row, *keys: str) -> dict[str, str]:
    """Return some of FIGURES as a row has them, by column."""
    return {FIGURES[key].title: FIGURES[key].write(find(row, key)) for key in keys}


# --- Masks against PyTorch ---


def is_masks(row: Row) -> bool:
    """Return whether a row is of masks, and not of a detector's boxes."""
    return row.identity.graph != DETECTOR


def is_reference(row: Row) -> bool:
    """Return whether a row is PyTorch's own masks."""
    return isinstance(row, AccuracyRow) and row.reference and is_masks(row)


def is_compared(row: Row) -> bool:
    """Return whether a row is of masks that are compared with PyTorch's."""
    return is_masks(row) and not is_reference(row)


def failures(runs: Iterable[Run]) -> list[str]:
    """Return what gates found in runs of accuracy, each sentence once."""
    rows = (row for run in runs for row in run.rows if not isinstance(row, LatencyRow | LoadRow))
    return list(dict.fromkeys(sentence for row in rows for sentence in row.failures))


def _answered(row: Row) -> tuple[str, Any]:
    return method_of(row), row.identity.policy


def last_clicks(row: AccuracyRow) -> str:
    """Return after which click the cases of a row ended; 0 is before any, where a method decides by itself."""
    last = [case.clicks[-1].click for case in row.cases if case.clicks]
    return " to ".join(map(str, sorted({min(last), max(last)}))) if last else NONE


def _stopped(entry: Entry) -> bool:
    """Return whether a row has fewer clicks of some case than PyTorch's has."""
    there = {case.case: len(case.clicks) for case in entry.row.cases}
    return entry.base is not None and any(there.get(case.case, 0) < len(case.clicks) for case in entry.base.cases)


def _at_same_clicks(original: AccuracyRow, row: AccuracyRow) -> AccuracyRow:
    clicks = {case.case: len(case.clicks) for case in row.cases}
    cases = [replace(case, clicks=case.clicks[: clicks[case.case]]) for case in original.cases if clicks.get(case.case)]
    return replace(original, cases=tuple(cases), figures=summarise(case.clicks[-1] for case in cases))


def _parity_cell(entry: Entry) -> str:
    row = entry.row
    sooner = f", to click {last_clicks(row)}" if _stopped(entry) else ""
    failed = ", FAILED" if row.failures else ""
    return f"{overlap(row.parity.dice)} ({number(row.parity.flipped_voxels)}){sooner}{failed}"


def _parity_notes(entries: Sequence[Entry]) -> Iterator[str]:
    for name in dict.fromkeys(backend_of(entry.row) for entry in entries if entry.row.identity.emulated):
        yield (
            f"{name} on a CPU is emulated: it rounds and overflows as on a GPU, because ONNX Runtime on a CPU would "
            "compute in float32"
        )
    places: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if measured(entry.row) and _stopped(entry):
            # A note begins with its case and click, and every case has one
            whys = dict.fromkeys(note.partition(": ")[2] for note in entry.row.notes)
            why = "; ".join(whys) or "see the failures"
            places.setdefault((backend_of(entry.row), why), []).append("{} {}".format(*_answered(entry.row)))
    for (backend, why), where in places.items():
        yield f"to click ...: {backend} stopped sooner than PyTorch in {', '.join(where)}: {why}"
    yield from _failed_notes(entries)


def _failed_notes(entries: Sequence[Entry]) -> Iterator[str]:
    yield from dict.fromkeys(f"FAILED: {sentence}" for entry in entries for sentence in entry.row.failures)


def _parity_line(entry: Entry) -> dict[str, str]:
    errors: Mapping[str, float] = entry.row.parity.relative_error
    worst = max(errors, key=lambda graph: math.inf if math.isnan(errors[graph]) else errors[graph], default="")
    drift = [entry.row.click_drift.get(target) for target in TARGETS]
    return {
        **_written(entry.row, "parity_dice", "parity_hd95_mm", "flipped_voxels", "logit_difference"),
        "largest relative error (graph)": f"{number(errors[worst], 2)} ({worst})" if errors else NONE,
        f"drift of clicks to Dice {', '.join(TARGETS)}": NONE
        if set(drift) == {None}
        else ", ".join(map(number, drift)),
    }


def _detector_line(entry: Entry) -> dict[str, str]:
    boxes = {"boxes against PyTorch's: worst Dice": overlap(entry.row.parity.dice)}
    return _written(entry.row, "map50", "map50_95") | boxes


# --- Masks against the truth ---


def _truth_layout(title: str, keys: Sequence[str], *, detail: bool = True) -> Layout:
    def line(entry: Entry) -> dict[str, str]:
        figures = entry.row.figures
        cases = {"cases": number(len(entry.row.cases)), "after click": last_clicks(entry.row)}
        metrics = {METRICS[key].title: _truth(key, figures[key]) if key in figures else NONE for key in keys}
        return cases | metrics if any(key in figures for key in keys) else {}

    return Layout(title, is_masks, line, settings=("policy",), notes=_truth_notes, detail=detail, is_short=True)


def _truth(key: str, found: Summary) -> str:
    write = METRICS[key].write
    worst = f"; {write(found.worst)}" if found.worst is not None else ""
    infinite = f" in {found.not_finite}" if found.not_finite else ""
    return f"{interval(found.mean, write)}{worst}{infinite}"


def _truth_notes(entries: Sequence[Entry]) -> Iterator[str]:
    yield (
        "mean over the cases [where it lies in 95 of 100 bootstrap draws]; worst case. A backend stands here where it "
        "differs from PyTorch as printed. Distances are infinite where one of two masks is empty; those cases are "
        "counted and left out of the mean"
    )
    if any(measured(entry.row) and 0 < len(entry.row.cases) < FEW_CASES for entry in entries):
        yield f"of fewer than {FEW_CASES} cases the interval is little more than the least and the greatest of them"


def _clicks_line(entry: Entry) -> dict[str, str]:
    clicks_to = entry.row.clicks_to
    return {f"Dice {key}": _clicks(clicks_to.get(key)) for key in TARGETS} if any(clicks_to.values()) else {}


def _clicks(counts: Sequence[int | None] | None) -> str:
    if not counts:
        return NONE
    reached = [count for count in counts if count is not None]
    return f"{number(median(reached)) if reached else 'not reached'} ({len(reached)} of {len(counts)})"


# --- Times ---


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
    return number(ratio.value) if min(len(ours), len(theirs)) < FEW else interval(ratio.rounded())


def _times_notes(entries: Sequence[Entry]) -> Iterator[str]:
    rows = [entry.row for entry in entries]
    limits = dict.fromkeys(row.limit for row in rows if isinstance(row, LatencyRow) and row.limit)
    if limits:
        yield f"the limit: {', '.join(limits)} of this machine, measured in the same rounds"
    yield from dict.fromkeys(row.note for row in rows if row.note)


def _latency_layouts(part: str, title: str) -> tuple[Layout, Layout]:
    medians = Layout(
        f"{title}: median [ms]", lambda row: getattr(row.identity, part) is not None, cell=_median_cell, part=part,
        settings=("threads", "batch", "points"),
        notes=lambda entries: ("in brackets: times PyTorch eager float32, of medians",),
    )  # fmt: skip
    times = replace(
        medians, title=f"{title}: percentiles", cell=None, line=_times_line, notes=_times_notes, detail=True
    )
    return medians, times


# --- Readers on a server ---


def _is_growth(row: Row) -> bool:
    """Return whether a row is of how a cost grows; one without figures tells by its stage."""
    return (isinstance(row, LoadRow) and row.scaling is not None) or " over " in str(row.identity.stage)


def _level(row: Row) -> tuple[Any, ...]:
    who = row.identity
    return (True,) if _is_growth(row) else (False, who.method, str(who.mode), who.sessions or 0)


def _pauses(entries: Sequence[Entry]) -> Iterator[str]:
    for pause in sorted({entry.row.identity.think_s for entry in entries if entry.row.identity.think_s}):
        yield f"think: a reader looks for {number(pause)} s on average before the next click"


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


# --- All of them ---

_OTHERS = [key for key in METRICS if key not in FIRST]
LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "accuracy": (
        Layout(
            "Masks against PyTorch float32: worst Dice (most voxels that differ) of all cases and clicks", is_compared,
            cell=_parity_cell, settings=("policy",), notes=_parity_notes,
        ),
        Layout(
            "Masks against PyTorch float32: all measures at worst", is_compared, _parity_line, settings=("policy",),
            detail=True,
        ),
        _truth_layout("Masks against the truth", FIRST, detail=False),
        _truth_layout("Masks against the truth: other overlaps", [k for k in _OTHERS if METRICS[k].write is share]),
        _truth_layout("Masks against the truth: other distances and sizes", [k for k in _OTHERS if METRICS[k].unit]),
        Layout(
            "Clicks to reach a Dice: median of the cases that did, and how many did", is_masks, _clicks_line,
            settings=("policy",), is_short=True,
        ),
        Layout(
            "Detector: mean average precision against boxes of the truth", lambda row: not is_masks(row),
            _detector_line, notes=_failed_notes,
        ),
    ),
    "latency": (
        *_latency_layouts("graph", "Time of each graph"),
        *_latency_layouts("stage", "Time that a reader waits, by stage"),
    ),
    "load": (
        Layout(
            "Readers on a server", lambda row: not _is_growth(row), _level_line, settings=("mode", "sessions", "stage"),
            notes=_pauses,
        ),
        Layout("How cost grows: time = c * size^exponent", _is_growth, _growth_line),
    ),
}  # fmt: skip
"""By kind of run, in the order of print."""
