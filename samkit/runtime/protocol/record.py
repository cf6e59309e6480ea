"""Record: what travels as one JSON object, read strictly. Key: one value of it, and what the docs say of it.

    @dataclass(frozen=True, kw_only=True)
    class Closed(Record):
        turn: Annotated[int, Key("number", "of the last change", read_count)]

A record is frozen, and both ends use the same one: the sender writes it with `to_json`, the receiver reads it with
`from_json`, and `tables.py` prints it for docs/reference/server.md. A key that nobody reads is refused, because it may
have said what the others mean. Needs no more than the standard library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_type_hints

from samkit.errors import PromptError


@dataclass(frozen=True)
class Key:
    """One value of a record: how JSON has it, what it means, how it is read and written."""

    form: str
    """As JSON, for people: `[i, j, k]`."""
    means: str
    """Half a sentence, with unit and frame."""
    read: Callable[[object, str], Any]
    """Takes what JSON holds, and the key's name for the error; raises PromptError."""
    write: Callable[[Any], Any] = lambda value: value
    """Returns the value as `json` takes it; tuples become lists by themselves."""
    name: str = ""
    """In JSON; by default the field's."""


class Record:
    """Base of all records; a subclass is a frozen dataclass whose fields are annotated with their `Key`."""

    called: ClassVar[str] = ""
    """What an error calls it."""
    besides: ClassVar[tuple[str, ...]] = ()
    """Keys that say which record it is, and are no field of it."""

    @classmethod
    def keys(cls) -> dict[str, Key]:
        """Return the record's keys by their names in JSON, in the order of its fields."""
        return {key.name or field.name: key for field, key in _fields(cls)}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Return the record that a JSON object holds; raises PromptError for one that is not wholly as it must be."""
        if not isinstance(data, dict):
            raise PromptError(f"{cls.called} is {data!r:.100}, needed is a JSON object; send one, e.g. {{}}")
        keys = cls.keys()
        if unknown := sorted(str(name) for name in data if name not in keys and name not in cls.besides):
            known = ", ".join((*cls.besides, *keys)) or "none"
            raise PromptError(f"{cls.called} does not know '{', '.join(unknown):.100}', it knows {known}; send those")
        values = {}
        for field, key in _fields(cls):
            name = key.name or field.name
            if name in data:
                values[field.name] = key.read(data[name], name)
            elif field.default is dataclasses.MISSING:
                raise PromptError(f"{cls.called} has no '{name}', which it needs; send {name} as {key.form}")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `from_json` reads; what is as by default is left out."""
        values = [(field, key, getattr(self, field.name)) for field, key in _fields(type(self))]
        return {key.name or field.name: key.write(value) for field, key, value in values if value != field.default}


def _fields(record: type[Any]) -> tuple[tuple[dataclasses.Field[Any], Key], ...]:
    """Return the fields of a record, each with its key."""
    hints = get_type_hints(record, include_extras=True)
    return tuple(
        (field, next(extra for extra in hints[field.name].__metadata__ if isinstance(extra, Key)))
        for field in dataclasses.fields(record)
    )
