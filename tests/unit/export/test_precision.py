"""Guards which nodes stay in float32 and why, and the conversion: typed, sorted, borders float32, nothing clamped."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from samkit.errors import ExportError
from samkit.export.precision import (
    LEVELS,
    MARGIN,
    choose_kept,
    convert_to_fp16,
    count_products,
    notes_of,
    read_keep_list,
)
from samkit.export.ranges import Ranges
from samkit.export.typed_graph import FLOAT16_MAX, FLOAT16_NORMAL, TypedGraph

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4))
X = RNG.standard_normal((3, 4)).astype(np.float32)
NOTHING_SEEN = Ranges()


def reasons(graph, ranges=NOTHING_SEEN, level=LEVELS[0], asked_by=""):
    return {entry.node: entry.reason for entry in choose_kept(graph, ranges, level, asked_by)}


def converted(graph, ranges=NOTHING_SEEN):
    return convert_to_fp16(graph, reasons(graph, ranges))


def test_norms_stay_and_the_rest_runs_in_float16(small):
    graph = small.typed(
        [
            small.node("MatMul", ["x", "w"], ["a"]),
            small.node("Gelu", ["a"], ["b"]),
            small.node("LayerNormalization", ["b", "one"], ["c"]),
            small.node("MatMul", ["c", "w"], ["d"]),
            small.node("Softmax", ["d"], ["e"]),
            small.node("MatMul", ["e", "w"], ["y"]),
        ],
        {"w": W, "one": np.ones(4)},
    )
    assert reasons(graph) == {"LayerNormalization_c": "norm, mean or sum"}
    half = converted(graph)
    types = small.types_of(half)
    for name in ("MatMul_a", "Gelu_b", "MatMul_d", "Softmax_e", "MatMul_y"):
        assert types[name] == TensorProto.FLOAT16
    assert types["LayerNormalization_c"] == TensorProto.FLOAT
    onnx.checker.check_model(half, full_check=True)
    np.testing.assert_allclose(small.run(half, X), small.run(graph.model, X), atol=5e-3)


def test_borders_stay_float32(small):
    half = converted(small.typed([small.node("MatMul", ["x", "w"], ["y"])], {"w": W}))
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


def test_output_that_is_read_on_is_cast_once_and_for_the_border_alone(small):
    model = small.build([small.node("MatMul", ["x", "w"], ["y"]), small.node("MatMul", ["y", "w"], ["z"])], {"w": W})
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, ("rows", "columns")))
    half = converted(TypedGraph(model))
    onnx.checker.check_model(half, full_check=True)
    assert [node.op_type for node in half.graph.node] == ["Cast", "MatMul", "Cast", "MatMul", "Cast"]


def test_positional_encoding_keeps_float32(small):
    graph = small.typed(
        [
            small.node("MatMul", ["x", "w"], ["angle"]),
            small.node("Sin", ["angle"], ["s"]),
            small.node("MatMul", ["s", "w"], ["y"]),
        ],
        {"w": W},
    )
    assert reasons(graph) == {"MatMul_angle": "positional encoding", "Sin_s": "positional encoding"}
    x = 500 * X  # float16 would lose the half voxel at such angles
    expected = np.sin(x @ W.astype(np.float32)) @ W
    np.testing.assert_allclose(small.run(converted(graph), x), expected, atol=5e-3)


def test_log_sum_exp_keeps_float32_between_two_products(small):
    graph = small.typed(
        [
            small.node("MatMul", ["x", "w"], ["a"]),
            small.node("ReduceMax", ["a", "axes"], ["top"]),
            small.node("Sub", ["a", "top"], ["below"]),
            small.node("Exp", ["below"], ["e"]),
            small.node("ReduceSum", ["e", "axes"], ["sum"]),
            small.node("Log", ["sum"], ["log"]),
            small.node("Add", ["log", "top"], ["lse"]),
            small.node("Concat", ["a", "lse"], ["both"], axis=1),
            small.node("MatMul", ["both", "v"], ["y"]),
        ],
        {"w": W, "v": RNG.standard_normal((5, 4)), "axes": [1]},
    )
    kept = reasons(graph)
    assert set(kept) == {"ReduceMax_top", "Sub_below", "Exp_e", "ReduceSum_sum", "Log_log", "Add_lse"}
    np.testing.assert_allclose(small.run(converted(graph), X), small.run(graph.model, X), rtol=5e-3, atol=2e-2)


def test_residual_that_a_product_reads_on_is_no_tail(small):
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("Add", ["a", "x"], ["b"]),
        small.node("MatMul", ["b", "w"], ["c"]),
        small.node("Add", ["c", "b"], ["y"]),
    ]
    assert set(reasons(small.typed(nodes, {"w": W}))) == {"Add_y"}


def test_what_follows_the_last_product_keeps_float32(small):
    """Pixel coordinates of boxes are there: float16 counts in halves beyond 512."""
    graph = small.typed(
        [
            small.node("MatMul", ["x", "w"], ["a"]),
            small.node("Sigmoid", ["a"], ["s"]),
            small.node("Mul", ["s", "stride"], ["y"]),
        ],
        {"w": W, "stride": np.array(1280.0)},
    )
    assert set(reasons(graph)) == {"Sigmoid_s", "Mul_y"}


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        ({"tensors": {"x": FLOAT16_MAX / MARGIN * 1.01}}, "input x leaves float16"),
        ({"tensors": {"a": FLOAT16_MAX / MARGIN * 1.01}}, "output a leaves float16"),
        ({"tensors": {"x": FLOAT16_NORMAL * MARGIN * 0.99}}, "input x is so small"),
        ({"sums": {"MatMul_a": FLOAT16_MAX / MARGIN * 1.01}}, "inner sums leave float16"),
        ({"tensors": {"a": FLOAT16_NORMAL}}, "output a is so small"),
        ({"tensors": {"a": float("nan")}}, "output a leaves float16"),
        ({"tensors": {"a": float("inf")}}, "output a leaves float16"),
    ],
)
def test_range_forces_a_product_into_float32(seen, word, small):
    nodes = [small.node("MatMul", ["x", "w"], ["a"]), small.node("MatMul", ["a", "w"], ["y"])]
    (entry, *_) = choose_kept(small.typed(nodes, {"w": W}), Ranges(**seen))
    assert entry.node == "MatMul_a"
    assert word in entry.reason
    assert entry.range is not None


def test_numbers_within_the_margin_stay_in_float16(small):
    nodes = [small.node("MatMul", ["x", "w"], ["y"])]
    assert choose_kept(small.typed(nodes, {"w": W}), Ranges({"x": FLOAT16_MAX / MARGIN * 0.99, "y": 0.0})) == []


@pytest.mark.parametrize(("value", "word"), [(1e5, "beyond float16"), (1e-6, "so small that float16 loses digits")])
def test_weight_that_float16_does_not_hold_keeps_its_product(value, word, small):
    graph = small.typed([small.node("MatMul", ["x", "w"], ["y"])], {"w": np.full((4, 4), value)})
    (entry,) = choose_kept(graph, NOTHING_SEEN)
    assert word in entry.reason
    assert entry.range == pytest.approx(value, rel=1e-3)
    half = convert_to_fp16(graph, [entry.node])
    np.testing.assert_array_equal(small.run(half, X), small.run(graph.model, X))


def test_weight_beyond_float16_is_never_clamped(small):
    graph = small.typed([small.node("MatMul", ["x", "w"], ["y"])], {"w": np.full((4, 4), 1e5)})
    with pytest.raises(ExportError, match="add MatMul_y to the keep-list"):
        convert_to_fp16(graph, [])


def test_softmax_stays_where_its_logits_are_large(small):
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("Softmax", ["a"], ["s"]),
        small.node("MatMul", ["s", "w"], ["y"]),
    ]
    graph = small.typed(nodes, {"w": W})
    assert reasons(graph, Ranges({"a": 15.0}, {"Softmax_s": 15.0})) == {}
    assert "logits so large" in reasons(graph, Ranges({"a": 17.0}, {"Softmax_s": 17.0}))["Softmax_s"]


def test_levels_keep_more_and_say_what_the_gate_found(small):
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("Add", ["a", "x"], ["b"]),
        small.node("Softmax", ["b"], ["s"]),
        small.node("MatMul", ["s", "w"], ["y"]),
    ]
    graph = small.typed(nodes, {"w": W})
    found = [reasons(graph, NOTHING_SEEN, level, "Dice 0.9") for level in LEVELS]
    assert [set(kept) for kept in found] == [set(), {"Softmax_s"}, {"Softmax_s", "Add_b"}]
    assert found[2]["Add_b"] == "the gate: Dice 0.9"


def test_scales_of_a_resize_stay_float32(small):
    nodes = [
        small.node("MatMul", ["x", "w"], ["a"]),
        small.node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        small.node("MatMul", ["b", "v"], ["y"]),
    ]
    graph = small.typed(nodes, {"w": W, "v": RNG.standard_normal((8, 4)), "scales": [1.0, 2.0]})
    half = converted(graph)
    assert small.types_of(half)["Resize_b"] == TensorProto.FLOAT16
    onnx.checker.check_model(half, full_check=True)
    np.testing.assert_allclose(small.run(half, X), small.run(graph.model, X), atol=2e-2)


def test_weight_used_in_both_precisions_is_kept_in_both(small):
    nodes = [small.node("MatMul", ["x", "w"], ["a"]), small.node("Add", ["a", "w"], ["y"])]
    half = converted(small.typed(nodes, {"w": W}, shape=(4, 4)))
    x = np.eye(4, dtype=np.float32)
    np.testing.assert_allclose(small.run(half, x), 2 * W, atol=4e-3)


def test_notes_count_the_products(small):
    nodes = [small.node("MatMul", ["x", "w"], ["a"]), small.node("MatMul", ["a", "w"], ["y"])]
    graph = small.typed(nodes, {"w": W})
    kept = choose_kept(graph, Ranges({"a": 1e5, "y": 1.0}))
    assert count_products(graph, [entry.node for entry in kept]) == (2, 0)  # the second one reads what is too large
    notes = notes_of(graph, kept, "a level")
    assert (notes["products"], notes["products_in_float16"]) == (2, 0)
    assert notes["kept_in_float32"][0] == {
        "node": "MatMul_a", "op": "MatMul", "reason": "output a leaves float16", "range": 1e5,
    }  # fmt: skip


# --- Keep-lists ---


def test_keep_list_is_read_from_a_manifest_or_its_notes(small):
    graph = small.typed([small.node("MatMul", ["x", "w"], ["y"])], {"w": W})
    notes = {"g.fp16.onnx": notes_of(graph, choose_kept(graph, Ranges({"x": 1e6})), "a level")}
    for data in ({"precision_notes": notes, "plan": {}}, notes):
        (entry,) = read_keep_list(json.loads(json.dumps(data)), {"g": "g.fp16.onnx"})["g"]
        assert (entry.node, entry.range) == ("MatMul_y", 1e6)


@pytest.mark.parametrize("data", [[], {}, {"g.fp16.onnx": {}}, {"g.fp16.onnx": {"kept_in_float32": [{}]}}, None])
def test_other_json_is_no_keep_list(data):
    with pytest.raises(ExportError, match="of a float16 export of this method"):
        read_keep_list(data, {"g": "g.fp16.onnx"})


def test_keep_list_of_another_network_is_refused(small):
    graph = small.typed([small.node("MatMul", ["x", "w"], ["y"])], {"w": W})
    with pytest.raises(ExportError, match="names elsewhere, which is no node of this graph"):
        convert_to_fp16(graph, ["elsewhere"])


@pytest.mark.slow
@pytest.mark.xdist_group("export")
@pytest.mark.parametrize("graph", ["image_encoder", "mask_decoder"])
def test_real_graphs_are_mostly_float16(tiny_export, graph, small):
    model = onnx.load(tiny_export / f"{graph}.fp16.onnx")
    types = small.types_of(model)
    products = [n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")]
    share = np.mean([types[name] == TensorProto.FLOAT16 for name in products])
    assert share > 0.9
    for kind in ("LayerNormalization", "Exp", "Log", "Sin", "Cos"):
        assert all(types[n.name] == TensorProto.FLOAT for n in model.graph.node if n.op_type == kind)
