"""Tables of accuracy: masks beside PyTorch float32's, masks beside the truth, clicks to a Dice, detectors.

A backend may have stopped sooner than PyTorch, as a server does where its last mask is to go in as a prompt. So figures
against the truth say after which click they are, PyTorch's of that click stand beside them, and a parity of fewer
clicks than PyTorch's says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from samkit.benchmarks.accuracy.rows import figures_of
from samkit.benchmarks.record.metrics import METRICS
from samkit.benchmarks.record.run import Row, Run
from samkit.benchmarks.report.table import (
    NONE,
    OVERLAPS,
    Columns,
    Table,
    backend_of,
    by_backend,
    interval,
    line_columns,
    listing,
    measured,
    method_of,
    metric_title,
    number,
    or_worst,
    overlap,
    pivot,
    reasons,
    unless_repeated,
    writer_of,
)

TARGETS = ("0.80", "0.85", "0.90")
FIRST = ("dice", "nsd", "hd95_mm", "volume_error_ml")
"""Metrics of the first table against the truth; the others are details."""
FEW_CASES = 5
"""Cases below which the interval of a mean is little more than the least and the greatest."""

Originals: TypeAlias = Mapping[tuple[str, Any], Row]
"""PyTorch's rows by method and policy."""


def accuracy_tables(run: Run) -> list[Table]:
    """Return parity with PyTorch, metrics against the truth, clicks to a Dice, and the detectors' precision."""
    masks = [row for row in run.rows if row.get("graph") != "detector"]
    detectors = [row for row in run.rows if row.get("graph") == "detector"]
    lines = line_columns(masks, "", ("policy",))
    compared = [row for row in masks if not row.get("reference")]
    originals = {_answered(row): row for row in masks if row.get("reference")}
    title = "Masks against PyTorch float32"
    found = [
        pivot(
            f"{title}: worst Dice (most voxels that differ) of all cases and clicks", compared, lines,
            lambda row: _parity_cell(row, originals), _parity_notes(run, compared, originals),
        ),
        listing(f"{title}: all measures at worst", compared, lines, PARITY_FIGURES, detail=True),
        *_truth_tables(_with_same_clicks(masks, originals), lines),
        _clicks_table(masks, lines),
        *([_detector_table(detectors)] if detectors else []),
    ]  # fmt: skip
    return [table for table in found if table.rows]


def failures(runs: Iterable[Run]) -> list[str]:
    """Return what gates found in runs of accuracy, each sentence once."""
    return list(dict.fromkeys(sentence for run in runs for row in run.rows for sentence in row.get("failures") or ()))


# --- Against PyTorch ---


def parity_summary(runs: Sequence[Run]) -> Table:
    """Return the worst parity of each backend, over all methods of runs of accuracy."""
    rows = [
        row
        for run in runs
        if run.kind == "accuracy"
        for row in run.rows
        if row.get("graph") != "detector" and not row.get("reference")
    ]
    columns = ("backend", "gate", "methods", "worst Dice", "most voxels that differ", "worst HD95 [mm]")
    lines = tuple(
        _summary_line(backend, [row for row in rows if backend_of(row) == backend]) for backend in by_backend(rows)
    )
    return Table("Masks against PyTorch float32", columns, lines)


def _summary_line(backend: str, rows: Sequence[Row]) -> tuple[str, ...]:
    ran = [row for row in rows if measured(row)]
    if not ran:
        return (backend, "not run" if all("not_run" in row for row in rows) else "error", *(NONE,) * 4)
    failed = sum(bool(row.get("failures")) for row in ran) + sum("error" in row for row in rows)
    dice = min(ran, key=lambda row: or_worst(row["parity_dice"], -math.inf))
    flipped, distance = (
        max(ran, key=lambda row: or_worst(row.get(key), math.inf)) for key in ("flipped_voxels", "parity_hd95_mm")
    )

    def at_worst(row: Row, key: str, words: str, best: float) -> str:
        return words if row.get(key) == best else f"{words} ({row['method']})"  # the best is that of all methods

    return (
        backend,
        f"FAILED in {failed} of {len(rows)} rows" if failed else f"passed in {len(ran)} rows",
        str(len({row["method"] for row in ran})),
        at_worst(dice, "parity_dice", overlap(dice["parity_dice"]), 1.0),
        at_worst(flipped, "flipped_voxels", number(flipped.get("flipped_voxels")), 0),
        at_worst(distance, "parity_hd95_mm", number(distance.get("parity_hd95_mm")), 0),
    )


def _answered(row: Row) -> tuple[str, Any]:
    return method_of(row), row.get("policy")


def _parity_cell(row: Row, originals: Originals) -> str:
    failed = ", FAILED" if row.get("failures") else ""
    sooner = f", to click {last_clicks(row)}" if _stopped(row, originals) else ""
    return f"{overlap(row['parity_dice'])} ({number(row.get('flipped_voxels'))}){sooner}{failed}"


def _parity_notes(run: Run, rows: Sequence[Row], originals: Originals) -> tuple[str, ...]:
    emulated = [backend_of(row) for row in rows if row.get("emulated")]
    said = [
        f"{name} on a CPU is emulated: it rounds and overflows as on a GPU, because ONNX Runtime on a CPU would "
        "compute in float32"
        for name in dict.fromkeys(emulated)
    ]
    return (*said, *_stops(rows, originals), *(f"FAILED: {sentence}" for sentence in failures([run])))


def last_clicks(row: Row) -> str:
    """Return after which click the cases of a row ended; 0 is before any, where a method decides by itself.

    >>> last_clicks({"cases": [{"clicks": [{"click": 1}, {"click": 2}]}, {"clicks": [{"click": 1}]}]})
    '1 to 2'
    """
    last = [case["clicks"][-1].get("click", len(case["clicks"])) for case in row.get("cases") or () if case["clicks"]]
    if not last:
        return NONE
    return str(min(last)) if min(last) == max(last) else f"{min(last)} to {max(last)}"


def _stopped(row: Row, originals: Originals) -> bool:
    """Return whether a row has fewer clicks of some case than PyTorch's has."""
    original = originals.get(_answered(row), {})
    wanted = {case["case"]: len(case["clicks"]) for case in original.get("cases") or ()}
    there = {case["case"]: len(case["clicks"]) for case in row.get("cases") or ()}
    return any(there.get(case, 0) < clicks for case, clicks in wanted.items())


def _stops(rows: Iterable[Row], originals: Originals) -> Iterator[str]:
    """Yield a sentence for each backend that stopped sooner than PyTorch, and each reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if measured(row) and _stopped(row, originals):
            # A note begins with its case and click, and every case has one
            whys = dict.fromkeys(note.partition(": ")[2] for note in row.get("notes") or ())
            method, policy = _answered(row)
            found.setdefault((backend_of(row), "; ".join(whys) or "see the failures"), []).append(f"{method} {policy}")
    for (backend, why), places in found.items():
        yield f"to click ...: {backend} stopped sooner than PyTorch in {', '.join(places)}: {why}"


def _worst_relative(row: Row) -> str:
    errors: Mapping[str, float] = row.get("relative_error") or {}
    if not errors:
        return NONE
    name = max(errors, key=lambda graph: math.inf if math.isnan(errors[graph]) else errors[graph])
    return f"{number(errors[name], 2)} ({name})"


def _drift(row: Row) -> str:
    drift = row.get("click_drift") or {}
    if all(drift.get(target) is None for target in TARGETS):
        return NONE
    return ", ".join(number(drift.get(target)) for target in TARGETS)


PARITY_FIGURES: Mapping[str, Callable[[Row], str]] = {
    "Dice": lambda row: overlap(row["parity_dice"]),
    "HD95 [mm]": lambda row: number(row.get("parity_hd95_mm")),
    "voxels that differ": lambda row: number(row.get("flipped_voxels")),
    "largest logit difference": lambda row: number(row.get("logit_difference")),
    "largest relative error (graph)": _worst_relative,
    f"drift of clicks to Dice {', '.join(TARGETS)}": _drift,
}


# --- Against the truth ---


def _truth_tables(rows: Sequence[Row], lines: Columns) -> list[Table]:
    """Return metrics against the truth, those of FIRST and the others, of PyTorch and of what differs from it."""
    keys = [key for key in METRICS if any(key in (row.get("figures") or {}) for row in rows)]
    others = [key for key in keys if key not in FIRST]
    first = {"cases": lambda row: number(len(row.get("cases", ()))), "after click": last_clicks}
    found = []
    for title, some, detail in (
        ("Masks against the truth", [key for key in FIRST if key in keys], False),
        ("Masks against the truth: other overlaps", [key for key in others if key in OVERLAPS], True),
        ("Masks against the truth: other distances and sizes", [key for key in others if key not in OVERLAPS], True),
    ):
        figures = {**first, **{metric_title(key): _truth(key) for key in some}}
        table = listing(title, rows, lines, figures, _truth_notes(rows), detail)
        found += [unless_repeated(table, len(lines.names))] if some else []
    return found


def _with_same_clicks(rows: Sequence[Row], originals: Originals) -> list[Row]:
    """Return rows with PyTorch's once more before each that stopped sooner, as it was after the same clicks."""
    found: list[Row] = []
    for row in rows:
        if measured(row) and row.get("cases") and _stopped(row, originals):
            same = _at_same_clicks(originals[_answered(row)], row)
            found += [same] if same not in found else []
        found.append(row)
    return found


def _at_same_clicks(original: Row, row: Row) -> Row:
    clicks = {case["case"]: len(case["clicks"]) for case in row["cases"]}
    cases = [case | {"clicks": case["clicks"][: clicks[case["case"]]]} for case in original["cases"]
             if clicks.get(case["case"])]  # fmt: skip
    return original | {"cases": cases, "figures": figures_of([case["clicks"][-1] for case in cases])}


def _truth_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    note = (
        "mean over the cases [where it lies in 95 of 100 bootstrap draws]; worst case. A backend stands here where it "
        "differs from PyTorch as printed. Distances are infinite where one of two masks is empty; those cases are "
        "counted and left out of the mean"
    )
    few = (f"of fewer than {FEW_CASES} cases the interval is little more than the least and the greatest of them",)
    return (note, *(few if any(0 < len(row.get("cases") or ()) < FEW_CASES for row in rows) else ()))


def _truth(key: str) -> Callable[[Row], str]:
    write = writer_of(key)

    def read(row: Row) -> str:
        figures = (row.get("figures") or {}).get(key)
        if figures is None:
            return NONE
        worst = f"; {write(figures['worst'])}" if figures.get("worst") is not None else ""
        infinite = f" in {figures['not_finite']}" if figures.get("not_finite") else ""
        return f"{interval(figures['mean'], write)}{worst}{infinite}"

    return read


def _clicks_table(rows: Sequence[Row], lines: Columns) -> Table:
    clicked = [row for row in rows if row.get("clicks_to") and any(map(len, row["clicks_to"].values()))]
    table = listing(
        "Clicks to reach a Dice: median of the cases that did, and how many did",
        clicked,
        lines,
        {f"Dice {target}": _clicks_to(target) for target in TARGETS},
    )
    return unless_repeated(table, len(lines.names))


def _clicks_to(target: str) -> Callable[[Row], str]:
    def read(row: Row) -> str:
        counts = row["clicks_to"].get(target)
        if not counts:
            return NONE
        reached = [count for count in counts if count is not None]
        share = f"{len(reached)} of {len(counts)}"
        return f"{number(float(np.median(reached)))} ({share})" if reached else f"not reached ({share})"

    return read


def _detector_table(rows: Sequence[Row]) -> Table:
    figures: Mapping[str, Callable[[Row], str]] = {
        "mAP50": lambda row: overlap(row.get("map50")),
        "mAP50-95": lambda row: overlap(row.get("map50_95")),
        "boxes against PyTorch's: worst Dice": lambda row: overlap(row["parity_dice"]),
    }
    table = listing(
        "Detector: mean average precision against boxes of the truth", rows, line_columns(rows, "", ()), figures
    )
    return replace(table, notes=(*table.notes, *reasons(rows)))
