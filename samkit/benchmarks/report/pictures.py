"""Pictures of a report: each case on the slice on which an export and PyTorch disagree the most, in four panels.

A panel is the image with a clear picture of one or two colours laid over it. What is no PNG is refused.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from samkit.benchmarks.record.rows import AccuracyRow, WorstSlice, to_png
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.report.table import backend_of, method_of
from samkit.errors import InputRefused

MASK = (0, 158, 115)
ONLY_PYTORCH = (230, 159, 0)
ONLY_EXPORT = (86, 180, 233)
"""Colours of Okabe and Ito, which colour-blind readers tell apart."""
SHADE = 150
"""How dark the rest is where differences are shown, 0 to 255."""


@dataclass(frozen=True)
class Panel:
    """One of the four pictures of a case."""

    title: str
    overlay: str = ""
    """PNG in base64, laid over the image."""
    key: tuple[tuple[str, str], ...] = ()
    """Colours and what they mean."""
    box: tuple[int, int, int, int] | None = None
    """Where the differences are: x, y, width, height [pixels]."""


@dataclass(frozen=True)
class PicturedCase:
    """A case on the slice and with the backend that disagree with PyTorch the most."""

    id: str
    method: str
    case: str
    where: str
    backend: str
    flipped: int
    others: str
    """What the other rows of the case say."""
    image: str
    width: int
    height: int
    panels: tuple[Panel, ...]

    @property
    def stroke(self) -> float:
        """Return the width of a line that is as wide on every picture [pixels]."""
        return round(max(self.width, self.height) / 150, 2)


def cases_of(run: Run, name: str) -> Iterator[PicturedCase]:
    """Yield each case of each method once, from the row in which most voxels of a slice differ."""
    found: dict[tuple[str, str], list[tuple[AccuracyRow, WorstSlice]]] = {}
    for row in run.rows:
        if isinstance(row, AccuracyRow) and not row.reference:
            for worst in row.slices:
                found.setdefault((method_of(row), worst.case), []).append((row, worst))
    for place, ((method, case), entries) in enumerate(found.items(), 1):
        row, worst = max(entries, key=lambda entry: entry[1].flipped)
        yield _case(f"{name}-slice-{place}", method, case, row, worst, _others(row, entries))


def _others(row: AccuracyRow, entries: Sequence[tuple[AccuracyRow, WorstSlice]]) -> str:
    """Return how many voxels differ in the other rows of a case, each on its own worst slice; empty without others."""
    others = {_row_words(other): worst.flipped for other, worst in entries if other is not row}
    same = [words for words, flipped in others.items() if not flipped]
    words = [f"{words}: {flipped}" for words, flipped in others.items() if flipped]
    words += [f"none in {', '.join(same)}"] if same else []
    return f"Elsewhere: {'; '.join(words)}." if words else ""


def _row_words(row: AccuracyRow) -> str:
    return f"{backend_of(row)} ({row.identity.policy})" if row.identity.policy else backend_of(row)


def _case(name: str, method: str, case: str, row: AccuracyRow, worst: WorstSlice, others: str) -> PicturedCase:
    image, reference, found = (_read_picture(text, case) for text in (worst.image, worst.reference, worst.found))
    ours, theirs = (picture.convert("L").point(lambda value: 255 * (value > 127)) for picture in (reference, found))
    if not image.size == ours.size == theirs.size:
        raise InputRefused("no-picture", f"the pictures of {case} have several sizes", "measure the run again")
    mask, export = (np.asarray(picture) > 0 for picture in (ours, theirs))
    differing = mask ^ export
    colours = {"PyTorch alone": ONLY_PYTORCH, "export alone": ONLY_EXPORT}
    panels = (
        Panel("image"),
        Panel("PyTorch's mask", _overlay({MASK: mask})),
        Panel("the export's mask", _overlay({MASK: export})),
        Panel(
            _difference_title(int(np.count_nonzero(differing)), worst.flipped),
            _overlay({ONLY_PYTORCH: _seen(mask & ~export), ONLY_EXPORT: _seen(export & ~mask)}, SHADE, solid=True),
            tuple((_css(colour), words) for words, colour in colours.items()) if differing.any() else (),
            _box(differing),
        ),
    )
    return PicturedCase(
        name, method, case, _where(worst), _row_words(row), worst.flipped, others, to_png(image),
        image.width, image.height, panels,
    )  # fmt: skip


def _difference_title(shown: int, flipped: int) -> str:
    """Return what the last panel shows: voxels may differ beyond the picture's edge, or between two structures."""
    if shown == flipped:
        return "difference" if shown else "difference: none"
    return f"difference: {shown} of {flipped} seen here"


def _seen(mask: np.ndarray) -> np.ndarray:
    """Return a mask whose single pixels a reader can see on a large picture, by making them larger."""
    size = 2 * (max(mask.shape) // 150) + 1
    return ndimage.binary_dilation(mask, np.ones((size, size), bool))


def _where(worst: WorstSlice) -> str:
    """Return the click and the slice of a disagreement; a picture has no slices."""
    click = f"click {worst.click}" if worst.click else "before any click"
    return click if worst.axis == "picture" else f"{click}, {worst.axis} slice {worst.index}"


def _read_picture(text: str, case: str) -> Any:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
        return picture.convert("RGB" if picture.mode not in ("L", "1") else "L")
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise InputRefused(
            "no-picture", f"a picture of {case} can't be read ({error})", "measure the run again"
        ) from error


def _overlay(masks: Mapping[tuple[int, int, int], np.ndarray], shade: int = 0, *, solid: bool = False) -> str:
    """Return a PNG that is clear (or black by `shade`, 0 to 255) but for the masks, which have their colours."""
    from PIL import Image

    shape = next(iter(masks.values())).shape
    numbers = np.zeros(shape, np.uint8)
    palette = [0, 0, 0]
    opacity = [shade]
    for place, (colour, mask) in enumerate(masks.items(), 1):
        numbers[mask] = place
        palette += colour
        opacity.append(255 if solid else 130)
    picture = Image.fromarray(numbers, "P")
    picture.putpalette(palette)
    return to_png(picture, transparency=bytes(opacity))


def _box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return x, y, width and height [pixels] of a frame a little outside a mask; None where it would lead nowhere."""
    if not mask.any():
        return None
    rows, columns = np.nonzero(mask)
    room = max(2, max(mask.shape) // 40)
    x, y = int(columns.min()) - room, int(rows.min()) - room
    width, height = int(columns.max()) + 1 + room - x, int(rows.max()) + 1 + room - y
    return (x, y, width, height) if 4 * width * height < mask.size else None


def _css(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()
