"""Pictures of a report: each case on the slice on which an export and PyTorch disagree the most, in four panels.

A panel is the image with a clear picture of one or two colours laid over it. What is no PNG is refused.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

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


def cases_of(run: Run, name: str) -> Iterator[dict[str, Any]]:
    """Yield what the page shows of each case of each method, from the row in which most voxels of a slice differ.

    Pictures are PNG in base64, sizes and frames (x, y, width, height) in pixels.
    """
    found: dict[tuple[str, str], list[tuple[AccuracyRow, WorstSlice]]] = {}
    for row in run.rows:
        if isinstance(row, AccuracyRow) and not row.reference:
            for worst in row.slices:
                found.setdefault((method_of(row), worst.case), []).append((row, worst))
    for place, ((method, case), entries) in enumerate(found.items(), 1):
        row, worst = max(entries, key=lambda entry: entry[1].flipped)
        image, *pictures = (_read(text, case) for text in (worst.image, worst.reference, worst.found))
        if any(picture.size != image.size for picture in pictures):
            raise InputRefused("no-picture", f"the pictures of {case} have several sizes", "measure the run again")
        mask, export = (np.asarray(picture.convert("L")) > 127 for picture in pictures)
        shown = np.count_nonzero(mask ^ export)
        title = "difference" if shown else "difference: none"
        if shown != worst.flipped:  # beyond the picture's edge, or between two structures
            title = f"difference: {shown} of {worst.flipped} seen here"
        # Single pixels are made larger, so that a reader sees them on a large picture
        side = 2 * (max(mask.shape) // 150) + 1
        parts = {ONLY_PYTORCH: mask & ~export, ONLY_EXPORT: export & ~mask}
        alone = {colour: ndimage.binary_dilation(part, np.ones((side, side), bool)) for colour, part in parts.items()}
        yield {
            "id": f"{name}-slice-{place}", "method": method, "backend": _row_words(row), "worst": worst,
            # How many voxels differ in the other rows of the case, each on its own worst slice
            "others": {_row_words(other): one.flipped for other, one in entries if other is not row},
            "image": to_png(image), "size": image.size,
            # By title what is laid over the image
            "panels": {
                "image": "",
                "PyTorch's mask": _overlay({MASK: mask}),
                "the export's mask": _overlay({MASK: export}),
                title: _overlay(alone, shade=SHADE, opacity=255),
            },
            # Of the last one, the difference: what its colours mean, and a frame
            "key": {"PyTorch alone": ONLY_PYTORCH, "export alone": ONLY_EXPORT} if shown else {},
            "box": _box(mask ^ export),
        }  # fmt: skip


def _row_words(row: AccuracyRow) -> str:
    return f"{backend_of(row)} ({row.identity.policy})" if row.identity.policy else backend_of(row)


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
    """Return a frame a little outside a mask; None where it would lead nowhere."""
    if (edges := Image.fromarray(mask).getbbox()) is None:
        return None
    room = max(2, max(mask.shape) // 40)
    left, top, right, bottom = edges
    width, height = right - left + 2 * room, bottom - top + 2 * room
    return (left - room, top - room, width, height) if 4 * width * height < mask.size else None
