"""Which products' rounding moves a graph's outputs most: where the gate failed, those go back to float32 first.

One float32 graph has a switch behind every product that runs in float16: switched on, its result is rounded. A few
products at a time are, on the inputs where the gate failed. The errors of roundings add as squares, so that a fifth of
the products often makes most of the error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from samkit.export.parity import relative_error
from samkit.export.typed_graph import TypedGraph, copy_node, rebuilt, save_beside
from samkit.methods import GraphSpec
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.tensors import Axis, Tensor, TensorSpec, on_host

RUNS = 32
"""Groups that the products of a graph are measured in: neighbours, and so alike."""

_SWITCHES = "samkit_switches"


def measure_effects(
    path: Path, graph: GraphSpec, products: Sequence[str], inputs: Mapping[str, Tensor], folder: Path
) -> dict[str, float]:
    """Return how far rounding each of `products` moves the outputs of the float32 file at `path`, relative.

    `inputs` are those of one run, `products` nodes whose results float16 holds; what is made is written to `folder`.
    """
    if not products:
        return {}
    switched = folder / f"{path.stem}.switched.onnx"
    save_beside(_with_switches(onnx.load(path), products), switched)
    host = {name: on_host(tensor) for name, tensor in inputs.items()}
    rows = max(len(array) for array in host.values())
    vector = TensorSpec(_SWITCHES, "float32", (Axis("batch", 1, 1, rows), Axis.fixed("product", len(products))))
    effects: dict[str, float] = {}
    with OnnxRuntimeRunner(switched, replace(graph, inputs=(*graph.inputs, vector)), optimise=False) as runner:

        def run(which: Sequence[int]) -> dict[str, np.ndarray]:
            switches = np.zeros((rows, len(products)), np.float32)
            switches[:, which] = 1
            return runner.run({**host, _SWITCHES: switches})

        exact = run([])
        for group in np.array_split(np.arange(len(products)), min(RUNS, len(products))):
            moved = run(group.tolist())
            error = max(relative_error(moved[name], exact[name]) for name in exact)
            effects.update({products[number]: error for number in group})
    return effects


def _with_switches(model: onnx.ModelProto, products: Sequence[str]) -> onnx.ModelProto:
    """Return `model` with one more input, (rows, products): 1 rounds a product's result to float16, 0 does not."""
    graph = TypedGraph(model)
    count = len(products)
    numbers = {name: number for number, name in enumerate(products)}
    row = helper.make_tensor("samkit_first", TensorProto.INT64, [], [0])
    nodes = [
        helper.make_node("Gather", [_SWITCHES, "samkit_first"], ["samkit_row"], axis=0),
        helper.make_node("Split", ["samkit_row"], [f"samkit_switch_{n}" for n in range(count)], num_outputs=count),
    ]
    for original in graph.nodes:
        node = copy_node(original)
        nodes.append(node)
        if node.name in numbers:
            name = node.output[0]
            node.output[0] = f"{name}/exact"
            nodes += [
                helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=TensorProto.FLOAT16),
                helper.make_node("Cast", [f"{name}/half"], [f"{name}/rounded"], to=TensorProto.FLOAT),
                helper.make_node("Sub", [f"{name}/rounded", f"{name}/exact"], [f"{name}/error"]),
                helper.make_node("Mul", [f"{name}/error", f"samkit_switch_{numbers[node.name]}"], [f"{name}/on"]),
                helper.make_node("Add", [f"{name}/exact", f"{name}/on"], [name]),
            ]
    out = rebuilt(model, nodes, [*graph.weights.values(), row])
    out.graph.input.append(helper.make_tensor_value_info(_SWITCHES, TensorProto.FLOAT, ["rows", count]))
    return out
