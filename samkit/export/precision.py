"""Turn a float32 graph into a strongly typed float16 one with float32 borders.

TensorRT 11 has no precision flag, so `--fp16` must change the graph. Matrix products and convolutions, and what
only moves or gates their results, run in float16; everything else (norms, softmax, log-sum-exp, residual sums, the
positional encoding) stays in float32, with Casts between. A weight that float16 can't hold keeps its node in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_FOLLOWERS = frozenset(
    {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Gather", "Split", "Expand", "Flatten", "Gelu", "Relu"}
)
"""Operators that run in float16 when what they read already is."""

FLOAT16_MAX = float(np.finfo(np.float16).max)


def convert_to_fp16(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a float16 copy of `model` and notes: how many products run in float16, and which stay, with the reason.

    The caller passes the result to `graphs.save_graph`, which checks it, as every graph.
    """
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    floats = _float_tensors(graph)
    kept = _kept_products(graph.node, weights)
    half = _half_nodes(graph.node, weights, floats, set(kept))
    converted = _rebuild(model, half, weights, floats)
    products = [node for node in graph.node if node.op_type in _PRODUCTS]
    notes = {
        "products": len(products),
        "products_in_float16": sum(node.name in half for node in products),
        "kept_in_float32": kept,
    }
    return converted, notes


def _float_tensors(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all float32 tensors."""
    names = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            names.add(value.name)
    return names


def _kept_products(nodes: Iterable[onnx.NodeProto], weights: dict[str, TensorProto]) -> dict[str, str]:
    """Return the products that must stay in float32, with the reason."""
    nodes = list(nodes)
    kept = {}
    # Coordinates up to the patch size times 2 pi go into sine and cosine: float16 loses the half-voxel shift.
    feeding = {name for node in nodes if node.op_type in ("Sin", "Cos") for name in node.input}
    for node in reversed(nodes):
        if feeding & set(node.output):
            feeding |= set(node.input)
            if node.op_type in _PRODUCTS:
                kept[node.name] = "positional encoding"
    for node in nodes:
        for name in node.input:
            if node.op_type in _PRODUCTS and name in weights:
                largest = float(np.abs(numpy_helper.to_array(weights[name])).max(initial=0.0))
                if not largest <= FLOAT16_MAX:
                    kept[node.name] = f"weight {name} reaches {largest:.3g}, float16 holds {FLOAT16_MAX:.0f}"
    return kept


def _half_nodes(
    nodes: Iterable[onnx.NodeProto], weights: dict[str, TensorProto], floats: set[str], kept: set[str]
) -> set[str]:
    """Return the names of the nodes that run in float16."""
    half: set[str] = set()
    half_tensors: set[str] = set()
    for node in nodes:
        reads = [name for name in node.input if name in floats and name not in weights]
        follows = node.op_type in _FOLLOWERS and bool(reads) and half_tensors.issuperset(reads)
        if (node.op_type in _PRODUCTS and node.name not in kept) or follows:
            half.add(node.name)
            half_tensors.update(name for name in node.output if name in floats)
    return half


def _rebuild(
    model: onnx.ModelProto, half: set[str], weights: dict[str, TensorProto], floats: set[str]
) -> onnx.ModelProto:
    """Return the model with float16 nodes and the Casts between; nodes stay topologically sorted."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    half_tensors: set[str] = set()
    half_weights: dict[str, TensorProto] = {}
    cast: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []

    def as_type(name: str, dtype: int) -> str:
        """Return the name of tensor `name` in `dtype`, with one Cast for all who need it."""
        is_half = name in half_tensors
        if (dtype == TensorProto.FLOAT16) == is_half:
            return name
        if name in weights and dtype == TensorProto.FLOAT16:
            if name not in half_weights:
                value = numpy_helper.to_array(weights[name]).astype(np.float16)
                half_weights[name] = numpy_helper.from_array(value, f"{name}_float16")
            return half_weights[name].name
        if (name, dtype) not in cast:
            suffix = "float16" if dtype == TensorProto.FLOAT16 else "float32"
            cast[name, dtype] = f"{name}_{suffix}"
            nodes.append(helper.make_node("Cast", [name], [f"{name}_{suffix}"], f"{name}_to_{suffix}", to=dtype))
        return cast[name, dtype]

    for original in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        dtype = TensorProto.FLOAT16 if node.name in half else TensorProto.FLOAT
        for index, name in enumerate(node.input):
            if name in floats:
                node.input[index] = as_type(name, dtype)
        nodes.append(node)
        if node.name in half:
            for index, name in enumerate(node.output):
                if name in outputs:  # borders stay float32
                    node.output[index] = f"{name}_float16"
                    nodes.append(helper.make_node("Cast", [f"{name}_float16"], [name], f"{name}_to_float32", to=1))
                elif name in floats:
                    half_tensors.add(name)
    used = {name for node in nodes for name in node.input}
    kept_weights = [tensor for tensor in graph.initializer if tensor.name in used]
    rebuilt = helper.make_graph(nodes, graph.name, graph.input, graph.output, [*kept_weights, *half_weights.values()])
    return helper.make_model(rebuilt, opset_imports=model.opset_import, ir_version=model.ir_version)
