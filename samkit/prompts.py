"""Points and boxes: what a user says about a volume or a slice, and how clicks are written down.

In a volume a place is a continuous voxel index (i, j, k) of an array in IJK order; 0 is the centre of the first voxel.
In which array (the file's, the network's grid, a crop) is said where it is used; `geometry` and `planes` move it. In a
slice it is a pixel (x, y), column and row, continuous, 0 the centre of the first pixel.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from samkit.errors import PromptError
from samkit.files import write_whole
from samkit.json_files import read_json

FOREGROUND, BACKGROUND = 1, 0
PADDING = -1
"""SAM's not-a-point token: it takes part in attention. The exported graphs append it themselves."""
ABSENT = -2
"""No point at all: masked as an attention key, changes nothing. Fills tensors of a fixed point count."""
ABSENT_LOGIT = -1.0e4
"""Added to the logits of absent keys: their softmax weight is exactly zero, in float16 too, which holds the number."""


BOX_FIRST, BOX_LAST = 2, 3
"""The corners of a box with the smaller and the larger coordinates, as SAM's decoders take them."""


@dataclass(frozen=True)
class Point:
    """One click: `index` is (i, j, k), `label` is FOREGROUND, which is 1, or BACKGROUND, which is 0."""

    index: tuple[float, float, float]
    label: int
    structure: str = ""
    """Which structure it speaks of, for methods that tell several apart."""


@dataclass(frozen=True)
class Box:
    """A box of a volume between two voxel indices, both inside; slices' methods need it flat across their plane."""

    first: tuple[float, float, float]
    last: tuple[float, float, float]
    structure: str = ""


@dataclass(frozen=True)
class SlicePoint:
    """One click on a slice; `label` as of a Point."""

    x: float
    y: float
    label: int
    structure: str = ""


@dataclass(frozen=True)
class SliceBox:
    """A box on a slice: x0 <= x1, y0 <= y1."""

    x0: float
    y0: float
    x1: float
    y1: float
    structure: str = ""


@dataclass(frozen=True)
class SlicePrompts:
    """Everything that is said about one slice; it goes to the network together."""

    points: tuple[SlicePoint, ...] = ()
    boxes: tuple[SliceBox, ...] = ()
    low_res: np.ndarray | None = None
    """(B, 1, S/4, S/4) logits of the answer before, one row for each of this one's: a mask prompt."""

    def __bool__(self) -> bool:
        return bool(self.points or self.boxes)


Prompt: TypeAlias = Point | Box | SlicePoint | SliceBox
"""What a user can say: the first two about a volume, the others about a picture."""


# --- As text ---

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.ASCII | re.IGNORECASE)


def parse_number(text: str) -> float:
    """Return the number that `text` is; ValueError for what `float` takes besides, such as 1_5 for 15.

    >>> parse_number(" 70.5")
    70.5
    """
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text:.60} is no number")
    return float(text)


EXAMPLE_POINT, EXAMPLE_PIXEL = "points 60,70,30,+", "points 60,70,+"
EXAMPLE_BOX, EXAMPLE_RECTANGLE = "boxes 40,52,30,88,97,30", "boxes 40,52,88,97"
"""Options with values, for errors: clicks and boxes in a volume and in a picture."""


def parse_point(text: str, structure: str = "", *, picture: bool = False) -> Point | SlicePoint:
    """Return the point written as `i,j,k,+` or `i,j,k,-`; two indices, `x,y,+`, are one of a picture.

    Either is read; `picture` says which one errors show.

    >>> parse_point("10,20.5,3,+")
    Point(index=(10.0, 20.5, 3.0), label=1, structure='')
    """
    *numbers, sign = (part.strip() for part in text.split(","))
    labels = {"+": FOREGROUND, "-": BACKGROUND}
    if len(numbers) not in (2, 3) or sign not in labels:
        form, example = ("x,y,+ or x,y,-", EXAMPLE_PIXEL) if picture else ("i,j,k,+ or i,j,k,-", EXAMPLE_POINT)
        raise PromptError(
            f"a point is written {form} and this one is '{text:.60}'; e.g. {{{example}}}",
            options=(example,),
        )
    return _point(_numbers(numbers, text), labels[sign], structure)


def parse_box(text: str, structure: str = "", *, picture: bool = False) -> Box | SliceBox:
    """Return the box written as `i0,j0,k0,i1,j1,k1`; four numbers, `x0,y0,x1,y1`, are one of a picture.

    >>> parse_box("8,40,12,5")
    SliceBox(x0=8.0, y0=5.0, x1=12.0, y1=40.0, structure='')
    """
    numbers = text.split(",")
    if len(numbers) not in (4, 6):
        form, example = ("x0,y0,x1,y1", EXAMPLE_RECTANGLE) if picture else ("i0,j0,k0,i1,j1,k1", EXAMPLE_BOX)
        raise PromptError(
            f"a box is written {form} and this one is '{text:.60}'; e.g. {{{example}}}",
            options=(example,),
        )
    return _box(_numbers(numbers, text), structure)


def parse_structure(text: str, *, picture: bool = False) -> Prompt:
    """Return the point or box written as `NAME=i,j,k,+` or `NAME=i0,j0,k0,i1,j1,k1`.

    >>> parse_structure("caudate_left=10,20,3,-").structure
    'caudate_left'
    """
    name, found, rest = (part.strip() for part in text.partition("="))
    if not found or not name:
        form, example = ("NAME=x,y,+", "60,70,+") if picture else ("NAME=i,j,k,+", "60,70,30,+")
        raise PromptError(
            f"a structure's prompt is written {form} and this one is '{text:.60}'; e.g. {{structures}} "
            f"caudate_left={example}",
            options=("structures",),
        )
    parse = parse_point if rest.endswith(("+", "-")) else parse_box
    return parse(rest, name, picture=picture)


# --- As a file ---

_FORM = (
    'a clicks file is a JSON list such as [{"point": [60, 70, 30], "label": 1}, {"box": [40, 52, 30, 88, 97, 30]}], '
    'label 1 or 0, each with a "structure" where the method has some; a picture\'s have [x, y] and [x0, y0, x1, y1]'
)


MOST_BYTES = 2**20
"""Of a clicks file: some ten thousand clicks."""


def read_prompts(path: Path) -> list[Prompt]:
    """Return the points and boxes of a JSON list, in order: `{"point": [i, j, k], "label": 1}`, `{"box": [...]}`.

    Each may name its `"structure"`.
    """
    try:
        entries = read_json(path, MOST_BYTES)
    except ValueError as error:
        what = str(error)
        found = what.removeprefix("it ") if what.startswith("it can't") else f"is no JSON ({what})"
        raise PromptError(f"the clicks file {path.name:.80} {found}; {_FORM}") from error
    return prompts_from_json(entries, path.name)


def prompts_from_json(entries: object, source: str) -> list[Prompt]:
    """Return the points and boxes of a list as `read_prompts` reads it; `source` is what messages call it."""
    if not isinstance(entries, list):
        raise PromptError(f"{source} holds a {type(entries).__name__}; {_FORM}")
    return [_entry(entry, f"click {number} of {source}") for number, entry in enumerate(entries)]


def write_clicks(path: Path, points: Sequence[Point]) -> None:
    """Write what `read_prompts` reads."""
    write_whole(path, json.dumps([prompt_json(point) for point in points], indent=1) + "\n")


def prompt_json(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as `read_prompts` reads it.

    >>> prompt_json(SliceBox(8, 5, 12, 40))
    {'box': [8, 5, 12, 40]}
    """
    data: dict[str, Any]
    match prompt:
        case Point(index, label):
            data = {"point": list(index), "label": label}
        case SlicePoint(x, y, label):
            data = {"point": [x, y], "label": label}
        case Box(first, last):
            data = {"box": [*first, *last]}
        case SliceBox(x0, y0, x1, y1):
            data = {"box": [x0, y0, x1, y1]}
    return {**data, "structure": prompt.structure} if prompt.structure else data


def _entry(entry: object, source: str) -> Prompt:
    wrong = PromptError(f"{source} {_what_is_wrong(entry)}; {_FORM}")
    if not isinstance(entry, dict) or not isinstance(structure := entry.get("structure", ""), str):
        raise wrong
    match {key: value for key, value in entry.items() if key != "structure"}:
        case {"point": list(numbers), "label": 0 | 1 as label, **others} if len(numbers) in (2, 3) and not others:
            if type(label) is int:  # True and 1.0 are equal to it
                return _point(_finite(numbers, source), label, structure)
        case {"box": list(numbers), **others} if len(numbers) in (4, 6) and not others:
            return _box(_finite(numbers, source), structure)
    raise wrong


_KEYS = ("point", "label", "box", "structure")


def _what_is_wrong(entry: object) -> str:
    """Return what to tell of an entry that is no prompt, and nothing of what else it holds: it may name a patient."""
    if not isinstance(entry, dict):
        return f"is a {type(entry).__name__} and no object"
    if unknown := [str(place) for place, key in enumerate(entry, 1) if key not in _KEYS]:
        places = " and ".join(filter(None, (", ".join(unknown[:-1][:9]), unknown[-1])))
        return f"has {len(unknown)} key(s) of {len(entry)} that no prompt has, number {places}"
    given = [key for key in ("point", "box") if key in entry]
    if len(given) != 1:
        return "has a point and a box" if given else "has neither a point nor a box"
    if not isinstance(entry.get("structure", ""), str):
        return "has a structure that is no text"
    ((key, sizes),) = ((key, sizes) for key, sizes in (("point", (2, 3)), ("box", (4, 6))) if key in entry)
    numbers = entry[key]
    if not isinstance(numbers, list) or len(numbers) not in sizes:
        found = f"{len(numbers)} elements" if isinstance(numbers, list) else "no list"
        return f"has a {key} of {found}, needed are {' or '.join(map(str, sizes))} numbers"
    return "is a box with a label" if key == "box" else "is a point without a label that is 1 or 0"


def _point(numbers: list[float], label: int, structure: str) -> Point | SlicePoint:
    if len(numbers) == 2:
        return SlicePoint(numbers[0], numbers[1], label, structure)
    return Point((numbers[0], numbers[1], numbers[2]), label, structure)


def _box(numbers: list[float], structure: str) -> Box | SliceBox:
    if len(numbers) == 4:
        (x0, x1), (y0, y1) = sorted(numbers[0::2]), sorted(numbers[1::2])
        return SliceBox(x0, y0, x1, y1, structure)
    i0, j0, k0, i1, j1, k1 = numbers
    return Box((i0, j0, k0), (i1, j1, k1), structure)


def _numbers(parts: Sequence[str], text: str) -> list[float]:
    """Return the numbers that texts are; `text` is the whole of them, for the error."""
    try:
        return _finite([parse_number(part) for part in parts], f"'{text:.60}'")
    except ValueError:
        raise PromptError(f"'{text:.60}': the indices must be numbers; e.g. 60,70.5,30") from None


def _finite(numbers: Sequence[object], source: str) -> list[float]:
    """Return what must be numbers, and finite."""
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        raise PromptError(f"{source}: the indices must be numbers; e.g. 60,70.5,30")
    try:
        found = [float(number) for number in numbers]  # type: ignore[arg-type]  # as was just seen
    except OverflowError:  # a whole number of hundreds of digits
        found = [math.inf]
    if not all(math.isfinite(number) for number in found):
        raise PromptError(f"{source}: the indices must be finite numbers; e.g. 60,70.5,30")
    return found
