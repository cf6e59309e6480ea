"""Frozen records as JSON and back, strictly: a key too many or a value of another type is one clear sentence.

A field's key is its name, or what `key(...)` says; a `flat()` field is a record, or a mapping of what is left, whose
keys lie among those of the record that holds it. None and False are left out where they are the default. Numbers that
JSON does not have are {"number": "inf"}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from samkit.errors import SamkitError

Record = TypeVar("Record")
_KEY, _FLAT = "key", "flat"
_NUMBERS: Mapping[str, float] = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_CALLED: Mapping[Any, str] = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}


def key(name: str) -> dict[str, str]:
    """Return a field's metadata: what JSON calls it."""
    return {_KEY: name}


def flat() -> dict[str, bool]:
    """Return a field's metadata: its keys lie among those of the record that holds it."""
    return {_FLAT: True}


def keys_of(cls: Any) -> set[str]:
    """Return every key that the JSON of a record may have, but for a mapping of what is left."""
    found: set[str] = set()
    for field in fields(cls):
        kind = _types(cls)[field.name]
        if not field.metadata.get(_FLAT):
            found.add(field.metadata.get(_KEY, field.name))
        elif is_dataclass(kind):
            found |= keys_of(kind)
    return found


def find(record: Any, name: str) -> Any:
    """Return what a record has by a key of its JSON; None where it has no such key."""
    for field in fields(record):
        held = getattr(record, field.name)
        if field.metadata.get(_KEY, field.name) == name:
            return held
        if field.metadata.get(_FLAT) and is_dataclass(held) and (found := find(held, name)) is not None:
            return found
    return None


def to_json(value: Any) -> Any:
    """Return a record, or what fields of one hold, as JSON."""
    if is_dataclass(value):
        found: dict[str, Any] = {}
        for field in fields(value):
            held = getattr(value, field.name)
            if field.metadata.get(_FLAT):
                found |= to_json(held)
            elif held is not field.default or (held is not None and held is not False):
                found[field.metadata.get(_KEY, field.name)] = to_json(held)
        return found
    if isinstance(value, Mapping):
        return {name: to_json(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(held) for held in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": repr(value)}
    return value


def from_json(cls: type[Record], data: object, called: str, **known: Any) -> Record:
    """Return the record that `to_json` made `data` of; raises SamkitError, which calls it `called`.

    `known` are fields that the caller has read, by their names.
    """
    if not isinstance(data, Mapping):
        raise SamkitError(f"{called} is {str(data)[:60]!r}, and an object is needed")
    left = dict(data)
    record: Record = _take(cls, left, called, known)
    if left:
        keys = ", ".join(sorted(keys_of(cls)))
        raise SamkitError(f"{called} has {', '.join(map(repr, left)):.200}, which nothing reads; known are {keys}")
    return record


def _take(cls: Any, left: dict[str, Any], called: str, known: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Return a record of what it finds in `left`, which is taken out."""
    given: dict[str, Any] = dict(known)
    lacking = []
    rest: list[str] = []
    for field in fields(cls):
        kind = _types(cls)[field.name]
        name = field.metadata.get(_KEY, field.name)
        if field.name in known:
            continue
        if field.metadata.get(_FLAT) and is_dataclass(kind):
            given[field.name] = _take(kind, left, called)
        elif field.metadata.get(_FLAT):
            rest.append(field.name)
        elif name in left:
            given[field.name] = read_value(kind, left.pop(name), f"{name} of {called}")
        elif field.default is MISSING and field.default_factory is MISSING:
            lacking.append(name)
    if lacking:
        raise SamkitError(f"{called} lacks {', '.join(lacking)}")
    for field_name in rest:
        given[field_name] = read_value(_types(cls)[field_name], dict(left), called)
        left.clear()
    return cls(**given)


@cache
def _types(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def read_value(kind: Any, value: Any, called: str) -> Any:
    """Return a value of JSON as a field of this type holds it; raises SamkitError, which calls it `called`."""
    origin, inner = get_origin(kind), get_args(kind)
    is_named = isinstance(value, Mapping) and list(value) == ["number"] and str(value["number"]) in _NUMBERS
    if is_named and kind in (float, Any):
        return _NUMBERS[str(value["number"])]
    if kind is Any:
        return _plain(value)
    if origin is Union or type(None) in inner:
        return None if value is None else read_value(next(one for one in inner if one is not type(None)), value, called)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) == len(value):
            return tuple(read_value(one, held, called) for one, held in zip(kinds, value, strict=True))
    elif origin is not None and origin is not tuple and isinstance(value, Mapping):
        return {name: read_value(inner[1], held, f"{name:.60} in {called}") for name, held in value.items()}
    elif is_dataclass(kind) and isinstance(value, Mapping):
        record: Any = kind
        return from_json(record, value, called)
    elif origin is None and _is(kind, value):
        return value
    needed = _CALLED.get(kind, _tuple(inner) if origin is tuple else "an object")
    raise SamkitError(f"{called} is {str(value)[:60]!r}, and {needed} is needed")


def _is(kind: Any, value: Any) -> bool:
    return isinstance(value, (float, int) if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def _tuple(inner: tuple[Any, ...]) -> str:
    return "a list" if inner[1:] == (...,) else f"a list of {len(inner)}"


def _plain(value: Any) -> Any:
    """Return JSON of no known type, with the numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: read_value(Any, held, name) for name, held in value.items()}
    return [read_value(Any, held, "") for held in value] if isinstance(value, list) else value
