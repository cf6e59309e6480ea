"""Prompts in RAS+ millimetres as prompts in voxel indices, of scans that know left from right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from samkit.errors import InputRefused
from samkit.geometry import Triple, voxel_to_world, world_to_voxel
from samkit.imageio.frames import first_sided
from samkit.imageio.study import Study
from samkit.prompts import Box, Point, Prompt

_ROUND_OFF = 1e-3
"""Voxels that a place may lie outside the volume: world coordinates come with round-off."""


def check_sides(study: Study, structures: Sequence[str], *, world: bool) -> None:
    """Raise InputRefused where left and right are not known of a study, and have to be.

    They have to be for places in millimetres, `world`, and for `structures` of one side: with a scan mirrored, each
    would be called after the other.
    """
    if (doubt := study.doubt) is None:
        return
    if world:
        raise doubt.refusal("places in millimetres")
    if sided := first_sided(structures):
        raise doubt.refusal(f"structures of one side, such as {sided},")


def to_voxel(prompt: Prompt, affine: np.ndarray, shape: Sequence[int]) -> Prompt:
    """Return a prompt in millimetres as one in voxel indices of a scan (I, J, K); one of a picture stays as it is.

    Raises InputRefused, in millimetres, for a place outside the scan.
    """
    match prompt:
        case Point(index):
            return replace(prompt, index=_moved("the click", index, affine, shape))
        case Box(first, last):
            first, last = (_moved("a corner of the box", place, affine, shape) for place in (first, last))
            return replace(prompt, first=first, last=last)
    return prompt


def _moved(what: str, place: Triple, affine: np.ndarray, shape: Sequence[int]) -> Triple:
    i, j, k = (float(v) for v in world_to_voxel(affine, np.array([place], np.float64))[0])
    if is_inside((i, j, k), shape):
        return i, j, k
    corners = voxel_to_world(affine, np.array([*itertools.product(*((-0.5, side - 0.5) for side in shape))]))
    reach = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in zip(corners.min(0), corners.max(0), strict=True))
    raise InputRefused(
        "click-outside",
        f"{what} ({', '.join(f'{v:g}' for v in place)}) mm lies outside the volume, which reaches from {reach} mm",
        "give RAS+ millimetres: x to the patient's right, y to the front, z up",
    )


def is_inside(index: Sequence[float], shape: Sequence[int]) -> bool:
    """Return whether a place lies in a volume (I, J, K) or a picture (W, H); 0 is the centre of the first voxel."""
    return all(-0.5 - _ROUND_OFF <= v <= n - 0.5 + _ROUND_OFF for v, n in zip(index, shape, strict=True))
