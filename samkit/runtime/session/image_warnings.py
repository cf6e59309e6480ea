"""What has to be known of an image that was set: it looks like another modality, no window was given, or its voxels
are of a size that does not suit the network's grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from samkit.geometry import Grid, Triple, Volume, as_index, by
from samkit.imageio.scan import Scan
from samkit.intensities import PERCENTILES, Limits

if TYPE_CHECKING:
    from samkit.manifest import ExportPlan
    from samkit.methods.method import Method

_FAT = -50
"""Below it lies fat, and far below it air, in Hounsfield units; in MR nothing does, but for the ringing of a filter."""
_MOST_TIMES = 5
"""How many times as long as the grid's a scan's voxels may be; thick slices are as thick, but fine in their plane."""
_LEAST_SIDE = 16
"""Voxels of the grid along a scan's longest side, below which there is nothing to be seen."""
_CT_LOWEST = -100
_CT_SHARE = 0.01


def image_warnings(
    scans: Mapping[str, Scan], limits: Sequence[Limits], method: Method, plan: ExportPlan | None
) -> tuple[str, ...]:
    """Return in sentences what a user must be told of `scans`, by sequence, before a mask of them is believed.

    `limits` are what became black and white in a method of slices, in the order of its sequences. `plan` says what the
    weights have seen.
    """
    seen = {scan.modality or ("CT" if _looks_like_ct(scan.volume.array) else "") for scan in scans.values()} - {""}
    return (*_other_modality(seen, method, plan), *_no_window(seen, limits))


def scale_warnings(volume: Volume, spacing: Triple) -> tuple[str, ...]:
    """Return in a sentence that a scan does not suit a grid of `spacing` [mm]: the network would see too few voxels."""
    grid = Grid.over(as_index(np.array(volume.array.shape)), volume.affine, spacing)
    hint = "is the affine in millimetres, and the spacing right?"
    if max(grid.step) * _MOST_TIMES < 1:
        return (
            f"voxels of {by(volume.spacing)} mm are along each axis more than {_MOST_TIMES} times as long as those of "
            f"the network's grid, {by(spacing)} mm, so that it sees few of them: {hint}",
        )
    if max(grid.shape) < _LEAST_SIDE:
        return (f"the whole scan is {by(grid.shape)} voxels of the network's grid, {by(spacing)} mm: {hint}",)
    return ()


def _other_modality(seen: set[str], method: Method, plan: ExportPlan | None) -> list[str]:
    known = "MR" if plan is not None and plan.weights.demonstration else method.modality  # phantoms are MR
    others = sorted(seen - {known})
    if not known or not others:
        return []
    whose = "the demonstration weights have" if known != method.modality else f"{method.name} has"
    return [f"this looks like {' and '.join(others)}, and {whose} learnt from {known} alone: the mask may mean nothing"]


def _no_window(seen: set[str], limits: Sequence[Limits]) -> list[str]:
    taken = [one for one in limits if one.origin == "percentiles" and (one.lowest < 0 or "CT" in seen)]
    if not taken:
        return []
    lowest, low, high = min(one.lowest for one in taken), min(one.low for one in taken), max(one.high for one in taken)
    return [
        f"values down to {lowest:g} and no window given, as a CT needs one: the {PERCENTILES[0]} and {PERCENTILES[1]} "
        f"percentile of what is not background, {low:g} and {high:g}, stand in for it; give intensities, such as "
        "-160,240 for soft tissue"
    ]


def _looks_like_ct(array: np.ndarray) -> bool:
    return bool(array.min() <= _CT_LOWEST) and float(np.mean(array <= _FAT)) > _CT_SHARE
