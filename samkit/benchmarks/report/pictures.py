"""Pictures of a report: each case on the slice on which an export and PyTorch disagree the most, in four panels.

A panel is the image with a clear picture of one or two colours laid over it. What is no PNG is refused.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageColor
from scipy import ndimage

from samkit.benchmarks.record.rows import AccuracyRow, WorstSlice, to_png
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.report.table import backend_of, method_of
from samkit.errors import InputRefused

MASK, ONLY_PYTORCH, ONLY_EXPORT = "#009e73", "#e69f00", "#56b4e9"
"""Colours of Okabe and Ito, which colour-blind readers tell apart."""
SHADE = 150
"""How dark the rest is where differences are shown, 0 to 255."""


@dataclass(frozen=True)
class Panel:
    """One of the four pictures of a case."""

    title: str
    overlay: str = ""
    """PNG in base64, laid over the image."""
    key: Mapping[str, str] = field(default_factory=dict)
    """By what they mean, the colours."""
    box: tuple[int, int, int, int] | None = None
    """Where the differences are: x, y, width, height [pixels]."""


@dataclass(frozen=True)
class PicturedCase:
    """A case on the slice and with the backend that disagree with PyTorch the most."""

    id: str
    method: str
    backend: str
    worst: WorstSlice
    others: Mapping[str, int]
    """How many voxels differ in the other rows of the case."""
    image: str
    size: tuple[int, int]
    """Width and height [pixels]."""
    panels: tuple[Panel, ...]


def cases_of(run: Run, name: str) -> Iterator[PicturedCase]:
    """Yield each case of each method once, from the row in which most voxels of a slice differ."""
    found: dict[tuple[str, str], list[tuple[AccuracyRow, WorstSlice]]] = {}
    for row in run.rows:
        if isinstance(row, AccuracyRow) and not row.reference:
            for worst in row.slices:
                found.setdefault((method_of(row), worst.case), []).append((row, worst))
    for place, ((method, case), entries) in enumerate(found.items(), 1):
        row, worst = max(entries, key=lambda entry: entry[1].flipped)
        pictures = [_read(text, case) for text in (worst.image, worst.reference, worst.found)]
        if len({picture.size for picture in pictures}) > 1:
            raise InputRefused("no-picture", f"the pictures of {case} have several sizes", "measure the run again")
        image, *masks = pictures
        panels = _panels(*(np.asarray(picture.convert("L")) > 127 for picture in masks), flipped=worst.flipped)
        # Each of the others on its own worst slice
        others = {_row_words(other): one.flipped for other, one in entries if other is not row}
        yield PicturedCase(
            f"{name}-slice-{place}", method, _row_words(row), worst, others, to_png(image), image.size, panels
        )


def _row_words(row: AccuracyRow) -> str:
    return f"{backend_of(row)} ({row.identity.policy})" if row.identity.policy else backend_of(row)


def _panels(mask: np.ndarray, export: np.ndarray, *, flipped: int) -> tuple[Panel, ...]:
    """Return the panels of PyTorch's mask and the export's, of which `flipped` voxels are said to differ."""
    shown = np.count_nonzero(mask ^ export)
    title = "difference" if shown else "difference: none"
    if shown != flipped:  # beyond the picture's edge, or between two structures
        title = f"difference: {shown} of {flipped} seen here"
    # Single pixels are made larger, so that a reader sees them on a large picture
    side = 2 * (max(mask.shape) // 150) + 1
    alone = {
        colour: ndimage.binary_dilation(part, np.ones((side, side), bool))
        for colour, part in ((ONLY_PYTORCH, mask & ~export), (ONLY_EXPORT, export & ~mask))
    }
    key = {"PyTorch alone": ONLY_PYTORCH, "export alone": ONLY_EXPORT} if shown else {}
    return (
        Panel("image"),
        Panel("PyTorch's mask", _overlay({MASK: mask})),
        Panel("the export's mask", _overlay({MASK: export})),
        Panel(title, _overlay(alone, shade=SHADE, opacity=255), key, _box(mask ^ export)),
    )


def _read(text: str, case: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",))
        return picture.convert("RGB" if picture.mode not in ("L", "1") else "L")
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        why = f"a picture of {case} can't be read ({error})"
        raise InputRefused("no-picture", why, "measure the run again") from error


def _overlay(masks: Mapping[str, np.ndarray], *, shade: int = 0, opacity: int = 130) -> str:
    """Return a PNG that is clear (or black by `shade`, 0 to 255) but for the masks, which have their colours."""
    numbers = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for place, mask in enumerate(masks.values(), 1):
        numbers[mask] = place
    picture = Image.fromarray(numbers, "P")
    picture.putpalette(b"".join(bytes(ImageColor.getrgb(colour)) for colour in ("#000000", *masks)))
    return to_png(picture, transparency=bytes((shade, *(opacity for _ in masks))))


def _box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return x, y, width and height [pixels] of a frame a little outside a mask; None where it would lead nowhere."""
    if (edges := Image.fromarray(mask).getbbox()) is None:
        return None
    room = max(2, max(mask.shape) // 40)
    left, top, right, bottom = edges
    width, height = right - left + 2 * room, bottom - top + 2 * room
    return (left - room, top - room, width, height) if 4 * width * height < mask.size else None
