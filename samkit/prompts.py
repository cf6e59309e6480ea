"""Points and boxes: what a user says about a volume or a slice, and how clicks are written down.

In a volume a place is a continuous voxel index (i, j, k) of an array in IJK order; 0 is the centre of the first voxel.
In which array (the file's, the network's grid, a crop) is said where it is used; `geometry` and `planes` move it. In a
slice it is a pixel (x, y), column and row, continuous, 0 the centre of the first pixel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samkit.errors import PromptError

FOREGROUND, BACKGROUND = 1, 0
PADDING = -1
"""SAM's not-a-point token: it takes part in attention. The exported graphs append it themselves."""
ABSENT = -2
"""No point at all: masked as an attention key, changes nothing. Fills tensors of a fixed point count."""


BOX_FIRST, BOX_LAST = 2, 3
"""The corners of a box with the smaller and the larger coordinates, as SAM's decoders take them."""


@dataclass(frozen=True)
class Point:
    """One click: `index` is (i, j, k), `label` is FOREGROUND or BACKGROUND."""

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
    """One click on a slice."""

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


def parse_point(text: str) -> Point:
    """Return the point written as `i,j,k,+` or `i,j,k,-`.

    >>> parse_point("10,20.5,3,+")
    Point(index=(10.0, 20.5, 3.0), label=1)
    """
    parts = [part.strip() for part in text.split(",")]
    labels = {"+": FOREGROUND, "-": BACKGROUND}
    if len(parts) != 4 or parts[3] not in labels:
        raise PromptError(f"a point is written i,j,k,+ or i,j,k,- and this one is '{text}'; e.g. --point 60,70,30,+")
    return _point(parts[:3], labels[parts[3]], text)


def read_clicks(path: Path) -> list[Point]:
    """Return the points of a JSON list of `{"point": [i, j, k], "label": 1}`, in order."""
    try:
        entries = json.loads(path.read_text())
    except OSError as error:  # its own text holds the whole path
        raise PromptError(f"the clicks file {path.name} can't be read ({error.strerror}); {_CLICKS_FORM}") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"the clicks file {path.name} is no JSON ({error}); {_CLICKS_FORM}") from error
    if not isinstance(entries, list):
        raise PromptError(f"the clicks file {path.name} holds a {type(entries).__name__}; {_CLICKS_FORM}")
    points = []
    for number, entry in enumerate(entries):
        if (
            not isinstance(entry, dict)
            or set(entry) != {"point", "label"}
            or entry["label"] not in (FOREGROUND, BACKGROUND)
        ):
            raise PromptError(f"click {number} of {path.name} is {entry!r}; {_CLICKS_FORM}")
        if not isinstance(entry["point"], list) or len(entry["point"]) != 3:
            raise PromptError(f"click {number} of {path.name} has point {entry['point']!r}; {_CLICKS_FORM}")
        points.append(_point(entry["point"], int(entry["label"]), f"click {number} of {path.name}"))
    return points


def write_clicks(path: Path, points: Sequence[Point]) -> None:
    """Write what `read_clicks` reads."""
    path.write_text(json.dumps([{"point": list(p.index), "label": p.label} for p in points], indent=1) + "\n")


_CLICKS_FORM = 'a clicks file is a JSON list such as [{"point": [60, 70, 30], "label": 1}], label 1 or 0'


def _point(parts: Sequence[object], label: int, source: str) -> Point:
    try:
        i, j, k = (float(str(part)) for part in parts)
    except ValueError:
        raise PromptError(f"{source}: the three indices must be numbers; e.g. 60,70.5,30") from None
    if not all(math.isfinite(v) for v in (i, j, k)):
        raise PromptError(f"{source}: the three indices must be finite numbers; e.g. 60,70.5,30")
    return Point((i, j, k), label)
