"""Small ONNX graphs: nodes with names, from `x` to `y`."""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from samkit.export.typed_graph import TypedGraph
from samkit.methods.method import GraphSpec
from samkit.precisions import Tolerance
from samkit.tensors import Axis, TensorSpec

TOLERANCE = {"fp32": Tolerance(1e-5, 0.0), "fp16": Tolerance(1e-2, 0.0)}


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, name=f"{kind}_{outputs[0]}", **attributes)


def build(nodes, weights, shape=("batch", 4)):
    """Return a model from `x` (shape) to `y` (rows, columns); weights are floats, unless they are called axes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("rows", "columns"))],
        [
            numpy_helper.from_array(np.asarray(value, np.int64 if name.startswith("axes") else np.float32), name)
            for name, value in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def typed(nodes, weights, shape=("batch", 4)):
    return TypedGraph(build(nodes, weights, shape))


def spec(width=4, out=4):
    """Return the GraphSpec of a model from `x` (batch, width) to `y` (batch, out)."""
    batch = Axis("batch", 1, 1, 8)
    return GraphSpec(
        "g",
        (TensorSpec("x", "float32", (batch, Axis.fixed("c", width))),),
        (TensorSpec("y", "float32", (batch, Axis.fixed("c", out))),),
        TOLERANCE,
    )


def types_of(model):
    """Return each node's name with the dtype it reads first."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True)
    known = {
        v.name: v.type.tensor_type.elem_type
        for v in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    known |= {t.name: t.data_type for t in inferred.graph.initializer}
    return {n.name: known[n.input[0]] for n in model.graph.node}


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.fixture(scope="session")
def small():
    """What the tests build small graphs with, run them with, and look at them with."""
    return SimpleNamespace(node=node, build=build, typed=typed, spec=spec, types_of=types_of, run=run)
