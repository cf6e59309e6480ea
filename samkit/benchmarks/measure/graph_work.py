"""The work of one run of a graph: its inputs from a seed, and its floating-point operations.

What is timed is the work, which does not depend on the numbers. It is counted without computing anything: on torch's
device "meta" a network has shapes and no numbers, and torch.utils.flop_counter sums matrix products and convolutions,
a multiply-add as two operations, and nothing else. `python -m tools.flops` prints all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from samkit.methods import GraphSpec, Method
from samkit.methods.method import IMAGES
from samkit.networks.config import NetworkConfig
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


def count_flops(
    method: Method, config: NetworkConfig, graph: GraphSpec, *, folded: bool, rows: int = 1, points: int = 1
) -> float:
    """Return the GFLOP of one run of `graph` on `rows` images or rows of prompts, `points` points each.

    Folded is what an export runs, with LoRA merged and constants frozen; else upstream's own formulation, LoRA apart.
    The prompt encoders add a padding token to the points of every row, as upstream does.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    inputs = seeded_inputs(graph, config, rows=rows, points=points)
    with torch.device("meta"), torch.inference_mode():
        network = method.build(config).eval()
        network.set_folded(folded)
        if folded:
            network.merge_lora()
            network.freeze()
        with FlopCounterMode(display=False) as counter:
            network.run_graph(graph.name, *(torch.empty(array.shape) for array in inputs.values()))
    return counter.get_total_flops() / 1e9
