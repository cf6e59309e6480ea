"""What a table of runs is made of: figures and names as words, and the two forms that tables have.

A pivot has one row per method and graph, stage or policy, and a column for each backend; a listing has one row for each
row of the run. What was not run says "not run", a failure says "error", and the reasons stand under the table. A share
is rounded down, so that a Dice of 1.0000 means that no voxel differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from samkit.benchmarks.record.metrics import METRICS
from samkit.benchmarks.record.run import WHY_NOT, Row

BACKENDS: Mapping[str, str] = {
    "torch": "PyTorch eager",
    "torch-autocast": "PyTorch autocast",
    "torch-compile": "torch.compile",
    "onnxruntime-no-fold": "ONNX Runtime, no fold",
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "triton": "Triton",
}
"""How a reader calls the backends, in the order of columns."""
EAGER = ("torch", "fp32")
"""Backend and precision that everything is compared with."""
OVERLAPS = ("dice", "iou", "precision", "sensitivity", "specificity", "accuracy", "nsd")
"""Metrics that are shares."""
NONE = "-"
"""What stands where there is nothing to say."""


@dataclass(frozen=True)
class Table:
    """What stands in a table, as words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences under it."""
    detail: bool = False
    """Whether a reader in a hurry can do without it."""


# --- Numbers and names as words ---


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to so many significant digits, whole from there on; "-" where there is none.

    >>> number(0.012345), number(43210.0), number(None), number(math.inf)
    ('0.0123', '43210', '-', 'inf')
    """
    if value is None:
        return NONE
    if math.isfinite(value) and abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def overlap(value: float | None) -> str:
    """Return a share between 0 and 1 with four decimals, rounded down.

    >>> overlap(0.99999), overlap(1.0)
    ('0.9999', '1.0000')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{math.floor(value * 1e4 + 1e-6) / 1e4:.4f}"


def share(value: float | None) -> str:
    """Return a share with three decimals, as metrics against the truth have them."""
    return NONE if value is None else f"{value:.3f}"


def writer_of(key: str) -> Callable[[float | None], str]:
    """Return what writes figures of a metric."""
    return share if key in OVERLAPS else number


def or_worst(value: float | None, worst: float) -> float:
    """Return a figure to compare by: `worst` in place of nan and of none at all."""
    return worst if value is None or math.isnan(value) else value


def backend_of(row: Row) -> str:
    """Return backend, precision and device as a reader calls them.

    >>> backend_of({"backend": "onnxruntime", "precision": "fp16", "device": "cuda"})
    'ONNX Runtime fp16 (CUDA)'
    """
    name = BACKENDS.get(row["backend"], row["backend"])
    where = " (CUDA)" if row["device"] == "cuda" and row["backend"] != "tensorrt" else ""
    return f"{name} {row['precision']}{where}"


def method_of(row: Row) -> str:
    """Return the method, and its size where it has one."""
    return " ".join(str(row[key]) for key in ("method", "size") if row.get(key))


def part_of(row: Row) -> str:
    """Return the graph or the stage of a row."""
    return str(row.get("graph") or row["stage"]).replace("_", " ")


def metric_title(key: str) -> str:
    """Return a metric with its unit, as a column is called."""
    metric = METRICS[key]
    return f"{metric.label} [{metric.unit}]" if metric.unit else metric.label


def measured(row: Row) -> bool:
    """Return whether a row has figures."""
    return not any(key in row for key in WHY_NOT)


def is_eager(row: Row) -> bool:
    """Return whether a row is that of PyTorch as upstream wrote it."""
    return (row["backend"], row["precision"]) == EAGER


def by_backend(rows: Iterable[Row]) -> list[str]:
    """Return the backends of rows in the order of columns."""
    order = list(BACKENDS)
    keys = {(row["device"], order.index(row["backend"]) if row["backend"] in order else len(order),
             row["precision"] != "fp32", backend_of(row)) for row in rows}  # fmt: skip
    return [key[-1] for key in sorted(keys)]


def reasons(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return each reason why rows have no figures, once, with the backends it is of.

    The first few graphs or stages follow, unless it is why nothing at all ran there.
    """
    rows = list(rows)
    without: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for key in WHY_NOT:
            if key in row:
                without.setdefault((key.replace("_", " "), str(row[key])), []).append(row)
    found = []
    for (word, why), lost in without.items():
        backends = list(dict.fromkeys(map(backend_of, lost)))
        places = list(dict.fromkeys(f"{method_of(row)} {part_of(row)}" for row in lost))
        is_all = len(places) > 1 and len(lost) == sum(backend_of(row) in backends for row in rows)
        found.append(f"{word}: {', '.join(backends)}: {why}{'' if is_all else f' ({_first(places)})'}")
    return tuple(found)


def _first(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def interval(estimate: Mapping[str, float], write: Callable[[float | None], str] = number) -> str:
    """Return a figure and where it lies in 95 of 100 cases."""
    return f"{write(estimate['value'])} [{write(estimate['low'])}, {write(estimate['high'])}]"


# --- The forms that tables have ---


@dataclass(frozen=True)
class Columns:
    """What tells the lines of a table apart: keys that differ become columns, the others a sentence."""

    names: tuple[str, ...]
    read: tuple[Callable[[Row], str], ...]
    note: tuple[str, ...]

    def words(self, row: Row) -> tuple[str, ...]:
        return tuple(read(row) for read in self.read)


def line_columns(rows: Sequence[Row], part: str, keys: Sequence[str]) -> Columns:
    """Return the columns of method, part (titled so; "" for none), and of those of `keys` that differ between rows."""
    given = {key: list(dict.fromkeys(row[key] for row in rows if row.get(key) is not None)) for key in keys}
    differing = [key for key, values in given.items() if len(values) > 1]
    constant = ", ".join(f"{key.replace('_', ' ')} {values[0]}" for key, values in given.items() if len(values) == 1)
    reads = [method_of, *([part_of] if part else []), *(_reader(key) for key in differing)]
    titles = ("method", *([part] if part else []), *(key.replace("_", " ") for key in differing))
    return Columns(titles, tuple(reads), (f"all rows: {constant}",) if constant else ())


def _reader(key: str) -> Callable[[Row], str]:
    return lambda row: str(row.get(key, NONE)).replace("_", " ")


def pivot(
    title: str, rows: Sequence[Row], lines: Columns, cell: Callable[[Row], str], notes: Sequence[str] = ()
) -> Table:
    """Return a table with a column for each backend.

    A row without figures that lacks what tells lines apart, such as the clicks' policy, is of all lines it fits.
    """
    backends = by_backend(rows)
    found: dict[tuple[str, ...], dict[str, str]] = {lines.words(row): {} for row in rows if measured(row)}
    for row in rows:
        names = lines.words(row)
        fitting = [line for line in found if not measured(row) and _fits(names, line)]
        words = cell(row) if measured(row) else "not run" if "not_run" in row else "error"
        for line in fitting or [names]:
            found.setdefault(line, {})[backend_of(row)] = words
    body = tuple((*names, *(cells.get(backend, NONE) for backend in backends)) for names, cells in found.items())
    return Table(title, (*lines.names, *backends), body, (*notes, *lines.note, *reasons(rows)))


def _fits(names: Sequence[str], line: Sequence[str]) -> bool:
    return all(name in (NONE, word) for name, word in zip(names, line, strict=True))


def listing(
    title: str,
    rows: Iterable[Row],
    lines: Columns,
    figures: Mapping[str, Callable[[Row], str]],
    notes: Sequence[str] = (),
    detail: bool = False,
) -> Table:
    """Return a table with a line for each row that has figures; columns in which no row has any are left out."""
    body = [
        (*lines.words(row), backend_of(row), *(read(row) for read in figures.values())) for row in rows if measured(row)
    ]
    first = len(lines.names) + 1
    kept = [n for n in range(first + len(figures)) if n < first or any(words[n] != NONE for words in body)]
    titles = (*lines.names, "backend", *figures)
    return Table(
        title, tuple(titles[n] for n in kept), tuple(tuple(words[n] for n in kept) for words in body),
        (*notes, *lines.note), detail,
    )  # fmt: skip


def figure(key: str) -> Callable[[Row], str]:
    return lambda row: number(row.get(key))


def unless_repeated(table: Table, keys: int) -> Table:
    """Return a table without the rows that say what the first row of the same `keys` columns says of its backend."""
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    kept = []
    for words in table.rows:
        if first.setdefault(words[:keys], words) is words or words[keys + 1 :] != first[words[:keys]][keys + 1 :]:
            kept.append(words)
    return replace(table, rows=tuple(kept))
