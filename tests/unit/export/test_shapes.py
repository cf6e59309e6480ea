"""Crops and reshapes are written so that no layer computes their sizes, and give the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from samkit.export.shapes import write_out_shapes

FIXED, ROWS = ["batch", 6, 5, 7], ["batch", "points + 2", 8]
CONSTANTS = {
    "zero": [0], "one": [1], "two": [2], "four": [4], "minus": [-1], "last": [2**63 - 1], "axis_3": [3], "seven": [7],
    "tails": [-3, -2], "ends": [5, 6], "both": [1, 3],
}  # fmt: skip


def model(nodes, x, y, between):
    """Return the model of `nodes`, (operator, inputs, output), of which `between` says the shapes."""
    weights = [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in CONSTANTS.items()]
    graph = helper.make_graph(
        [helper.make_node(op, read.split(), [made], f"node_{made}") for op, read, made in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        weights,
        value_info=[helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in between.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


CASES = {
    "a crop": ([("Slice", "x one four axis_3", "y")], FIXED, ["batch", 6, 5, 3], {}, ["Gather"]),
    "to the end, axis from behind": (
        [("Slice", "x one last minus one", "y")], FIXED, ["batch", 6, 5, 6], {}, ["Gather"]
    ),
    "from behind": ([("Slice", "x minus last one one", "y")], FIXED, ["batch", 1, 5, 7], {}, ["Gather"]),
    "along two axes": ([("Slice", "x tails ends both", "y")], FIXED, ["batch", 2, 5, 1], {}, ["Slice"]),
    "of a crop": (
        [("Slice", "x one four one", "a"), ("Slice", "a two seven axis_3", "y")],
        FIXED, ["batch", 3, 5, 5], {"a": ["batch", 3, 5, 7]}, ["Gather", "Gather"],
    ),
    "some of a dynamic axis": ([("Slice", "x zero two one", "y")], ROWS, ["batch", 2, 8], {}, ["Gather"]),
    "all that a dynamic axis has": ([("Slice", "x zero last one", "y")], ROWS, ROWS, {}, ["Slice"]),
    "every second": ([("Slice", "x zero last axis_3 two", "y")], FIXED, ["batch", 6, 5, 4], {}, ["Slice"]),
    "rows to one axis": (
        [("Shape", "x", "s"), ("Concat", "s", "t"), ("Reshape", "x minus", "a"), ("Shape", "x", "u"),
         ("Reshape", "a u", "y")],
        ROWS, ["batch", "points + 2", 8], {"a": ["all"]}, ["Reshape", "Shape", "Reshape"],
    ),
    "one size is left": (
        [("Shape", "x", "s"), ("Reshape", "x minus", "a"), ("Gather", "s zero", "n"),
         ("Concat", "n minus", "t"), ("Reshape", "a t", "y")],
        FIXED, ["batch", 210], {"a": ["all"]}, ["Reshape", "Reshape"],
    ),
    "what stays is 0": (
        [("Shape", "x", "s"), ("Gather", "s zero", "n"), ("Concat", "n minus", "t"), ("Reshape", "x t", "y")],
        ROWS, ["batch", "8*points + 16"], {}, ["Reshape"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_written_out(name):
    nodes, x, y, between, wanted = CASES[name]
    before, after = (model(nodes, x, y, between) for _ in range(2))
    for one in (before, after):  # Concat is the only one of these with an attribute that it needs
        for node in one.graph.node:
            if node.op_type == "Concat":
                node.attribute.append(helper.make_attribute("axis", 0))
    write_out_shapes(after)

    assert [node.op_type for node in after.graph.node] == wanted
    onnx.checker.check_model(after, full_check=True)
    read = {name for node in after.graph.node for name in node.input}
    assert {weight.name for weight in after.graph.initializer} <= read
    for batch, rows in ((1, 2), (3, 4)):
        sizes = {"batch": batch, "points + 2": rows}
        data = np.random.default_rng(0).random([sizes.get(size, size) for size in x], np.float32)
        expected, got = (
            onnxruntime.InferenceSession(one.SerializeToString()).run(None, {"x": data})[0] for one in (before, after)
        )
        np.testing.assert_array_equal(got, expected)


def test_reshape_of_two_unknown_sizes_stays():
    nodes = [("Shape", "x", "s"), ("Reshape", "x s", "y")]
    kept = model(nodes, ["a", "b", 4], ["n", "m", 4], {})
    write_out_shapes(kept)
    assert [node.op_type for node in kept.graph.node] == ["Shape", "Reshape"]
