"""Tables of runs, made of their JSON alone: the same ones are printed, written into Markdown and set in the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np

from samkit.benchmarks.metrics import DETECTOR_METRICS, METRICS, Metric
from samkit.benchmarks.papers import Paper, PaperTable, load_papers
from samkit.benchmarks.papers import note as papers_note
from samkit.benchmarks.run_file import IDENTITY, Row, Run
from samkit.benchmarks.statistics import median_ratio
from samkit.benchmarks.table import (
    NONE,
    Columns,
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
    metric_title,
    number,
    overlap,
    part_of,
    pivot,
    reasons,
    unless_repeated,
)

TARGETS = ("0.80", "0.85", "0.90")
OVERLAPS = ("dice", "iou", "precision", "sensitivity", "specificity", "accuracy", "nsd")
"""Metrics that are shares."""
FEW = 3
"""Samples below which a ratio has no interval."""
FIRST = ("dice", "nsd", "hd95_mm", "assd_mm", "volume_error_ml")
"""Metrics of the first table against the truth; the others are details."""
WIDTH = 200
"""Columns of a print that no terminal shows."""

# --- Accuracy ---


def accuracy_tables(run: Run) -> list[Table]:
    """Return parity with PyTorch, metrics against the truth, clicks to a Dice, and the detectors' precision."""
    masks = [row for row in run.rows if row.get("graph") != "detector"]
    detectors = [row for row in run.rows if row.get("graph") == "detector"]
    lines = line_columns(masks, "", ("policy",))
    compared = [row for row in masks if not row.get("reference")]
    found = [
        pivot(
            "Masks against PyTorch float32: worst Dice (most voxels that differ) of all cases and clicks",
            compared, lines, _parity_cell, _parity_notes(run, compared),
        ),
        listing("Masks against PyTorch float32: all measures at worst", compared, lines, PARITY_FIGURES, detail=True),
        *_truth_tables(masks, lines),
        _clicks_table(masks, lines),
        *([_detector_table(detectors)] if detectors else []),
    ]  # fmt: skip
    return [table for table in found if table.rows]


def _parity_cell(row: Row) -> str:
    failed = ", FAILED" if row.get("failures") else ""
    return f"{overlap(row['parity_dice'])} ({number(row.get('flipped_voxels'))}){failed}"


def _parity_notes(run: Run, rows: Sequence[Row]) -> tuple[str, ...]:
    emulated = [backend_of(row) for row in rows if row.get("emulated")]
    said = [
        f"{name} on a CPU is emulated: it rounds and overflows as on a GPU, because ONNX Runtime on a CPU would "
        "compute in float32"
        for name in dict.fromkeys(emulated)
    ]
    return (*said, *(f"FAILED: {sentence}" for sentence in failures([run])))


def _worst_relative(row: Row) -> str:
    errors: Mapping[str, float] = row.get("relative_error") or {}
    if not errors:
        return NONE
    name = max(errors, key=lambda graph: math.inf if math.isnan(errors[graph]) else errors[graph])
    return f"{number(errors[name], 2)} ({name})"


def _drift(row: Row) -> str:
    drift = row.get("click_drift") or {}
    return ", ".join(number(drift.get(target)) for target in TARGETS) if drift else NONE


PARITY_FIGURES: Mapping[str, Callable[[Row], str]] = {
    "Dice": lambda row: overlap(row["parity_dice"]),
    "HD95 [mm]": lambda row: number(row.get("parity_hd95_mm")),
    "voxels that differ": lambda row: number(row.get("flipped_voxels")),
    "largest logit difference": lambda row: number(row.get("logit_difference")),
    "largest relative error (graph)": _worst_relative,
    f"drift of clicks to Dice {', '.join(TARGETS)}": _drift,
}


def _truth_tables(rows: Sequence[Row], lines: Columns) -> list[Table]:
    """Return metrics against the truth, those of FIRST and the others, of PyTorch and of what differs from it."""
    keys = [key for key in METRICS if any(key in (row.get("figures") or {}) for row in rows)]
    note = (
        "mean over the cases after the last click [where it lies in 95 of 100 bootstrap draws]; worst case. A backend "
        "stands here where it differs from PyTorch as printed. Distances are infinite where one of two masks is empty; "
        "those cases are counted and left out of the mean",
    )
    others = [key for key in keys if key not in FIRST]
    counted = {"cases": lambda row: number(len(row.get("cases", ())))}
    found = []
    for title, some, detail in (
        ("Masks against the truth", [key for key in FIRST if key in keys], False),
        ("Masks against the truth: other overlaps", [key for key in others if key in OVERLAPS], True),
        ("Masks against the truth: other distances and sizes", [key for key in others if key not in OVERLAPS], True),
    ):
        table = listing(
            title, rows, lines, {**counted, **{metric_title(key): _truth(key) for key in some}}, note, detail
        )
        found += [unless_repeated(table, len(lines.names))] if some else []
    return found


def _truth(key: str) -> Callable[[Row], str]:
    write = _share if key in OVERLAPS else number

    def read(row: Row) -> str:
        figures = (row.get("figures") or {}).get(key)
        if figures is None:
            return NONE
        worst = f"; {write(figures['worst'])}" if figures.get("worst") is not None else ""
        infinite = f" in {figures['not_finite']}" if figures.get("not_finite") else ""
        return f"{interval(figures['mean'], write)}{worst}{infinite}"

    return read


def _share(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else NONE


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


def failures(runs: Iterable[Run]) -> list[str]:
    """Return what gates found in runs of accuracy, each sentence once."""
    return list(dict.fromkeys(sentence for run in runs for row in run.rows for sentence in row.get("failures") or ()))


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
    **{f"{name} [ms]": figure(f"{name}_ms") for name in ("p50", "p95", "p99")},
    "clicks per second": figure("clicks_per_second"),
    "errors": _errors,
    "server memory, RSS [MB]": figure("server_rss_mb"),
    "client's share of the processors": figure("client_cpu_share"),
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


# --- What a run is, at a glance ---

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
    masks = [row for run in runs if run.kind == "accuracy" for row in run.rows if row.get("graph") != "detector"]
    latency = [run for run in runs if run.kind == "latency"]
    found = [_parity_summary([row for row in masks if not row.get("reference")]), _speed_summary(latency)]
    return [table for table in found if table.rows]


def _parity_summary(rows: Sequence[Row]) -> Table:
    lines = []
    for backend in by_backend(rows):
        ours = [row for row in rows if backend_of(row) == backend]
        ran = [row for row in ours if measured(row)]
        if not ran:
            lines.append((backend, "not run" if all("not_run" in row for row in ours) else "error", *(NONE,) * 4))
            continue
        dice = min(ran, key=lambda row: or_worst(row["parity_dice"], -math.inf))
        flipped = max(ran, key=lambda row: or_worst(row.get("flipped_voxels"), math.inf))
        distance = max(ran, key=lambda row: or_worst(row.get("parity_hd95_mm"), math.inf))
        failed = sum(bool(row.get("failures")) for row in ran) + sum("error" in row for row in ours)
        lines.append((
            backend,
            f"FAILED in {failed} of {len(ours)} rows" if failed else f"passed in {len(ran)} rows",
            str(len({row["method"] for row in ran})),
            f"{overlap(dice['parity_dice'])} ({dice['method']})",
            f"{number(flipped.get('flipped_voxels'))} ({flipped['method']})",
            f"{number(distance.get('parity_hd95_mm'))} ({distance['method']})",
        ))  # fmt: skip
    columns = ("backend", "gate", "methods", "worst Dice", "most voxels that differ", "worst HD95 [mm]")
    return Table("Masks against PyTorch float32", columns, tuple(lines))


def or_worst(value: float | None, worst: float) -> float:
    """Return a figure to compare by: `worst` in place of nan and of none at all."""
    return worst if value is None or math.isnan(value) else value


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


def _speed_summary(runs: Sequence[Run]) -> Table:
    rows = [row for run in runs for row in run.rows]
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


def definitions() -> Table:
    """Return what each metric is."""
    named = {**METRICS, **DETECTOR_METRICS}
    rows = tuple(
        (metric.label, metric.unit or "share", metric.better or NONE, metric.definition, metric.source)
        for metric in named.values()
    )
    return Table("What the metrics are", ("metric", "unit", "better", "definition", "source"), rows, detail=True)


# --- The papers ---


def paper_tables(runs: Sequence[Run]) -> tuple[str, list[Table]]:
    """Return what must be said of the papers' figures, and those of the methods of runs of accuracy; both may be empty.

    First one table with each paper's own figures beside ours, then its tables as printed.
    """
    accuracy = [run for run in runs if run.kind == "accuracy"]
    methods = {row["method"] for run in accuracy for row in run.rows}
    papers = [paper for paper in load_papers() if paper.method in methods]
    if not papers:
        return "", []
    beside = [line for paper in papers for line in _beside(paper, accuracy)]
    columns = ("method", "table", "metric", "in the paper", "here, PyTorch eager, on other data")
    tables = [Table("Figures of the papers beside ours; the data differ", columns, tuple(beside))] if beside else []
    return papers_note(), tables + [_printed(paper, table) for paper in papers for table in paper.tables]


def _beside(paper: Paper, runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    """Yield a line for each table and metric of a paper."""
    for table in paper.tables:
        printed: dict[str, list[str]] = {}
        for column, value in table.own_figures():
            key = str(column.metric)
            write = number if _metric(key).unit else _share
            where = table.data if table.own.get("group") or not column.group else column.group
            printed.setdefault(key, []).append(f"{where}: {write(value)}")
        for key, values in printed.items():
            name = f"{_metric(key).label} [{_metric(key).unit or 'share'}]"
            ours = "; ".join(_ours(key, runs, paper.method)) or "not measured"
            yield paper.method, table.number, name, "; ".join(values), ours


def _metric(key: str) -> Metric:
    return METRICS.get(key) or DETECTOR_METRICS[key]


def _ours(key: str, runs: Sequence[Run], method: str) -> Iterator[str]:
    """Yield our own figure of a metric, of each run and policy."""
    for run in runs:
        for row in run.rows:
            if row["method"] != method or not is_eager(row) or not measured(row):
                continue
            if key in DETECTOR_METRICS and row.get(key) is not None:
                yield f"{data_of(run)}: {_share(row[key])}"
            elif key in (row.get("figures") or {}):
                write = _share if key in OVERLAPS else number
                yield f"{data_of(run)}, {row.get('policy')}: {interval(row['figures'][key]['mean'], write)}"


def data_of(run: Run) -> str:
    """Return what a run of accuracy was measured on: the last part of its --data, or phantoms."""
    words = list(run.command)
    return PurePath(words[words.index("--data") + 1]).name if "--data" in words[:-1] else "phantoms"


def _printed(paper: Paper, table: PaperTable) -> Table:
    titles = tuple(f"{column.group}: {column.name}" if column.group else column.name for column in table.columns)
    named = [f"{title}: {column.why}" for title, column in zip(titles, table.columns, strict=True) if column.why]
    count = f"n = {table.n}" if table.n else "n not given"
    return Table(
        f"{paper.method}, table {table.number}: {table.caption}",
        titles,
        tuple(tuple(NONE if cell is None else cell for cell in row) for row in table.rows),
        (paper.citation, f"{table.data}; {count}", *([table.note] if table.note else []), *named),
        detail=True,
    )


# --- Where tables go ---


def show(run: Run) -> None:
    """Print the tables of a run, and what they were measured on."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Printed
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for table in tables_of(run):
        printed = Printed(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD)
        for name in table.columns:
            printed.add_column(Text(name))
        for words in table.rows:
            printed.add_row(*(Text(word) for word in words))
        console.print(printed)
        for note in table.notes:
            console.print(Text(note))
    for name, text in facts(run):
        console.print(Text(f"{name}: {text}"))


def markdown(runs: Sequence[Run]) -> str:
    """Return all tables of runs as Markdown, those of one run under what it is: the body of docs/benchmarks.md."""
    parts = [_markdown_table(table, 3) for table in summary_tables(runs)]
    for run in runs:
        parts.append(f"## {run.kind.capitalize()}: {', '.join(dict.fromkeys(row['method'] for row in run.rows))}")
        parts.append(
            "\n".join(f"- {name}: {_code(text) if name == 'command' else _plain(text)}" for name, text in facts(run))
        )
        parts += [_markdown_table(table, 3) for table in tables_of(run)]
    if any(run.kind == "accuracy" for run in runs):
        parts.append(_markdown_table(definitions(), 2))
    said, papers = paper_tables(runs)
    if papers:
        parts += ["## What the papers print", said, *(_markdown_table(table, 3) for table in papers)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table, level: int) -> str:
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
