"""What becomes black and what white: one rule for volumes, for pictures of 16 bits, and for whoever reports it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samkit.errors import InputRefused

PERCENTILES = (0.5, 99.5)
"""Of what is not background: what becomes black and white where nobody says."""


@dataclass(frozen=True)
class Limits:
    """What became 0 and what 255."""

    low: float
    high: float
    origin: str
    """`given`, `percentiles`, or `stored` for pictures of 8 bits, which are 0..255 already."""
    lowest: float = 0.0
    """The least value of the image or zero, where percentiles were taken: what counts as background."""


STORED = Limits(0.0, 255.0, "stored")
"""Those of an image that is 0..255 already."""


def scale_intensities(
    array: np.ndarray, name: str, limits: tuple[float, float] | None = None
) -> tuple[np.ndarray, Limits]:
    """Return an image scaled to 0..255, float32, and how: `limits` become 0 and 255, what is beyond them is clipped.

    By default the limits are the 0.5 and 99.5 percentile of the values that are not background, and background stays 0
    (MedSAM's preparation of MR). Background is what is zero; in an image with negative values, such as a CT, where zero
    is water, it is what has the lowest value. Raises InputRefused, naming the image, where there is no contrast.
    """
    values = np.asarray(array, np.float32)
    found = find_limits(values, name, limits)
    scaled: np.ndarray = np.clip(values, found.low, found.high)
    scaled -= found.low
    scaled *= np.float32(255 / (found.high - found.low))
    if limits is None:
        scaled[values == found.lowest] = 0
    return scaled, found


def find_limits(array: np.ndarray, name: str, limits: tuple[float, float] | None = None) -> Limits:
    """Return what `scale_intensities` scales by, without scaling; raises as it does."""
    if limits is None:
        values = np.asarray(array, np.float32)
        lowest = min(0.0, float(values.min(initial=0.0)))
        tissue = values[values != lowest]
        # In place: `tissue` is a copy already, and a second one may be as large as the scan
        low, high = np.percentile(tissue, PERCENTILES, overwrite_input=True) if tissue.size else (0.0, 0.0)
        found = Limits(float(low), float(high), "percentiles", lowest)
    else:
        found = Limits(*limits, "given")
    if not found.high > found.low:
        raise InputRefused(
            "constant",
            f"{name} has no contrast: all of it that is not background lies between {found.low:g} and {found.high:g}",
            "give an image, not a mask or an empty scan",
        )
    return found
