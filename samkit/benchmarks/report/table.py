"""What a table of a run is: a layout as data, read over the rows, gives words in lines and columns.

A layout with `cell` has a line per method and graph, stage or policy, and a column per backend; one with `line` a line
per row. What was not run says "not run", a failure says "error", and the reasons stand under the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

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
AnyRow = TypeVar("AnyRow", bound=Row)


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
    """A `Row`; lines and cells are asked about those of their kind that have figures."""
    base: Any = None
    """None where there is none, and where it is the row itself."""


Line = tuple[tuple[str, ...], Mapping[str, str]]
"""What tells a line from others, and what it says by column."""


@dataclass(frozen=True)
class Layout:
    """What one table is made of."""

    title: str
    takes: Callable[[Row], bool]
    """Which rows it is about."""
    line: Callable[[Entry], Mapping[str, str]] = lambda entry: {}
    """What a row says, by column; one that says nothing has no line, and a column that says nothing is left out."""
    cell: Callable[[Entry], str] | None = None
    """What stands in the column of a backend, in place of lines."""
    part: str = ""
    """`graph` or `stage` where lines are of those."""
    settings: tuple[str, ...] = ()
    """Fields of the identity: those that differ between rows are columns, the others a sentence."""
    notes: Callable[[Sequence[Entry]], Iterable[str]] = lambda entries: ()
    detail: bool = False
    is_short: bool = False
    """Whether a backend that says what the first one of its line says is left out."""

    def table(self, entries: Iterable[Entry]) -> Table | None:
        """Return the table; None where it would say nothing."""
        taken = [entry for entry in entries if self.takes(entry.row)]
        rows = [entry.row for entry in taken]
        names, same = self._names(rows)
        read = [(entry, self._words(entry)) for entry in taken]
        shown = [(entry, words) for entry, words in read if words or not measured(entry.row)]
        lines = self._lines(shown, names.values())
        columns = by_backend(rows) if self.cell else dict.fromkeys(name for _, words in lines for name in words)
        kept = [name for name in columns if any(words.get(name, NONE) != NONE for _, words in lines)]
        body = tuple((*head, *(words.get(name, NONE) for name in kept)) for head, words in lines)
        # Of a detail, and of what is short, another table of the same rows says why
        why = () if self.detail or self.is_short else reasons(rows)
        notes = (*self.notes([entry for entry, _ in shown]), *same, *why)
        return Table(self.title, (*names, *kept), body, notes, self.detail) if body or why else None

    def _names(self, rows: Sequence[Row]) -> tuple[dict[str, Callable[[Row], str]], tuple[str, ...]]:
        """Return the columns that tell lines apart, and what all rows have in common."""
        names: dict[str, Callable[[Row], str]] = {"method": method_of}
        if self.part:
            names[self.part] = part_of
        same = []
        for key in self.settings:
            values = [value for value in dict.fromkeys(_setting(row, key) for row in rows) if value != NONE]
            if len(values) > 1:
                names[_words(key)] = partial(_setting, key=key)
            elif values:
                same.append(f"{_words(key)} {values[0]}")
        if not self.cell:
            names["backend"] = backend_of
        return names, (f"all rows: {', '.join(same)}",) if same else ()

    def _words(self, entry: Entry) -> Mapping[str, str]:
        """Return what an entry says, by column."""
        if self.cell:
            return {backend_of(entry.row): self.cell(entry) if measured(entry.row) else _words(entry.row.word)}
        return self.line(entry) if measured(entry.row) else {}

    def _lines(
        self, shown: Sequence[tuple[Entry, Mapping[str, str]]], names: Iterable[Callable[[Row], str]]
    ) -> list[Line]:
        """Return the lines; with `cell` a row without figures that lacks a setting is of all lines it fits."""
        read = [(measured(entry.row), tuple(name(entry.row) for name in names), words) for entry, words in shown]
        lines = [(head, words) for has_figures, head, words in read if has_figures]
        if self.is_short:
            first = {head[:-1]: words for head, words in reversed(lines)}
            return [(head, w) for head, w in lines if w is first[head[:-1]] or w != first[head[:-1]]]
        if not self.cell:
            return lines
        found: dict[tuple[str, ...], dict[str, str]] = {head: {} for head, _ in lines}
        for has_figures, head, words in read:
            fitting = [line for line in found if not has_figures and _fits(head, line)]
            for line in fitting or [head]:
                found.setdefault(line, {}).update(words)
        return list(found.items())


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


def worst_of(rows: Iterable[AnyRow], key: str) -> AnyRow:
    """Return the first of the rows in which one of FIGURES is worst; nan is worse than anything."""

    def rank(row: AnyRow) -> float:
        good: float = FIGURES[key].sign * find(row, key)
        return -math.inf if math.isnan(good) else good

    return min(rows, key=rank)
