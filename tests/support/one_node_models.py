"""A minimal model of each operator that TensorRT's chart has, of one node that is called "odd": facts, and how to read
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    "FP32": TensorProto.FLOAT,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "UINT8": TensorProto.UINT8,
    "INT4": TensorProto.INT4,
    "FP8": TensorProto.FLOAT8E4M3FN,
}
"""As the chart calls them."""
IMAGE = (2, 4, 8, 8)


class Given(NamedTuple):
    """An input of the graph, of the type that is asked about, or of its own."""

    shape: tuple[int, ...]
    type: str = ""


class Weight(NamedTuple):
    """A constant of ones, of the type that is asked about."""

    shape: tuple[int, ...]


class Recipe(NamedTuple):
    """What makes a node valid."""

    inputs: tuple[Any, ...]
    """`Given`, `Weight`, None for an input that is left out, or an array."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Attributes; a `Weight` becomes a tensor, "type" the type that is asked about."""
    opset: int = 20
    outputs: int = 1


def _whole(*values):
    return np.array(values, np.int64)


_ON_AN_IMAGE = (
    "Abs Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Flatten Floor Gelu "
    "GlobalAveragePool GlobalLpPool GlobalMaxPool HardSigmoid HardSwish Hardmax Identity IsInf IsNaN LeakyRelu Log "
    "LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg NonZero Not RandomNormalLike RandomUniformLike "
    "Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Relu Round Selu Shape Shrink Sigmoid Sign Sin Sinh Size Softmax Softplus Softsign Sqrt Tan Tanh "
    "ThresholdedRelu Transpose Trilu"
)
_ON_TWO = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Or Pow Sub Sum Xor"
_TABLE, _ROW = Given((2, 4)), Given((1, 4))
_POOL = Recipe((Given(IMAGE),), {"kernel_shape": [2, 2]})
_ROW_INTO_TABLE = (_TABLE, np.zeros((1, 4), np.int64), _ROW)

RECIPES = {
    **{name: Recipe((Given(IMAGE),)) for name in _ON_AN_IMAGE.split()},
    **{name: Recipe((Given(IMAGE), Given(IMAGE))) for name in _ON_TWO.split()},
    "AveragePool": _POOL,
    "BatchNormalization": Recipe((Given(IMAGE), *[Weight((4,))] * 4)),
    "Cast": Recipe((_TABLE,), {"to": TensorProto.FLOAT}),
    "CastLike": Recipe((_TABLE, Given((1,), "FP32"))),
    "Concat": Recipe((_TABLE, _TABLE), {"axis": 1}),
    "Constant": Recipe((), {"value": Weight((2, 3))}),
    "ConstantOfShape": Recipe((_whole(2, 3),), {"value": Weight((1,))}),
    "Conv": Recipe((Given(IMAGE), Weight((4, 4, 3, 3)))),
    "ConvTranspose": Recipe((Given(IMAGE), Weight((4, 4, 2, 2))), {"strides": [2, 2]}),
    "CumSum": Recipe((Given(IMAGE), np.array(1))),
    "DeformConv": Recipe((Given(IMAGE), Weight((4, 4, 3, 3)), Given((2, 18, 6, 6))), {"kernel_shape": [3, 3]}),
    "DepthToSpace": Recipe((Given(IMAGE),), {"blocksize": 2}),
    "DequantizeLinear": Recipe((Weight((2, 4)), np.float32(0.1))),
    "Einsum": Recipe((Given((2, 4, 8)), Given((2, 8, 4))), {"equation": "bij,bjk->bik"}),
    "Expand": Recipe((_ROW, _whole(3, 4))),
    "EyeLike": Recipe((Given((4, 4)),)),
    "GRU": Recipe((Given((3, 2, 4)), Weight((1, 15, 4)), Weight((1, 15, 5))), {"hidden_size": 5}, outputs=2),
    "Gather": Recipe((_TABLE, _whole(0, 1)), {"axis": 1}),
    "GatherElements": Recipe((_TABLE, np.zeros((2, 4), np.int64)), {"axis": 1}),
    "GatherND": Recipe((_TABLE, np.zeros((2, 1), np.int64))),
    "Gemm": Recipe((_TABLE, Weight((4, 8)), Weight((8,)))),
    "GridSample": Recipe((Given(IMAGE), Given((2, 5, 5, 2)))),
    "GroupNormalization": Recipe((Given(IMAGE), Weight((2,)), Weight((2,))), {"num_groups": 2}),
    "ImageScaler": Recipe((Given((2, 3, 8, 8)),), {"scale": 1.0, "bias": [0.0, 0.0, 0.0]}),
    "InstanceNormalization": Recipe((Given(IMAGE), Weight((4,)), Weight((4,)))),
    "LRN": Recipe((Given(IMAGE),), {"size": 3}),
    "LSTM": Recipe((Given((3, 2, 4)), Weight((1, 20, 4)), Weight((1, 20, 5))), {"hidden_size": 5}, outputs=2),
    "LayerNormalization": Recipe((Given(IMAGE), Weight((8,)), Weight((8,)))),
    "LpPool": _POOL,
    "MatMul": Recipe((Given((2, 4, 8)), Given((2, 8, 4)))),
    "MaxPool": _POOL,
    "Mod": Recipe((_TABLE, _TABLE), {"fmod": 1}),
    "NonMaxSuppression": Recipe(
        (Given((1, 6, 4)), Given((1, 2, 6)), np.array(3), np.float32(0.5), np.float32(0.1)),
    ),
    "OneHot": Recipe((Given((2,), "INT64"), _whole(4), Weight((2,)))),
    "PRelu": Recipe((Given(IMAGE), Weight((4, 1, 1)))),
    "Pad": Recipe((Given(IMAGE), _whole(0, 0, 1, 1, 0, 0, 1, 1))),
    "ParametricSoftplus": Recipe((_TABLE,), {"alpha": 1.0, "beta": 1.0}),
    "QuantizeLinear": Recipe((_TABLE, np.float32(0.1), np.int8(0))),
    "RNN": Recipe((Given((3, 2, 4)), Weight((1, 5, 4)), Weight((1, 5, 5))), {"hidden_size": 5}, outputs=2),
    "RandomNormal": Recipe((), {"shape": [2, 3], "dtype": "type"}),
    "RandomUniform": Recipe((), {"shape": [2, 3], "dtype": "type"}),
    "Range": Recipe((Weight(()), Weight(()), Weight(()))),
    "Reshape": Recipe((_TABLE, _whole(4, 2))),
    "Resize": Recipe((Given(IMAGE), None, None, _whole(2, 4, 16, 16)), {"mode": "linear"}),
    "ReverseSequence": Recipe((Given((4, 2, 3)), _whole(2, 3)), {"batch_axis": 1, "time_axis": 0}),
    "RoiAlign": Recipe((Given(IMAGE), Given((3, 4)), np.zeros(3, np.int64)), {"output_height": 2, "output_width": 2}),
    "ScaledTanh": Recipe((_TABLE,), {"alpha": 1.0, "beta": 1.0}),
    "Scatter": Recipe(_ROW_INTO_TABLE, {"axis": 0}, opset=9),
    "ScatterElements": Recipe(_ROW_INTO_TABLE, {"axis": 0}),
    "ScatterND": Recipe((_TABLE, np.zeros((1, 1), np.int64), _ROW)),
    "Slice": Recipe((_TABLE, _whole(0), _whole(2), _whole(1), _whole(1))),
    "SpaceToDepth": Recipe((Given(IMAGE),), {"blocksize": 2}),
    "Split": Recipe((_TABLE, _whole(2, 2)), {"axis": 1}, outputs=2),
    "Squeeze": Recipe((Given((2, 1, 4)), _whole(1))),
    "Tile": Recipe((_TABLE, _whole(1, 2))),
    "TopK": Recipe((_TABLE, _whole(2)), {"axis": 1}, outputs=2),
    "Unsqueeze": Recipe((_TABLE, _whole(0))),
    "Upsample": Recipe((Given(IMAGE), np.array([1, 1, 2, 2], np.float32)), {"mode": "nearest"}, opset=9),
    "Where": Recipe((Given((2, 4), "BOOL"), _TABLE, _TABLE)),
}
"""Operator to what makes a node of it valid; those that hold graphs are in `_graph_holder`."""


def one_node_model(operator: str, kind: str) -> onnx.ModelProto:
    """Return the model of one operator on data of a type."""
    if operator in GRAPH_HOLDERS:
        return _graph_holder(operator, TYPES[kind])
    recipe = RECIPES[operator]
    reads, inputs, constants = [], [], []
    for index, what in enumerate(recipe.inputs):
        name = "" if what is None else f"in{index}"
        reads.append(name)
        if isinstance(what, Given):
            inputs.append(helper.make_tensor_value_info(name, TYPES[what.type or kind], what.shape))
        elif isinstance(what, Weight):
            constants.append(_ones(name, TYPES[kind], what.shape))
        elif what is not None:
            constants.append(numpy_helper.from_array(np.asarray(what), name))
    options = {
        name: _ones("", TYPES[kind], value.shape) if isinstance(value, Weight) else value
        for name, value in recipe.options.items()
    }
    options |= {name: TYPES[kind] for name, value in options.items() if isinstance(value, str) and value == "type"}
    node = helper.make_node(operator, reads, [f"y{index}" for index in range(recipe.outputs)], name="odd", **options)
    return _typed(_model([node], inputs, constants, recipe.opset), TYPES[kind])


def _model(nodes, inputs, constants, opset):
    outputs = [onnx.ValueInfoProto(name=name) for name in nodes[-1].output]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _typed(model, kind):
    """Return a model whose outputs have types: inferred, or of the data where ONNX does not know the operator."""
    model = onnx.shape_inference.infer_shapes(model)
    for output in model.graph.output:
        if output.type.tensor_type.elem_type == TensorProto.UNDEFINED:
            output.type.tensor_type.elem_type = kind
    return model


def _ones(name, kind, shape):
    return helper.make_tensor(name, kind, shape, [1] * int(np.prod(shape)))


# --- Operators that hold graphs ---

GRAPH_HOLDERS = ("If", "Loop", "Scan")


def _graph_holder(operator: str, kind: int) -> onnx.ModelProto:
    """Return a model whose one node holds a graph that passes its data on."""
    info = helper.make_tensor_value_info
    x, b = info("x", kind, (2, 4)), info("b", kind, None)
    if operator == "If":
        same = helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "same", [], [b])
        node = helper.make_node("If", ["flag"], ["y"], name="odd", then_branch=same, else_branch=same)
        return _typed(_model([node], [x, info("flag", TensorProto.BOOL, [])], [], 20), kind)
    if operator == "Scan":
        body = helper.make_graph(
            [helper.make_node("Add", ["sum", "a"], ["more"]), helper.make_node("Identity", ["more"], ["b"])],
            "body",
            [info("sum", kind, (4,)), info("a", kind, (4,))],
            [info("more", kind, (4,)), info("b", kind, (4,))],
        )
        node = helper.make_node("Scan", ["start", "x"], ["last", "y"], name="odd", body=body, num_scan_inputs=1)
        return _typed(_model([node], [info("start", kind, (4,)), x], [], 20), kind)
    return loop_around("Identity", kind)


def loop_around(operator: str, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a model that runs an operator on its data three times, in a loop."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node(operator, ["a"], ["b"], name="inside")],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("a", kind, (2, 4))],
        [info("on", TensorProto.BOOL, []), info("b", kind, (2, 4))],
    )
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in (("n", 3), ("true", True))]
    node = helper.make_node("Loop", ["n", "true", "x"], ["y"], name="odd", body=body)
    return _typed(_model([node], [info("x", kind, (2, 4))], constants, 20), kind)
