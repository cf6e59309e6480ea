"""Guards the float16 conversion: products in float16, borders and sensitive parts in float32, sorted and typed."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from samkit.export.precision import convert_to_fp16


def build(nodes, weights, shape=("batch", 4)):
    """Return a model from `x` (shape) to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, name=f"{kind}_{outputs[0]}", **attributes)


def types_of(model):
    """Return each node's name with the dtype it reads first."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    known = {
        v.name: v.type.tensor_type.elem_type
        for v in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    known |= {t.name: t.data_type for t in inferred.graph.initializer}
    return {n.name: known[n.input[0]] for n in model.graph.node}


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4))
X = RNG.standard_normal((3, 4)).astype(np.float32)


def test_products_run_in_float16_and_norms_do_not():
    model = build(
        [
            node("MatMul", ["x", "w"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("LayerNormalization", ["b", "one"], ["c"]),
            node("MatMul", ["c", "w"], ["d"]),
            node("Softmax", ["d"], ["y"]),
        ],
        {"w": W, "one": np.ones(4)},
    )
    half, notes = convert_to_fp16(model)
    types = types_of(half)
    assert types["MatMul_a"] == types["Relu_b"] == types["MatMul_d"] == TensorProto.FLOAT16
    assert types["LayerNormalization_c"] == types["Softmax_y"] == TensorProto.FLOAT
    assert notes == {"products": 2, "products_in_float16": 2, "kept_in_float32": {}}
    np.testing.assert_allclose(run(half, X), run(model, X), atol=2e-3)


def test_borders_stay_float32():
    half, _ = convert_to_fp16(build([node("MatMul", ["x", "w"], ["y"])], {"w": W}))
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


def test_weight_beyond_float16_keeps_its_product_and_says_so():
    big = W.copy()
    big[0, 0] = 1e5
    half, notes = convert_to_fp16(build([node("MatMul", ["x", "w"], ["y"])], {"w": big}))
    assert notes["products_in_float16"] == 0
    assert "reaches 1e+05" in notes["kept_in_float32"]["MatMul_y"]
    np.testing.assert_array_equal(run(half, X), X @ big.astype(np.float32))


def test_positional_encoding_keeps_float32():
    nodes = [
        node("MatMul", ["x", "w"], ["angle"]),
        node("Sin", ["angle"], ["s"]),
        node("MatMul", ["s", "w"], ["y"]),
    ]
    half, notes = convert_to_fp16(build(nodes, {"w": W}))
    assert notes["kept_in_float32"] == {"MatMul_angle": "positional encoding"}
    x = 500 * X  # float16 would lose the half voxel at such angles
    np.testing.assert_allclose(run(half, x), np.sin(x @ W.astype(np.float32)) @ W, atol=5e-3)


def test_weight_used_in_both_precisions_is_kept_in_both():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "w"], ["y"])]
    half, _ = convert_to_fp16(build(nodes, {"w": W}, shape=(4, 4)))
    x = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(run(half, x), 2 * W, atol=4e-3)


@pytest.mark.xdist_group("export")
@pytest.mark.parametrize("graph", ["image_encoder", "mask_decoder"])
def test_real_graphs_are_mostly_float16(tiny_export, graph):
    model = onnx.load(tiny_export / f"{graph}.fp16.onnx")
    types = types_of(model)
    products = [n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")]
    share = np.mean([types[name] == TensorProto.FLOAT16 for name in products])
    assert share > 0.9
    for kind in ("LayerNormalization", "Softmax", "Exp", "Log", "Sin", "Cos"):
        assert all(types[n.name] == TensorProto.FLOAT for n in model.graph.node if n.op_type == kind)
