"""What a table of a run is, in two forms: `pivot` has a column per backend, `listing` a line per row.

What was not run says "not run", a failure says "error", and the reasons stand under the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from samkit.benchmarks.record.figures import NONE
from samkit.benchmarks.record.rows import EAGER, Absent, Row

BACKENDS: Mapping[str, str] = {
    "torch": "PyTorch eager",
    "torch-autocast": "PyTorch autocast",
    "torch-compile": "torch.compile",
    "onnxruntime-no-fold": "ONNX Runtime, no fold",
    "onnxruntime": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
    "triton": "Triton",
}
"""How a reader calls backends, in the order of columns; one that is not here goes last, by the title that its row has,
or by its name."""
SETTINGS = ("policy", "threads", "batch", "points")
"""Fields of the identity that tell lines apart: those that differ between rows are columns, the others a sentence."""


@dataclass(frozen=True)
class Table:
    """What stands in a table, as words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    detail: bool = False
    """Whether a reader in a hurry can do without it."""


@dataclass(frozen=True)
class Entry:
    """A row of a run, and PyTorch's own of the same place."""

    row: Any
    """A `Row`; lines and cells are asked about those of their kind that have figures."""
    base: Any = None
    """None where there is none, and where it is the row itself."""
    stopped: bool = False
    """Whether a row has fewer clicks of some case than PyTorch's has."""


def pivot(
    title: str, entries: Sequence[Entry], cell: Callable[[Entry], str], notes: Iterable[str], *, part: str = ""
) -> Table | None:
    """Return a table of what `cell` says of each backend, a line for each method, part and setting.

    A row without figures that lacks a setting is of all lines it fits. None where there are no rows.
    """
    names, heads, same = _heads(entries, part, SETTINGS)
    lines: dict[tuple[str, ...], dict[str, str]] = {head: {} for head, one in heads if measured(one.row)}
    for head, one in heads:
        if measured(one.row):
            words, fitting = cell(one), [head]
        else:
            words = spaced(one.row.word)
            fitting = [line for line in lines if all(a in (NONE, b) for a, b in zip(head, line, strict=True))]
        for line in fitting or [head]:
            lines.setdefault(line, {})[backend_of(one.row)] = words
    rows = [one.row for one in entries]
    found = (f"FAILED: {sentence}" for sentence in failures(rows))
    columns = by_backend(rows)
    body = tuple((*head, *(words.get(name, NONE) for name in columns)) for head, words in lines.items())
    return Table(title, (*names, *columns), body, (*notes, *found, *same, *reasons(rows))) if body else None


def listing(
    title: str, entries: Sequence[Entry], line: Callable[[Entry], Mapping[str, str]], notes: Iterable[str] = (), *,
    part: str = "", settings: Sequence[str] = SETTINGS, detail: bool = False, is_short: bool = False,
) -> Table | None:  # fmt: skip
    """Return a table of what `line` says of each row by column; None where it would say nothing.

    A row of which it says nothing has no line, and a column in which nothing is said is left out; where `is_short`, a
    backend that says what the first one of its method and settings says, too.
    """
    names, heads, same = _heads(entries, part, settings)
    lines = [(h, backend_of(one.row), words) for h, one in heads if measured(one.row) and (words := line(one))]
    if is_short:
        first = {head: words for head, _, words in reversed(lines)}
        lines = [(head, name, w) for head, name, w in lines if w is first[head] or w != first[head]]
    columns = dict.fromkeys(name for *_, words in lines for name in words)
    kept = [name for name in columns if any(words[name] != NONE for *_, words in lines)]
    body = tuple((*head, backend, *(words[name] for name in kept)) for head, backend, words in lines)
    # Of a detail, and of what is short, another table of the same rows says why
    rows = [] if detail or is_short else [one.row for one in entries]
    why = tuple(reasons(rows))
    said = (*notes, *(f"FAILED: {sentence}" for sentence in failures(rows)), *same, *why)
    return Table(title, (*names, "backend", *kept), body, said, detail) if body or why else None


def _heads(
    entries: Sequence[Entry], part: str, settings: Sequence[str]
) -> tuple[list[str], list[tuple[tuple[str, ...], Entry]], list[str]]:
    """Return the columns that tell lines apart, each entry with what stands there, and what all have in common."""
    names: dict[str, Callable[[Row], str]] = {"method": method_of, **({part: part_of} if part else {})}
    same = []
    for key in settings:
        values = [value for value in dict.fromkeys(_setting(one.row, key) for one in entries) if value != NONE]
        if len(values) > 1:
            names[key] = partial(_setting, key=key)
        elif values:
            same.append(f"{key} {values[0]}")
    heads = [(tuple(name(one.row) for name in names.values()), one) for one in entries]
    return list(names), heads, [f"all rows: {', '.join(same)}"] if same else []


def _setting(row: Row, key: str) -> str:
    value = getattr(row.identity, key)
    return NONE if value is None else spaced(str(value))


# --- What rows are called ---


def spaced(name: str) -> str:
    """Return a name as readers have it, with spaces."""
    return name.replace("_", " ")


def measured(row: Row) -> bool:
    """Return whether a row has figures."""
    return not isinstance(row, Absent)


def is_eager(row: Row) -> bool:
    """Return whether a row is that of PyTorch as upstream wrote it."""
    return (row.identity.backend, row.identity.precision) == EAGER


def backend_of(row: Row) -> str:
    """Return backend, precision and device as a reader calls them."""
    who = row.identity
    runs_there_alone = who.backend.startswith("tensorrt")
    where = " (CUDA)" if who.device == "cuda" and not runs_there_alone else ""
    return f"{BACKENDS.get(who.backend) or who.backend_title or who.backend} {who.precision}{where}"


def method_of(row: Row) -> str:
    """Return the method, and its size where it has one."""
    return f"{row.identity.method} {row.identity.size or ''}".strip()


def part_of(row: Row) -> str:
    """Return the graph or the stage of a row."""
    return spaced(row.identity.graph or str(row.identity.stage))


def by_backend(rows: Iterable[Row]) -> list[str]:
    """Return the backends of rows in the order of columns."""

    def place(row: Row) -> tuple[str, int, bool, str]:
        who = row.identity
        return who.device, [*BACKENDS, who.backend].index(who.backend), who.precision != "fp32", backend_of(row)

    return list(dict.fromkeys(map(backend_of, sorted(rows, key=place))))


def failures(rows: Iterable[Row]) -> list[str]:
    """Return what gates found, each sentence once."""
    return list(dict.fromkeys(sentence for row in rows for sentence in getattr(row, "failures", ())))


def reasons(rows: Sequence[Row]) -> Iterator[str]:
    """Yield each reason why rows have no figures, once, with the backends it is of.

    The first few graphs or stages follow, unless it is why nothing at all ran there.
    """
    without: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if isinstance(row, Absent):
            without.setdefault((spaced(row.word), row.reason), []).append(row)
    for (word, why), lost in without.items():
        backends = list(dict.fromkeys(map(backend_of, lost)))
        places = list(dict.fromkeys(f"{method_of(row)} {part_of(row)}" for row in lost))
        is_all = len(places) > 1 and len(lost) == sum(backend_of(row) in backends for row in rows)
        first = ", ".join(places[:3]) + f" and {len(places) - 3} more" * (len(places) > 3)
        yield f"{word}: {', '.join(backends)}: {why}{'' if is_all else f' ({first})'}"
