"""Readers of single values of a record: JSON and the key's name in; the checked value out, or a PromptError."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, TypeGuard

from samkit.errors import PromptError
from samkit.geometry import Triple
from samkit.prompts import BACKGROUND, FOREGROUND, Prompt, prompt_json, prompts_from_json

FINEST, COARSEST = 1e-6, 1e6
"""Spacings that are taken [mm]: beyond them a grid's sides are no numbers to count with."""
MOST_PROMPTS = 512
"""Of one request; a session takes no more steps."""
LONGEST, SHORTEST_NONCE = 128, 16
"""Letters of a nonce or a token."""
_MOST = 2**53
"""Whole numbers beyond it may not be those that were sent: much of what speaks JSON counts in float64."""


# --- Kinds of values ---


def read_count(value: object, name: str) -> int:
    """Return a whole number, 0 or more."""
    if _is_whole(value) and value >= 0:
        return value
    raise _wrong(name, value, "is a whole number, 0 or more; send it as a JSON number")


def read_flag(value: object, name: str) -> bool:
    """Return true or false."""
    if isinstance(value, bool):
        return value
    raise _wrong(name, value, "is true or false; send it as a JSON boolean")


def read_text(value: object, name: str) -> str:
    """Return a text."""
    if isinstance(value, str):
        return value
    raise _wrong(name, value, "is a text; send one")


def read_names(value: object, name: str) -> tuple[str, ...]:
    """Return a list of texts."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise _wrong(name, value, "is a list of texts; send one")


def read_object(value: object, name: str) -> Mapping[str, Any]:
    """Return a JSON object."""
    if isinstance(value, dict):
        return value
    raise _wrong(name, value, "is a JSON object; send one")


def _wrong(name: str, value: object, needed: str) -> PromptError:
    return PromptError(f"{name} is {value!r:.100}, needed {needed}")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(value: object, name: str, *counts: int) -> tuple[float, ...]:
    """Return a list of as many finite numbers as one of `counts` says."""
    refused = _wrong(name, value, f"are {' or '.join(map(str, counts))} numbers; send them as a JSON list")
    if not isinstance(value, list) or len(value) not in counts or not all(_is_number(number) for number in value):
        raise refused
    try:
        numbers = tuple(float(number) for number in value)
    except OverflowError:  # a whole number of hundreds of digits
        raise refused from None
    if not all(math.isfinite(number) for number in numbers):
        raise refused
    return numbers


# --- What a request says ---


def read_turn(value: object, name: str) -> int | None:
    """Return a turn, None for what is none: the session knows which one is next, and refuses every other."""
    return value if _is_whole(value) else None


def read_place(value: object, name: str) -> tuple[float, ...]:
    """Return (i, j, k), or (x, y) of a picture."""
    return _numbers(value, name, 3, 2)


def read_corners(value: object, name: str) -> tuple[float, ...]:
    """Return two corners, one after the other."""
    return _numbers(value, name, 6, 4)


def read_label(value: object, name: str) -> int:
    """Return FOREGROUND or BACKGROUND."""
    if _is_whole(value) and value in (FOREGROUND, BACKGROUND):
        return value
    raise _wrong(name, value, f"is {FOREGROUND} on the object or {BACKGROUND} on background; send one of those")


def read_prompts(value: object, name: str) -> tuple[Prompt, ...]:
    """Return points and boxes as a clicks file has them, at most MOST_PROMPTS."""
    if isinstance(value, list) and len(value) > MOST_PROMPTS:
        raise PromptError(
            f"{len(value)} prompts come in one request, and a server takes {MOST_PROMPTS}; send them in several"
        )
    return tuple(prompts_from_json(value, "the request"))


def write_prompts(prompts: tuple[Prompt, ...]) -> list[dict[str, Any]]:
    """Return what `read_prompts` reads; the numbers of prompts may be numpy's, which JSON does not know."""
    return [
        {
            key: [float(number) for number in value] if isinstance(value, list) else _plain(value)
            for key, value in prompt_json(prompt).items()
        }
        for prompt in prompts
    ]


def _plain(value: object) -> object:
    return int(value) if isinstance(value, Integral) else value


def read_sequences(value: object, name: str) -> tuple[str, ...]:
    """Return names, each of which stands once; none where nothing is named."""
    names = value or []
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise PromptError(f"sequences are {names!r:.100}, needed is a list of names; e.g. ['t1c', 't2w', 't2f']")
    if len(set(names)) < len(names):
        raise PromptError(f"sequences are {names!r:.100}, where a name stands twice; name each volume differently")
    return tuple(names)


def read_plane(value: object, name: str) -> str | None:
    """Return the name of a plane; None is the method's own, and so are the two below."""
    if value is None or isinstance(value, str):
        return value
    raise _wrong(name, value, "is a name such as 'axial'; leave it out for the method's own")


def read_intensities(value: object, name: str) -> tuple[float, float] | None:
    """Return what becomes black and white, the lower one first."""
    if value is None:
        return None
    black, white = limits = _numbers(value, name, 2)
    if not black < white:
        raise PromptError(f"intensities are {list(limits)}, needed is the lower one first; e.g. [-160, 240]")
    return black, white


def read_spacing(value: object, name: str) -> Triple | None:
    """Return three voxel sizes [mm]."""
    if value is None:
        return None
    i, j, k = spacing = _numbers(value, name, 3)
    if not (min(spacing) >= FINEST and max(spacing) <= COARSEST):
        raise PromptError(
            f"spacing is {list(spacing)}, needed are three numbers from {FINEST:g} to {COARSEST:g} [mm]; e.g. "
            "[1.5, 1.5, 1.5]"
        )
    return i, j, k


def read_short_text(value: object, name: str) -> str | None:
    """Return a text of at most LONGEST letters; None is none."""
    if value is None or (isinstance(value, str) and len(value) <= LONGEST):
        return value
    raise _wrong(name, value, f"is a text of at most {LONGEST} letters; send one")


def read_nonce(value: object, name: str) -> str | None:
    """Return a text of SHORTEST_NONCE to LONGEST letters; None is none."""
    nonce = read_short_text(value, name)
    if nonce is not None and len(nonce) < SHORTEST_NONCE:
        raise PromptError(
            f"the nonce has {len(nonce)} letters, needed are {SHORTEST_NONCE} and more, drawn at random for each "
            "scan; leave it out if you never send a request twice"
        )
    return nonce


# --- What an answer says ---


def read_optional_text(value: object, name: str) -> str | None:
    """Return a text; None is none."""
    return None if value is None else read_text(value, name)


def read_measure(value: object, name: str) -> float:
    """Return a number."""
    try:
        if _is_number(value):
            return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        pass
    raise _wrong(name, value, "is a number; send one")


def read_optional_measure(value: object, name: str) -> float | None:
    """Return a number; None is none."""
    return None if value is None else read_measure(value, name)


def read_measures(value: object, name: str) -> tuple[float, ...]:
    """Return a list of numbers."""
    if isinstance(value, list):
        return tuple(read_measure(one, name) for one in value)
    raise _wrong(name, value, "is a list of numbers; send one")


def read_optional_count(value: object, name: str) -> int | None:
    """Return a whole number, 0 or more; None is none."""
    return None if value is None else read_count(value, name)


def read_counts(value: object, name: str) -> tuple[int, ...]:
    """Return a list of whole numbers, 0 or more."""
    if isinstance(value, list):
        return tuple(read_count(one, name) for one in value)
    raise _wrong(name, value, "is a list of whole numbers; send one")


def read_whole_numbers(value: object, name: str) -> tuple[int, ...]:
    """Return a list of whole numbers, which may lie below 0: a crop may begin outside of the scan."""
    if isinstance(value, list) and all(_is_whole(one) for one in value):
        return tuple(value)
    raise _wrong(name, value, "is a list of whole numbers; send one")


def rows_of(count: int) -> Callable[[object, str], tuple[tuple[int, ...], ...]]:
    """Return a reader of a list of lists, each of `count` whole numbers."""

    def read(value: object, name: str) -> tuple[tuple[int, ...], ...]:
        if isinstance(value, list) and all(isinstance(one, list) and len(one) == count for one in value):
            return tuple(read_whole_numbers(one, name) for one in value)
        raise _wrong(name, value, f"is a list of lists of {count} whole numbers; send one")

    return read


def read_providers(value: object, name: str) -> Mapping[str, tuple[str, ...]]:
    """Return what runs each graph."""
    return {graph: read_names(names, name) for graph, names in read_object(value, name).items()}


def read_seconds(value: object, name: str) -> Mapping[str, float]:
    """Return seconds by stage."""
    return {stage: read_measure(spent, name) for stage, spent in read_object(value, name).items()}
