"""What a table of a run is: a layout as data, read over the rows, gives words in lines and columns.

A layout with `cell` has a line per method and graph, stage or policy, and a column per backend; one with `columns` a
line per row. What was not run says "not run", a failure says "error", and the reasons stand under the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samkit.benchmarks.record.figures import FIGURES, NONE
from samkit.benchmarks.record.rows import EAGER, Absent, Row
from samkit.json_records import find

BACKENDS: Mapping[str, str] = {
    "torch": "PyTorch eager",
    "torch-autocast": "PyTorch autocast",
    "torch-compile": "torch.compile",
    "onnxruntime-no-fold": "ONNX Runtime, no fold",
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "triton": "Triton",
}
"""How a reader calls backends, in the order of columns; one that is not here goes last, by the title that its row has,
or by its name."""


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


@dataclass(frozen=True)
class Entry:
    """A row of a run, and PyTorch's own of the same place."""

    row: Any
    """A `Row`; cells and columns are asked about those of their kind that have figures."""
    base: Any = None
    """None where there is none, and where it is the row itself."""


@dataclass(frozen=True)
class Column:
    """One column: its title, and what it says of an entry."""

    title: str
    read: Callable[[Entry], str]

    @classmethod
    def of(cls, key: str) -> Column:
        """Return the column of one of FIGURES."""
        figure = FIGURES[key]
        return cls(figure.title, lambda entry: figure.write(find(entry.row, key)))


@dataclass(frozen=True)
class Layout:
    """What one table is made of."""

    title: str
    takes: Callable[[Row], bool]
    """Which rows it is about."""
    columns: tuple[Column, ...] = ()
    """Those in which no row says anything are left out."""
    cell: Callable[[Entry], str] | None = None
    """What stands in the column of a backend."""
    shows: Callable[[Entry], bool] = lambda entry: True
    """Which of them have a line."""
    part: str = ""
    """`graph` or `stage` where lines are of those."""
    settings: tuple[str, ...] = ()
    """Fields of the identity: those that differ between rows are columns, the others a sentence."""
    notes: Callable[[Sequence[Entry]], Iterable[str]] = lambda entries: ()
    detail: bool = False
    has_reasons: bool = False
    """Whether why rows have no figures stands under it; with `cell` it always does."""
    is_short: bool = False
    """Whether a backend that says what the first one of its line says is left out."""

    def table(self, entries: Iterable[Entry]) -> Table | None:
        """Return the table; None where it would say nothing."""
        taken = [entry for entry in entries if self.takes(entry.row)]
        names, said = self._names([entry.row for entry in taken])
        shown = [entry for entry in taken if self.shows(entry)]
        titles, body = self._pivot(shown, names) if self.cell else self._listing(shown, names)
        why = reasons([entry.row for entry in shown]) if self.cell or self.has_reasons else ()
        table = Table(self.title, titles, body, (*self.notes(shown), *said, *why), self.detail)
        return table if body or why else None

    def _names(self, rows: Sequence[Row]) -> tuple[dict[str, Callable[[Row], str]], tuple[str, ...]]:
        """Return the columns that tell lines apart, and what all rows have in common."""
        all_of = {key: dict.fromkeys(_setting(row, key) for row in rows) for key in self.settings}
        given = {key: [value for value in values if value != NONE] for key, values in all_of.items()}
        same = ", ".join(f"{_words(key)} {values[0]}" for key, values in given.items() if len(values) == 1)
        names: dict[str, Callable[[Row], str]] = {"method": method_of}
        if self.part:
            names[self.part] = part_of
        for key, values in given.items():
            if len(values) > 1:
                names[_words(key)] = lambda row, key=key: _setting(row, key)  # type: ignore[misc]
        return names, (f"all rows: {same}",) if same else ()

    def _listing(self, entries: Sequence[Entry], names: Mapping[str, Callable[[Row], str]]) -> Words:
        found = [entry for entry in entries if measured(entry.row)]
        first = len(names) + 1
        body = [
            (*(read(e.row) for read in names.values()), backend_of(e.row), *(c.read(e) for c in self.columns))
            for e in found
        ]
        kept = [n for n in range(first + len(self.columns)) if n < first or any(words[n] != NONE for words in body)]
        titles = (*names, "backend", *(column.title for column in self.columns))
        lines = [tuple(words[n] for n in kept) for words in body]
        if self.is_short:
            heads = {words[: first - 1]: words for words in reversed(lines)}
            lines = [w for w in lines if w is (head := heads[w[: first - 1]]) or w[first:] != head[first:]]
        return tuple(titles[n] for n in kept), tuple(lines)

    def _pivot(self, entries: Sequence[Entry], names: Mapping[str, Callable[[Row], str]]) -> Words:
        """Return a column for each backend; a row without figures that lacks a setting is of all lines it fits."""
        backends = by_backend(entry.row for entry in entries)
        lines = [(entry, tuple(read(entry.row) for read in names.values())) for entry in entries]
        found: dict[tuple[str, ...], dict[str, str]] = {words: {} for entry, words in lines if measured(entry.row)}
        for entry, words in lines:
            row = entry.row
            fitting = [line for line in found if not measured(row) and _fits(words, line)]
            for line in fitting or [words]:
                cell = self.cell(entry) if self.cell and measured(row) else _words(row.word)
                found.setdefault(line, {})[backend_of(row)] = cell
        body = ((*line, *(cells.get(name, NONE) for name in backends)) for line, cells in found.items())
        return (*names, *backends), tuple(body)


Words = tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]
"""Titles, and lines."""


def _fits(words: Sequence[str], line: Sequence[str]) -> bool:
    return all(word in (NONE, other) for word, other in zip(words, line, strict=True))


def _setting(row: Row, key: str) -> str:
    value = getattr(row.identity, key)
    return NONE if value is None else _words(str(value))


def _words(name: str) -> str:
    return name.replace("_", " ")


# --- What rows are called ---


def measured(row: Row) -> bool:
    """Return whether a row has figures."""
    return not isinstance(row, Absent)


def is_eager(row: Row) -> bool:
    """Return whether a row is that of PyTorch as upstream wrote it."""
    return (row.identity.backend, row.identity.precision) == EAGER


def backend_of(row: Row) -> str:
    """Return backend, precision and device as a reader calls them.

    >>> from samkit.benchmarks.record.rows import Identity
    >>> backend_of(Absent("latency", Identity("sam", "onnxruntime", "cuda", "fp16", stage="click"), "", False))
    'ONNX Runtime fp16 (CUDA)'
    """
    who = row.identity
    where = " (CUDA)" if who.device == "cuda" and who.backend != "tensorrt" else ""
    return f"{BACKENDS.get(who.backend) or who.backend_title or who.backend} {who.precision}{where}"


def method_of(row: Row) -> str:
    """Return the method, and its size where it has one."""
    return f"{row.identity.method} {row.identity.size or ''}".strip()


def part_of(row: Row) -> str:
    """Return the graph or the stage of a row."""
    return _words(row.identity.graph or str(row.identity.stage))


def by_backend(rows: Iterable[Row]) -> list[str]:
    """Return the backends of rows in the order of columns."""
    order = list(BACKENDS)
    keys = set()
    for row in rows:
        who = row.identity
        place = order.index(who.backend) if who.backend in order else len(order)
        keys.add((who.device, place, who.precision != "fp32", backend_of(row)))
    return [key[-1] for key in sorted(keys)]


def reasons(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return each reason why rows have no figures, once, with the backends it is of.

    The first few graphs or stages follow, unless it is why nothing at all ran there.
    """
    without: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if isinstance(row, Absent):
            without.setdefault((_words(row.word), row.reason), []).append(row)
    found = []
    for (word, why), lost in without.items():
        backends = list(dict.fromkeys(map(backend_of, lost)))
        places = list(dict.fromkeys(f"{method_of(row)} {part_of(row)}" for row in lost))
        is_all = len(places) > 1 and len(lost) == sum(backend_of(row) in backends for row in rows)
        first = ", ".join(places[:3]) + f" and {len(places) - 3} more" * (len(places) > 3)
        found.append(f"{word}: {', '.join(backends)}: {why}{'' if is_all else f' ({first})'}")
    return tuple(found)


def or_worst(value: float | None, worst: float) -> float:
    """Return a figure to compare by: `worst` in place of nan and of none at all."""
    return worst if value is None or math.isnan(value) else value
