"""A graph with the dtype of each tensor, who makes it and who reads it: for precision, ranges and emulation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum"})
"""Operators that multiply and sum: nearly all of a network's time."""
MOVERS = frozenset(
    {
        "Reshape",
        "Transpose",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "Gather",
        "Split",
        "Expand",
        "Flatten",
        "Identity",
        "Tile",
    }
)
"""Operators that change no number: they have the precision of what they read."""

_SMALL = 1 << 12
"""Bytes of a weight up to which its values help to infer shapes: those of shapes and axes."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)

FLOAT16_MAX = float(np.finfo(np.float16).max)
FLOAT16_NORMAL = float(np.finfo(np.float16).smallest_normal)


class TypedGraph:
    """A read-only look at a model. Nodes are those of the model itself, in its topological order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Infer every dtype of `model`, whose nodes all need names of their own."""
        self.model = model
        self.nodes: Sequence[onnx.NodeProto] = list(model.graph.node)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._largest: dict[str, float] = {}

    @cached_property
    def dtypes(self) -> dict[str, int]:
        """Return the ONNX dtype of every tensor whose dtype is known."""
        return infer_dtypes(self.model)

    @cached_property
    def makers(self) -> dict[str, onnx.NodeProto]:
        """Return the node that makes each tensor."""
        return {name: node for node in self.nodes for name in node.output}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        """Return the nodes that read each tensor."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def is_float(self, name: str) -> bool:
        """Return whether a tensor holds float32 or float16."""
        return self.dtypes.get(name) in _FLOATS

    def activations(self, names: Iterable[str]) -> list[str]:
        """Return those of `names` that hold floats and are no weights."""
        return [name for name in names if self.is_float(name) and name not in self.weights]

    def largest(self, name: str) -> float:
        """Return the largest magnitude of a weight."""
        if name not in self._largest:
            self._largest[name] = float(np.abs(numpy_helper.to_array(self.weights[name])).max(initial=0.0))
        return self._largest[name]

    def data(self, node: onnx.NodeProto) -> list[str]:
        """Return those inputs of a node that have the precision it runs in: a Resize's scales are always float32."""
        return list(node.input[:1] if node.op_type == "Resize" else node.input)

    def weight(self, name: str) -> np.ndarray:
        """Return the values of a weight."""
        return numpy_helper.to_array(self.weights[name])

    def behind(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that make what `node` reads."""
        return (self.makers[name] for name in node.input if name in self.makers)

    def beyond(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that read what `node` makes."""
        return (reader for name in node.output for reader in self.readers.get(name, ()))


def infer_dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Return the ONNX dtype of every tensor of `model` whose dtype is known; raises onnx's InferenceError."""
    graph = model.graph
    # Inference copies the model through a protobuf, which ends at 2 GiB: of large weights it needs no values.
    small = [tensor for tensor in graph.initializer if len(tensor.raw_data) <= _SMALL and not tensor.external_data]
    kept = {tensor.name for tensor in small}
    stated = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in kept
    ]
    skeleton = helper.make_graph(graph.node, graph.name, [*graph.input, *stated], graph.output, small)
    light = helper.make_model(skeleton, opset_imports=model.opset_import, ir_version=model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True).graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    return known | {tensor.name: tensor.data_type for tensor in graph.initializer}


def copy_node(original: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy whose inputs and outputs may be renamed."""
    node = onnx.NodeProto()
    node.CopyFrom(original)
    return node


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node of `model` a name of its own, where the exporter gave none or one twice."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)


def save_beside(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path` with its weights in a file beside it, in place of what was there."""
    data = path.with_name(f"{path.name}.data")
    for old in (path, data):  # onnx would append to weights that are there
        old.unlink(missing_ok=True)
    onnx.save_model(model, path, save_as_external_data=True, location=data.name)


def rebuilt(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], weights: Iterable[TensorProto]) -> onnx.ModelProto:
    """Return a model with the inputs and outputs of `model`, other `nodes`, and those of `weights` that they read."""
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in weights if tensor.name in used]
    graph = helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output, kept)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
