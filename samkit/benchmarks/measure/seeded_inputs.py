"""Inputs of any graph from a seed: what is timed is the work, which does not depend on the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from samkit.methods import GraphSpec
from samkit.methods.method import IMAGES
from samkit.prompts import FOREGROUND


def seeded_inputs(
    graph: GraphSpec, config: Any, *, rows: int = 1, points: int = 1, has_mask: bool = True
) -> dict[str, np.ndarray]:
    """Return inputs of a graph of a network of this config: `rows` images, or rows of `points` foreground points each
    on one image. `has_mask` says whether the mask prompt counts, where a graph asks.
    """
    rng = np.random.default_rng(0)
    sizes = {"batch": rows, IMAGES: 1, "points": points}
    flags = {"point_labels": FOREGROUND, "has_mask_input": has_mask}
    found = {}
    for tensor in graph.inputs:
        shape = [sizes.get(axis.name, axis.opt) for axis in tensor.axes]
        if tensor.name in flags:
            numbers = np.full(shape, flags[tensor.name])
        elif tensor.name == "point_coords":
            numbers = rng.random(shape) * getattr(config, "image", getattr(config, "patch", 0))
        else:
            numbers = rng.standard_normal(shape)
        found[tensor.name] = numbers.astype(np.float32)
    return found
