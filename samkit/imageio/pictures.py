"""What a picture is to networks, and what is a mask in one, whatever file it came from.

Readers give pixels as they are stored. One rule makes grey of equal channels, and intensities of 16 bits; another says
which pixels a mask means, or that nobody can know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samkit.errors import InputRefused
from samkit.intensities import STORED, Limits, scale_intensities

MAX_PIXELS = 2**26
"""Pixels of the largest picture that is read: 8192 x 8192."""

_LOSSY_MASK = 128
"""From here on a pixel of a mask counts in a file that blurs its edges."""
_ONE_TARGET = "save it in grey or with a palette, 0 for the background, one file for each target"


@dataclass(frozen=True)
class Pixels:
    """Pixels as a file stores them."""

    values: np.ndarray
    """uint8 or uint16: (H, W), or (H, W, C) of grey and alpha, colour, or colour and alpha; indices of a palette."""
    palette: np.ndarray | None = None
    """(N, 3) uint8: the colours that the values are indices of."""

    @property
    def alpha(self) -> np.ndarray | None:
        """Return the transparency (H, W), if there is any."""
        return self.values[..., -1] if self.values.shape[2:] in ((2,), (4,)) else None

    def without_alpha(self) -> np.ndarray:
        """Return the values (H, W, C): C is 3 for colour, and 1 for grey, indices, and three equal channels."""
        values = self.values[..., None] if self.values.ndim == 2 else self.values
        return _fewest_channels(values[..., :-1] if self.alpha is not None else values)


@dataclass(frozen=True)
class StoredPicture:
    """A picture in its file, by its own header."""

    path: Path
    shape: tuple[int, int]
    """Height and width."""
    pixels: Callable[[], Pixels]
    """Reads them; raises InputRefused."""
    is_lossy: bool = False
    """Whether its compression changes pixels."""


@dataclass(frozen=True)
class Picture:
    """A picture as networks see it."""

    array: np.ndarray
    """(H, W, C) float32, 0..255: C is 3 for colour, and 1 for grey however it is stored."""
    limits: Limits
    """What became 0 and 255."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what was done to it that a user may not expect."""
        if self.limits == STORED:
            return ()
        return ("16 bits are scaled to 0..255 by the 0.5 and 99.5 percentile of what is not zero, as scans are",)


@dataclass(frozen=True)
class PictureMask:
    """Which pixels a mask in a picture means."""

    array: np.ndarray
    """(H, W), boolean."""
    remarks: tuple[str, ...] = ()
    """What was done to it that a user may not expect."""


def picture_of(stored: StoredPicture) -> Picture:
    """Return the picture in an open file; transparency is left out. Raises InputRefused.

    16 bits are scaled as scans are, all channels alike: scanners fill them in part only, and a few pixels, such as a
    burnt-in mark, must not decide what the rest looks like.
    """
    pixels = stored.pixels()
    values = pixels.without_alpha()
    if pixels.palette is not None:
        colours = np.zeros((256, 3), np.uint8)  # an index beyond the palette is black, as viewers show it
        colours[: len(pixels.palette)] = pixels.palette
        values = _fewest_channels(colours[values[..., 0]])
    if values.dtype != np.uint8:
        return Picture(*scale_intensities(values, stored.path.name))
    return Picture(np.ascontiguousarray(values, np.float32), STORED)


def mask_of(stored: StoredPicture) -> PictureMask:
    """Return the mask in an open file: every pixel above zero, or from 128 on where compression blurs its edges.

    Indices of a palette are labels, whatever their colours. A picture in colour is a mask where everything that is not
    black has one colour. Raises InputRefused where several things could be meant: several colours, transparency.
    """
    name, pixels = stored.path.name, stored.pixels()
    if (alpha := pixels.alpha) is not None and (alpha != alpha[0, 0]).any():
        raise InputRefused(
            "mask-transparent",
            f"{name} is transparent in a part, and whether its colours or its transparency are the mask is not known",
            f"save it without transparency: {_ONE_TARGET[len('save it ') :]}",
        )
    values = pixels.without_alpha()
    counts = values >= _LOSSY_MASK if stored.is_lossy else values > 0
    mask: np.ndarray = counts.any(axis=2)
    if values.shape[2] > 1:
        _check_one_colour(name, values[mask], (counts if stored.is_lossy else values)[mask])
    remarks = (f"masks in JPEG, which blurs edges, count from {_LOSSY_MASK} of 255 on; PNG keeps them exactly",)
    return PictureMask(mask, remarks if stored.is_lossy else ())


def _check_one_colour(name: str, colours: np.ndarray, told_apart: np.ndarray) -> None:
    """Raise InputRefused unless all pixels (N, C) of a mask have one colour; `told_apart` are those to compare."""
    others = np.flatnonzero((told_apart != told_apart[:1]).any(axis=1))
    if not others.size:
        return
    one, other = (tuple(int(channel) for channel in colours[place]) for place in (0, others[0]))
    raise InputRefused(
        "mask-colours",
        f"{name} has several colours besides black, such as {one} and {other}, and which are the mask is not known",
        _ONE_TARGET,
    )


def check_picture_size(name: str, size: tuple[int, int]) -> None:
    """Raise InputRefused for a picture of more than MAX_PIXELS; `size` is width and height."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise InputRefused(
            "too-large", f"{name} has {width} x {height} pixels, the limit is {MAX_PIXELS}", "make it smaller first"
        )


def _fewest_channels(values: np.ndarray) -> np.ndarray:
    """Return (..., 3) as (..., 1) where all channels are equal."""
    first = values[..., 0]
    return values[..., :1] if all(np.array_equal(first, values[..., n]) for n in range(1, values.shape[-1])) else values
