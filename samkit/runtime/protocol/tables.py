"""The tables of docs/reference/server.md that say what travels, made from the records themselves.

    python -m samkit.runtime.protocol

prints them; a test holds the page to them.
"""

from __future__ import annotations

from collections.abc import Sequence

from samkit.runtime.protocol.answers import Changed, ExportDescription, Nothing, Opened, Report
from samkit.runtime.protocol.failure import Failure
from samkit.runtime.protocol.record import Key, Record
from samkit.runtime.protocol.requests import REQUESTS, Add, BoxCorners, Click, EnsembleOptions, Open

_ANSWERS: tuple[type[Record], ...] = (ExportDescription, Opened, Changed, Nothing)


def tables() -> dict[str, str]:
    """Return each table in Markdown, by what it is of."""
    requests = [(f"`{op}`", _names(kind), _said(kind), f"`{kind.answer.__name__}`") for op, kind in REQUESTS.items()]
    answers = [(f"`{kind.__name__}`", _said(kind), _names(kind)) for kind in _ANSWERS]
    return {
        "requests": _table(("op", "with", "does", "is answered with"), requests),
        "keys of requests": _keys("a request's", Open, Click, BoxCorners, Add),
        "options of the ensemble": _keys("the ensemble's", EnsembleOptions),
        "report of the ensemble": _keys("the report's", Report),
        "answers": _table(("answer", "is", "with"), answers),
        "keys of answers": _keys("an answer's", Opened, Changed, ExportDescription),
        "keys of errors": _keys("an error's", Failure),
    }


def _keys(whose: str, *records: type[Record]) -> str:
    """Return the table of the keys that `records` have, each name once."""
    found: dict[str, Key] = {}
    for record in records:
        for name, key in record.keys().items():
            found.setdefault(name, key)
    return _table((whose, "as JSON", "means"), [(f"`{name}`", key.form, key.means) for name, key in found.items()])


def _names(record: type[Record]) -> str:
    return ", ".join(f"`{name}`" for name in record.keys())  # noqa: SIM118  # a method of records, no dict's


def _said(record: type[Record]) -> str:
    """Return what a record's docstring says, as part of a line."""
    said = str(record.__doc__).rstrip(".")
    return said[0].lower() + said[1:]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (head, *rows)]
    return "\n".join((lines[0], "|---" * len(head) + "|", *lines[1:]))
