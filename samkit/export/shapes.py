"""Write crops and reshapes so that TensorRT's parser computes no sizes for them.

An axis that is dynamic makes the parser add layers of whole numbers around it, even where the axis is left alone. What
TensorRT for RTX 1.7 makes of one node on (batch, 6, 4, 4, 7), all layers and those of whole numbers other than
CONSTANT, SHAPE and CAST (`tools.layers` counts them):

    Slice              27, 14     Pad with axes                  1, 0    Gather of constant indices    3, 0
    Expand to a shape  14, 6      Pad without axes               7, 2    Softmax                       4, 0
    Split of two       11, 4      Reshape to a computed shape    6, 2    Reshape to [0, -1, 28]        1, 0

So here a Slice becomes a Gather of a range, and a computed Reshape gets 0 for what stays and -1 for what is left. An
Expand has no such form: networks do without where they can. Nor is a Pad by negative sizes one, which would be a crop
in one layer: ONNX Runtime (1.31) moves a Transpose behind a Pad with axes and loses them. Every number stays what it
was. What the exporter knows of each tensor's shape is enough: names of axes, `batch`, and what is computed of them,
`4*points + 24`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

_Shape = Sequence[int | str | None]
"""Sizes of axes; the name of a dynamic one, None where nothing is known."""


def write_out_shapes(model: onnx.ModelProto) -> None:
    """Rewrite `model` in place as above, and drop what computed the sizes."""
    rewriting = _Rewriting(model)
    nodes = [rewriting.rewritten(node) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unread(model.graph)


class _Rewriting:
    """A graph whose nodes are rewritten, one after the other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self._shapes: dict[str, _Shape] = {
            value.name: [size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in dims]
            for value in (*self._graph.value_info, *self._graph.input, *self._graph.output)
            if (dims := value.type.tensor_type.shape.dim)
        }

    def rewritten(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Return the node that does the work of `node`: itself where it has no better form."""
        before, after = (self._shapes.get(name) for name in (node.input[:1] + node.output[:1]))
        if before is None or after is None:
            return node
        if node.op_type == "Slice":
            return self._gather(node, before, after) or node
        if node.op_type == "Reshape":
            return self._reshape(node, before, after) or node
        return node

    def _gather(self, node: onnx.NodeProto, before: _Shape, after: _Shape) -> onnx.NodeProto | None:
        """Return a Slice along one axis as a Gather; None where its steps or its result's size are not known."""
        given = [self._constant_of(name) or [] for name in node.input[1:]]
        if [len(values) for values in given] not in ([1] * 3, [1] * 4) or given[3:] not in ([], [[1]]):
            return None
        start, end, axis = (values[0] for values in given[:3])
        size = before[axis]
        if isinstance(size, int):
            start, end, _ = slice(start, end).indices(size)
        if start < 0 or after[axis] != end - start:
            return None
        inputs = [node.input[0], self._constant(range(start, end))]
        return helper.make_node("Gather", inputs, node.output, node.name, axis=axis)

    def _reshape(self, node: onnx.NodeProto, before: _Shape, after: _Shape) -> onnx.NodeProto | None:
        """Return a Reshape to a constant; None where it has one, or two sizes would have to be left to it."""
        target = [
            size if isinstance(size, int) else 0 if size and [size] == list(before[axis : axis + 1]) else -1
            for axis, size in enumerate(after)
        ]
        if node.input[1] in self._weights or target.count(-1) > 1:
            return None
        return helper.make_node("Reshape", [node.input[0], self._constant(target)], node.output, node.name)

    def _constant_of(self, name: str) -> list[int] | None:
        """Return the whole numbers of a constant, None of anything else."""
        return numpy_helper.to_array(self._weights[name]).tolist() if name in self._weights else None

    def _constant(self, values: Sequence[int]) -> str:
        """Return the name of a constant vector of whole numbers, one for all who read it."""
        name = "_".join(["whole", *map(str, values)])
        if name not in self._weights:
            self._graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
            self._weights[name] = self._graph.initializer[-1]
        return name


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes and weights that lead to no output."""
    read = {value.name for value in graph.output}
    for index in reversed(range(len(graph.node))):
        if read.isdisjoint(graph.node[index].output):
            del graph.node[index]
        else:
            read.update(graph.node[index].input)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]
