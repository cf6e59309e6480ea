"""`--set name=value`: texts to typed values of the fields of recipes and networks."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from samkit.errors import OptionError
from samkit.prompts import parse_number

_NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word"}


def settable(record: type) -> dict[str, Any]:
    """Return name to type of the fields of a dataclass that a text can set: plain values, and tuples of them."""
    return {name: wanted for name, wanted in typing.get_type_hints(record).items() if _is_plain(wanted)}


def parse_settings(settings: Sequence[str], known: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return name to typed value of `name=value` texts; OptionError for what is not `known` or of another type.

    >>> parse_settings(["losses=focal:20,dice:1"], {"losses": tuple[tuple[str, float], ...]}, "sam")
    {'losses': (('focal', 20.0), ('dice', 1.0))}
    """
    values: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise OptionError(f"{{set}} {text} has no value; write {{set}} name=value", options=("set",))
        if name not in known:
            raise OptionError(
                f"{{set}} {name}: no such setting for {method}; known are {', '.join(sorted(known))}", options=("set",)
            )
        try:
            values[name] = _typed(value.strip(), known[name])
        except ValueError:
            raise OptionError(f"{{set}} {text}: '{value}' is not {_describe(known[name])}", options=("set",)) from None
    return values


def _is_plain(wanted: Any) -> bool:
    kind = typing.get_origin(wanted)
    if kind is None:
        return wanted in _NAMES
    if kind not in (tuple, typing.Union, types.UnionType):
        return False
    inner = [a for a in typing.get_args(wanted) if a not in (type(None), Ellipsis)]
    # A tuple of tuples is written `focal:20,dice:1`: each of the inner ones has a fixed length.
    return all(
        a in _NAMES or (typing.get_origin(a) is tuple and all(b in _NAMES for b in typing.get_args(a))) for a in inner
    )


def _typed(text: str, wanted: Any, separator: str = ",") -> Any:
    """Return `text` as the type `wanted`; ValueError where it is none. One number fills a tuple of fixed length."""
    kind = typing.get_origin(wanted)
    if kind in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        return _typed(text, next(a for a in typing.get_args(wanted) if a is not type(None)))
    if kind is tuple:
        inner = typing.get_args(wanted)
        parts = [part.strip() for part in text.strip("()").split(separator) if part.strip()]
        if inner[-1] is Ellipsis:
            return tuple(_typed(part, inner[0], ":") for part in parts)
        if len(parts) == 1:
            parts = parts * len(inner)
        return tuple(_typed(part, one) for part, one in zip(parts, inner, strict=True))
    if wanted is bool:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError
        return text.lower() in ("true", "yes", "1")
    if wanted is float:
        number = parse_number(text)
        if not math.isfinite(number):
            raise ValueError
        return number
    if wanted is int and "_" in text:  # which Python reads as digits in groups
        raise ValueError
    convert: Callable[[str], Any] = wanted
    return convert(text)


def _describe(wanted: Any) -> str:
    kind = typing.get_origin(wanted)
    if kind is tuple:
        inner = typing.get_args(wanted)
        if typing.get_origin(inner[0]) is tuple:
            return "pairs with commas between, each NAME:NUMBER"
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"{count}values with commas between, each {_NAMES[inner[0]]}"
    if kind is not None:
        return f"{_describe(next(a for a in typing.get_args(wanted) if a is not type(None)))} or none"
    return _NAMES[wanted]
