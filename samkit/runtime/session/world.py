"""Prompts in RAS+ millimetres as prompts in voxel indices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from samkit.errors import InputRefused
from samkit.geometry import Triple, Volume, voxel_to_world, world_to_voxel
from samkit.prompts import Box, Point, Prompt

_ROUND_OFF = 1e-3
"""Voxels that a place may lie outside the volume: world coordinates come with round-off."""


def to_voxel(prompt: Prompt, affine: np.ndarray) -> Prompt:
    """Return a prompt in millimetres as one in voxel indices of a scan; one of a picture stays as it is."""
    if isinstance(prompt, Point):
        return replace(prompt, index=_moved(prompt.index, affine))
    if isinstance(prompt, Box):
        return replace(prompt, first=_moved(prompt.first, affine), last=_moved(prompt.last, affine))
    return prompt


def to_voxel_inside(prompt: Prompt, volume: Volume) -> Prompt:
    """Return the same; raises InputRefused, in millimetres, for a place outside the volume."""
    moved = to_voxel(prompt, volume.affine)
    for place, index in zip(_places(prompt), _places(moved), strict=True):
        if not is_inside(index, volume.array.shape):
            corners = voxel_to_world(
                volume.affine, np.array([*itertools.product(*((0, n - 1) for n in volume.array.shape))])
            )
            reach = ", ".join(
                f"{low:.4g} to {high:.4g}" for low, high in zip(corners.min(0), corners.max(0), strict=True)
            )
            raise InputRefused(
                "click-outside",
                f"{'the click' if isinstance(prompt, Point) else 'a corner of the box'} "
                f"({', '.join(f'{v:g}' for v in place)}) mm lies outside the volume, which reaches from {reach} mm",
                "give RAS+ millimetres: x to the patient's right, y to the front, z up",
            )
    return moved


def is_inside(index: Sequence[float], shape: Sequence[int]) -> bool:
    """Return whether a place lies in a volume (I, J, K) or a picture (W, H); 0 is the centre of the first voxel."""
    return all(-0.5 - _ROUND_OFF <= v <= n - 0.5 + _ROUND_OFF for v, n in zip(index, shape, strict=True))


def _places(prompt: Prompt) -> tuple[Triple, ...]:
    match prompt:
        case Point(index):
            return (index,)
        case Box(first, last):
            return first, last
    return ()


def _moved(place: Triple, affine: np.ndarray) -> Triple:
    i, j, k = world_to_voxel(affine, np.array([place], np.float64))[0]
    return float(i), float(j), float(k)
