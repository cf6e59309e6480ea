"""Where a slice lies in a network's square input, and how points and masks move between the two.

A pixel is (x, y), continuous; 0 is the centre of the first pixel. Points move as the official predictors move them: by
the ratio of the sizes, without a half-pixel term; or, where pixels were aligned at both ends, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Placement:
    """A slice of `shape` occupies `content` of a square of `side`, from `offset` on; the rest is padding."""

    shape: tuple[int, int]
    """Height and width of the slice [pixels]."""
    side: int
    """Side of the network's input [pixels]."""
    content: tuple[int, int]
    """Height and width of the slice in the input [its pixels]."""
    offset: tuple[int, int] = (0, 0)
    """Row and column of the input where it begins."""
    ends_aligned: bool = False
    """Whether the centres of the outermost pixels lie on each other, as in `scipy.ndimage.zoom`; else sizes do."""

    @classmethod
    def stretched(cls, shape: tuple[int, int], side: int, *, ends_aligned: bool = False) -> Self:
        """Return the placement that fills the square, whatever that does to the slice's proportions."""
        return cls(shape, side, (side, side), ends_aligned=ends_aligned)

    @classmethod
    def longest_side(cls, shape: tuple[int, int], side: int) -> Self:
        """Return SAM's placement: the longer side fills the square, padding is below or to the right."""
        scale = side / max(shape)
        height, width = (max(1, math.floor(size * scale + 0.5)) for size in shape)  # of a thin slice, one row is left
        return cls(shape, side, (height, width))

    @classmethod
    def centred(cls, shape: tuple[int, int], side: int) -> Self:
        """Return the placement that changes no pixel and pads around the slice, at most `side` high and wide."""
        return cls(shape, side, shape, ((side - shape[0]) // 2, (side - shape[1]) // 2))

    def points_to_network(self, points: np.ndarray) -> np.ndarray:
        """Return pixels (..., 2) (x, y) of the slice as pixels of the input, float32."""
        inner = 1 if self.ends_aligned else 0
        scale = (np.array(self.content[::-1]) - inner) / np.maximum(1, np.array(self.shape[::-1]) - inner)
        moved: np.ndarray = np.asarray(points, np.float64) * scale + self.offset[::-1]
        return moved.astype(np.float32)

    def place(self, content: np.ndarray) -> np.ndarray:
        """Return (C, h, w), the slice at its size in the input, in the square (C, side, side) with zeros around it."""
        square = np.zeros((len(content), self.side, self.side), np.float32)
        (y, x), (height, width) = self.offset, self.content
        square[:, y : y + height, x : x + width] = content
        return square

    def to_slice(self, low_res: np.ndarray) -> np.ndarray:
        """Return decoder values (..., s, s) on the slice (..., H, W): to the input's size, cropped, resized.

        Both steps are bilinear, as in the official predictors; the second falls away where sizes agree.
        """
        (y, x), (height, width) = self.offset, self.content
        full = resize_bilinear(low_res, (self.side, self.side))
        return resize_bilinear(full[..., y : y + height, x : x + width], self.shape)


def resize_bilinear(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return (..., h, w) as (..., H, W), float32, as `torch.nn.functional.interpolate` does bilinearly.

    Pixel centres sit at half pixels (align_corners False), edges repeat, shrinking does not smooth.
    """
    out = np.asarray(values, np.float32)
    for axis, size in ((-2, shape[0]), (-1, shape[1])):
        old = out.shape[axis]
        if old == size:
            continue
        at = np.maximum((np.arange(size) + 0.5) * (old / size) - 0.5, 0)
        low = np.minimum(np.floor(at).astype(int), old - 1)
        weight = (at - low).astype(np.float32).reshape((-1, 1) if axis == -2 else (-1,))
        lower, upper = np.take(out, low, axis), np.take(out, np.minimum(low + 1, old - 1), axis)
        lower *= 1 - weight
        upper *= weight
        out = np.add(lower, upper, out=lower)
    return out
