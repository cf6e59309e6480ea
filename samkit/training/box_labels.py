"""Boxes as the detector learns them: from YOLO's text files, or around what a mask shows.

A box is x0, y0, x1, y1 in pixels from the image's corner: the whole image is 0, 0, W, H, and one pixel spans 1.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from samkit.errors import InputRefused
from samkit.imageio.reading import is_picture, picture_shape, read_picture
from samkit.training.slice_cases import FoundCases, LoadedCase, SliceCase, nothing_usable
from samkit.training.slice_prompts import MIN_PIXELS, components

IMAGES, LABELS = "images", "labels"
_FORM = "each line is `class cx cy width height`, the last four as fractions of the image"


def find_boxes(folder: Path) -> FoundCases:
    """Return one case for each picture in an images/ that has a text file in labels/ beside it."""
    cases, skipped = [], []
    for own in sorted(path for path in [folder / IMAGES, *folder.rglob(f"*/{IMAGES}")] if path.is_dir()):
        labels = {path.stem: path for path in sorted((own.parent / LABELS).glob("*.txt"))}
        pictures = {path.stem: path for path in sorted(own.iterdir()) if is_picture(path)}
        group = own.parent.relative_to(folder).as_posix() if own.parent != folder else ""
        skipped += [
            f"{labels[stem].name} skipped: there is no picture of its name in {IMAGES}/"
            for stem in sorted(set(labels) - set(pictures))
        ]
        for stem, picture in pictures.items():
            name = f"{group}/{stem}" if group else stem
            if stem not in labels:
                skipped.append(f"{name} skipped: it has no text file; an empty one says that there is nothing to see")
                continue
            try:
                parse_boxes(labels[stem], picture_shape(picture))
            except InputRefused as error:
                skipped.append(f"{name} skipped: {error}")
                continue
            cases.append(SliceCase(name, group, (picture,), (labels[stem],), read_boxes))
    if not cases:
        raise nothing_usable(skipped) if skipped else InputRefused(
            "no-data", f"{folder} holds no {IMAGES}/ beside {LABELS}/", "lay the data out as images/ and labels/*.txt"
        )  # fmt: skip
    return FoundCases("boxes", tuple(cases), tuple(skipped))


def read_boxes(case: SliceCase) -> LoadedCase:
    """Return a picture and its boxes; its label is empty."""
    image = read_picture(case.images[0])
    height, width = image.array.shape[:2]
    boxes = parse_boxes(case.labels[0], (height, width))
    empty = np.zeros((1, height, width), np.uint8)
    return LoadedCase(image.array[None], empty, (1.0, 1.0), (boxes,), image.remarks)


def parse_boxes(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return the boxes (n, 5) of a text file for an image of `shape` (height, width), cut at its edges; n may be 0."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused("unreadable", f"{path.name} can't be read ({type(error).__name__})", _FORM) from error
    height, width = shape
    boxes = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            kind, cx, cy, w, h = (float(word) for word in words)
        except ValueError as error:
            raise InputRefused(
                "bad-boxes", f"line {number} of {path.name} holds {len(words)} words that are not five numbers", _FORM
            ) from error
        inside = all(math.isfinite(v) and 0 <= v <= 1 for v in (cx, cy, w, h))
        if not inside or w == 0 or h == 0 or not (kind >= 0 and kind.is_integer()):
            raise InputRefused("bad-boxes", f"line {number} of {path.name} is no box: {line.strip()}", _FORM)
        boxes.append(((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height, kind))
    array = np.array(boxes, np.float32).reshape(-1, 5)
    array[:, :4] = np.clip(array[:, :4], 0, (width, height, width, height))
    return array


def boxes_of(labels: np.ndarray, min_pixels: int = MIN_PIXELS) -> np.ndarray:
    """Return one box (n, 5), class 0, around each component of `labels` (H, W) above 0."""
    boxes = []
    for component in components(labels > 0, min_pixels):
        rows, columns = np.flatnonzero(component.any(axis=1)), np.flatnonzero(component.any(axis=0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 0))
    return np.array(boxes, np.float32).reshape(-1, 5)
