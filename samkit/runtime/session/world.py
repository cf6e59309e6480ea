"""Prompts in RAS+ millimetres as prompts in voxel indices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from samkit.geometry import Triple, world_to_voxel
from samkit.prompts import Box, Point, Prompt


def to_voxel(prompt: Prompt, affine: np.ndarray) -> Prompt:
    """Return a prompt in millimetres as one in voxel indices of a scan; one of a picture stays as it is."""
    if isinstance(prompt, Point):
        return replace(prompt, index=_moved(prompt.index, affine))
    if isinstance(prompt, Box):
        return replace(prompt, first=_moved(prompt.first, affine), last=_moved(prompt.last, affine))
    return prompt


def _moved(place: Triple, affine: np.ndarray) -> Triple:
    i, j, k = world_to_voxel(affine, np.array([place], np.float64))[0]
    return float(i), float(j), float(k)
