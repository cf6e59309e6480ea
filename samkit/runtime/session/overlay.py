"""A mask on the image it is of, as a picture for people: what sessions show and `sam-segment --overlay` writes."""

from __future__ import annotations

import numpy as np

from samkit.errors import OptionError
from samkit.imageio.study import Study
from samkit.planes import PLANES, PlaneView, checked_plane

SMALLEST = 256
"""Rows or columns, whichever are fewer, that a picture has at least: smaller slices are enlarged."""
_COLOURS = np.array(
    [
        (255, 75, 55), (60, 180, 255), (255, 210, 50), (80, 215, 120), (215, 110, 255), (255, 150, 60),
        (70, 225, 215), (255, 120, 180), (170, 210, 60), (130, 140, 255), (225, 185, 140), (160, 235, 255),
    ]
)  # fmt: skip
"""Of labels 1, 2, ...; then again from the first."""
_TINT = 0.3
"""How much of its colour the inside of a mask takes; the outline takes all."""


def draw(study: Study, labels: np.ndarray, plane: str | None, *, default: str = PLANES[0]) -> np.ndarray:
    """Return a picture (H, W, 3), uint8: the slice along `plane` that shows most of `labels`, the middle one of none.

    Rows and columns are as a reader of scans expects them (`planes.py`), pixels are square. Of several sequences the
    last is shown, where lesions show best; grey goes from the slice's 1st to its 99th percentile. A picture is shown
    whole. Raises OptionError for a plane that is not known, or that a picture has not.
    """
    if plane is not None and study.picture is not None:
        raise OptionError("a picture has no planes; leave {plane} out", options=("plane",))
    along = default if plane is None else checked_plane(plane)
    if study.picture is not None:
        shown, labels, pixel_mm = _of_picture(study.picture), labels, (1.0, 1.0)
    else:
        volume = list(study.scans.values())[-1].volume
        i, j, k = volume.array.shape
        view = PlaneView.of((i, j, k), volume.affine, along)
        stack = view.slices(labels)
        counts = np.count_nonzero(stack, axis=(1, 2))
        number = int(counts.argmax()) if counts.any() else view.count // 2
        shown, labels, pixel_mm = _grey(view.slices(volume.array)[number]), stack[number], view.pixel_mm
    rows, columns = _enlarged(labels.shape, pixel_mm)
    return _painted(shown[rows][:, columns], labels[rows][:, columns])


def _of_picture(picture: np.ndarray) -> np.ndarray:
    """Return a picture (H, W) or (H, W, C), 0..255, as (H, W, 3): colours as they are, of other channels the last."""
    grey = picture if picture.ndim == 2 else picture[..., -1]
    return picture if picture.shape[2:] == (3,) else np.stack([grey] * 3, -1)


def _grey(values: np.ndarray) -> np.ndarray:
    """Return a slice (H, W) as (H, W, 3), 0..255."""
    low, high = np.percentile(values, (1, 99))
    grey = (np.asarray(values, np.float32) - low) * (255 / max(float(high - low), 1e-6))
    return np.stack([grey.clip(0, 255)] * 3, -1)


def _enlarged(shape: tuple[int, ...], pixel_mm: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return which row and column of a slice each row and column of the picture shows."""
    square = [max(1, round(side * size / min(pixel_mm))) for side, size in zip(shape, pixel_mm, strict=True)]
    times = -(-SMALLEST // min(square))
    rows, columns = (np.arange(wide * times) * side // (wide * times) for side, wide in zip(shape, square, strict=True))
    return rows, columns


def _painted(shown: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3), uint8: each label's inside tinted, its outline in full colour."""
    out = shown.astype(np.float32)
    for label in np.unique(labels[labels > 0]):
        inside, colour = labels == label, _COLOURS[(int(label) - 1) % len(_COLOURS)]
        out[inside] = (1 - _TINT) * out[inside] + _TINT * colour
        out[inside & ~_eroded(inside, max(1, min(labels.shape) // SMALLEST))] = colour
    return np.rint(out).clip(0, 255).astype(np.uint8)


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """Return a mask (H, W) without its outermost pixels; what lies beyond the picture counts as outside.

    Not by SciPy, which a client of a server has not.
    """
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask
