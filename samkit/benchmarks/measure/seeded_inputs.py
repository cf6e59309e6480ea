"""Inputs of any graph from a seed: what is timed is the work, which does not depend on the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from samkit.methods import GraphSpec
from samkit.methods.method import IMAGES
from samkit.prompts import FOREGROUND
from samkit.tensors import TensorSpec


def seeded_inputs(
    graph: GraphSpec, config: Any, *, rows: int = 1, points: int = 1, has_mask: bool = True
) -> dict[str, np.ndarray]:
    """Return inputs of a graph of a network of this config: `rows` images, or rows of `points` foreground points each
    on one image. `has_mask` says whether the mask prompt counts, where a graph asks.
    """
    rng = np.random.default_rng(0)
    sizes = {"batch": rows, IMAGES: 1, "points": points}
    found = {}
    for tensor in graph.inputs:
        shape = [sizes.get(axis.name, axis.opt) for axis in tensor.axes]
        found[tensor.name] = _numbers(tensor, shape, config, has_mask, rng)
    return found


def _numbers(tensor: TensorSpec, shape: list[int], config: Any, has_mask: bool, rng: np.random.Generator) -> np.ndarray:
    if tensor.name == "point_coords":
        return (rng.random(shape) * getattr(config, "image", getattr(config, "patch", 0))).astype(np.float32)
    if tensor.name == "point_labels":
        return np.full(shape, FOREGROUND, np.float32)
    if tensor.name == "has_mask_input":
        return np.full(shape, float(has_mask), np.float32)
    return rng.standard_normal(shape).astype(np.float32)
