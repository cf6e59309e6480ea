"""Floating-point operations of one run of a graph, counted without computing anything; `python -m tools.flops` prints
them.

On torch's device "meta" a network has shapes and no numbers, and torch.utils.flop_counter sums matrix products and
convolutions: a multiply-add is two operations, and nothing else counts.
"""

from __future__ import annotations

from samkit.benchmarks.measure.seeded_inputs import seeded_inputs
from samkit.methods import GraphSpec, Method
from samkit.networks.config import NetworkConfig


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
