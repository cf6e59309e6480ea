"""Guards that a layer no TensorRT engine could have is found at export, with its node and operator."""

from __future__ import annotations

import json
import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from samkit.engine_libraries import RTX
from samkit.errors import ExportError
from samkit.export.operator_facts import LAST_OPSET, REFUSED_BY_RTX, SUPPORTED, TAKEN
from samkit.export.tensorrt_operators import check_file, check_files, check_model
from samkit.runtime.backends.tensorrt_library import new_parser
from support.one_node_models import one_node_model
from support.rtx import parse


def model_of(nodes, *, constants=None, inputs=None, opset=20, output="y", kind=TensorProto.FLOAT):
    """Return a model from `x` (batch, 4) and other `inputs` to `y`."""
    given = {"x": (TensorProto.FLOAT, ["batch", 4]), **(inputs or {})}
    graph = helper.make_graph(
        [helper.make_node(op, reads, writes, name=f"/here/{op}", **options) for op, reads, writes, options in nodes],
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in given.items()],
        [helper.make_tensor_value_info(output, kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(op, reads, writes, **options):
    return op, [name.replace("_", "") for name in reads.split()], writes.split(), options


INT64 = np.int64
FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("nodes", "more"),
    [
        ([node("Relu", "x", "y")], {}),
        # shapes from shapes, in integers, are what dynamic axes are made of
        (
            [
                node("Shape", "x", "shape"),
                node("Gather", "shape first", "rows"),
                node("Concat", "rows two", "wanted", axis=0),
                node("Reshape", "x wanted", "y"),
            ],
            {"constants": {"first": np.array([0]), "two": np.array([2, 2])}},
        ),
        ([node("Cast", "x", "h", to=TensorProto.FLOAT16), node("Cast", "h", "y", to=FLOAT)], {}),
        (
            [node("Greater", "x zero", "c"), node("Where", "c x zero", "y")],
            {"constants": {"zero": np.float32(0)}},
        ),
        ([node("ReduceSum", "x axes", "y", keepdims=0)], {"constants": {"axes": np.array([1])}}),
    ],
)
def test_what_engines_can_have_passes(nodes, more):
    assert check_model(model_of(nodes, **more), "mask_decoder.onnx") is None


REFUSED = [
    ([node("Unique", "x", "y")], {}, r"\(Unique\) is not in the chart of operators"),
    (
        [node("NonZero", "x", "found"), node("Cast", "found", "y", to=FLOAT)],
        {},
        r"\(NonZero\) has an output whose shape depends on data",
    ),
    (
        [node("Reshape", "x wanted", "y")],
        {"inputs": {"wanted": (TensorProto.INT64, [2])}},
        r"the graph's input 'wanted' is INT64",
    ),
    (
        [node("Cast", "size", "wanted", to=TensorProto.INT64), node("Reshape", "x wanted", "y")],
        {"inputs": {"size": (FLOAT, [2])}},
        r"\(Reshape\) takes its shape from data \('wanted'\)",
    ),
    (
        [node("Expand", "x size", "y")],
        {"inputs": {"size": (FLOAT, [2])}},
        r"\(Expand\) takes its shape from the graph's input 'size'",
    ),
    (
        [
            node("ReduceSum", "x", "sum", keepdims=0),
            node("Cast", "sum", "count", to=TensorProto.INT64),
            node("Range", "zero count one", "steps"),
            node("Cast", "steps", "y", to=FLOAT),
        ],
        {"constants": {"zero": INT64(0), "one": INT64(1)}},
        r"\(Range\) takes its shape from data \('count'\)",
    ),
    (
        [
            node("Shape", "x", "shape"),
            node("Cast", "shape", "floats", to=FLOAT),
            node("Mul", "floats half", "less"),
            node("Cast", "less", "wanted", to=TensorProto.INT64),
            node("Expand", "x wanted", "y"),
        ],
        {"constants": {"half": np.float32(0.5)}},
        r"\(Expand\) takes its shape from 'wanted', which was computed in floating point",
    ),
    (
        [
            node("Cast", "x", "d", to=TensorProto.DOUBLE),
            node("Add", "d d", "twice"),
            node("Cast", "twice", "y", to=FLOAT),
        ],
        {},
        r"\(Cast\) works with 'd' of type DOUBLE",
    ),
    (
        [
            node("Cast", "x", "i", to=TensorProto.INT64),
            node("MatMul", "i weight", "z"),
            node("Cast", "z", "y", to=FLOAT),
        ],
        {"constants": {"weight": np.ones((4, 4), INT64)}},
        r"\(MatMul\) is given INT64 and takes BF16, FP16, FP32",
    ),
    (
        [node("LayerNormalization", "x scale", "y mean")],
        {"constants": {"scale": np.ones(4, np.float32)}},
        r"\(LayerNormalization\) gives more than its first output",
    ),
    (
        [node("Shape", "x", "s"), node("Slice", "s zero one axis", "a"), node("Squeeze", "x a", "y")],
        {"constants": {"zero": np.array([0]), "one": np.array([1]), "axis": np.array([0])}},
        r"\(Squeeze\) has an input 1 \('a'\) that is no constant",
    ),
    (
        [node("Reshape", "x four", "z"), node("Resize", "z _ _ sizes", "y", mode="cubic")],
        {"constants": {"four": np.array([1, 1, -1, 4]), "sizes": np.array([1, 1, 8, 8])}},
        r"\(Resize\) has the mode cubic",
    ),
    (
        [node("Cast", "x", "i", to=TensorProto.INT32), node("Relu", "i", "z"), node("Cast", "z", "y", to=FLOAT)],
        {},
        r"\(Relu\) is given INT32 and takes BF16, FP16, FP32, INT64",
    ),
    (
        [node("DeformConv", "x weight offset", "y")],
        {"constants": {"weight": np.ones((1, 1, 1, 1), np.float32), "offset": np.ones((1, 2, 1, 1), np.float32)}},
        r"\(DeformConv\) is not in TensorRT for RTX",
    ),
    (
        [node("TopK", "x one", "y i", sorted=0)],
        {"constants": {"one": np.array([1])}},
        r"\(TopK\) is not sorted",
    ),
    (
        [node("Identity", "x", "y", domain="com.microsoft")],
        {},
        r"\(Identity\) comes from the domain com\.microsoft",
    ),
]
"""Models that no engine can have: nodes, what else they hold, and what is said."""


@pytest.mark.parametrize(("nodes", "more", "sentence"), REFUSED)
def test_what_no_engine_can_have_is_named(nodes, more, sentence):
    with pytest.raises(ExportError, match=rf"^mask_decoder\.onnx: .*{sentence}.*") as refused:
        check_model(model_of(nodes, **more), "mask_decoder.onnx")
    if "graph's input 'wanted' is" not in sentence:
        assert "node '/here/" in str(refused.value)


def test_graph_inside_a_node_is_refused():
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", FLOAT, None)]
    )
    nodes = [node("Cast", "x", "c", to=TensorProto.BOOL), node("If", "c", "y", then_branch=branch, else_branch=branch)]
    with pytest.raises(ExportError, match=r"\(If\) holds a graph of its own"):
        check_model(model_of(nodes), "g.onnx")


def test_newer_opset_is_said_to_be_unchecked(tmp_path, caplog):
    model = model_of([node("Relu", "x", "y")], opset=LAST_OPSET + 1)
    onnx.save(model, tmp_path / "g.onnx")
    caplog.set_level(logging.INFO, "samkit")
    check_files([tmp_path / "g.onnx"])
    assert caplog.messages == ["g.onnx: not checked for TensorRT, whose operators are known up to opset 20; it has 21"]


def test_weights_of_any_size_and_place_are_typed(tmp_path):
    nodes = [node("MatMul", "x big", "z"), node("MatMul", "z small", "y")]
    constants = {"big": np.ones((4, 3000), np.float64), "small": np.ones((3000, 1), np.float32)}
    with pytest.raises(ExportError, match=r"\(MatMul\) works with 'big' of type DOUBLE"):
        check_model(model_of(nodes, constants=constants), "g.onnx")
    constants["big"] = constants["big"].astype(np.float32)
    onnx.save(
        model_of(nodes, constants=constants), tmp_path / "g.onnx", save_as_external_data=True, location="g.onnx.data"
    )
    assert check_file(tmp_path / "g.onnx") is None


def test_facts_are_those_of_the_chart(shared):
    chart = json.loads((shared / "tensorrt" / "operators-10.1.json").read_text())
    assert {name: set(entry["types"]) for name, entry in chart["supported"].items()} == {
        name: set(types) for name, types in SUPPORTED.items()
    }
    assert not set(SUPPORTED) & set(chart["unsupported"])


# --- What the parser of TensorRT for RTX says, which needs no GPU ---

LATER = {
    "Attention", "BlackmanWindow", "CausalConvWithState", "HammingWindow", "HannWindow", "LinearAttention",
    "RMSNormalization", "RotaryEmbedding", "STFT", "Swish", "TensorScatter",
}  # fmt: skip
"""Operators that RTX 1.7 takes and 10.1 does not."""
STRICTER = [
    (r"input 'wanted' is INT64", "its runner would have to allocate for a shape that is data"),
    (r"shape from data \('count'\)", "no session could allocate before it runs"),
    (r"was computed in floating point", "10.1 computes shapes from integers"),
    (r"'d' of type DOUBLE", "it makes float32 of float64, and nobody asked for it"),
    (r"has the mode cubic", "10.1 has nearest and linear"),
    (r"is not sorted", "10.1 sorts"),
    (r"com\.microsoft", "10.1 looks for a plug-in of that name"),
]
"""What we refuse and RTX takes, by what we say, with the reason for being stricter."""


def test_types_of_every_operator_are_those_that_the_parser_takes(rtx):
    refused = {
        name: {kind for kind in types if not parse(one_node_model(name, kind).SerializeToString()).takes}
        for name, types in SUPPORTED.items()
    }
    assert {name: types for name, types in refused.items() if types} == REFUSED_BY_RTX


@pytest.mark.parametrize(("name", "kind"), [("Relu", "FP16"), ("Relu", "INT32"), ("Loop", "FP32"), ("NonZero", "FP32")])
def test_parser_says_the_same_before_it_parses(rtx, name, kind):
    model = one_node_model(name, kind).SerializeToString()
    takes = kind in TAKEN[name]
    assert parse(model).takes == takes
    _builder, _network, parser = new_parser(RTX)
    assert parser.supports_model_v2(model) == takes
    parts = range(parser.num_subgraphs)
    assert [(parser.get_subgraph_nodes(part), parser.is_subgraph_supported(part)) for part in parts] == (
        [([0], True)] * takes
    )


def test_operators_are_those_that_the_parser_knows(rtx):
    _builder, _network, parser = new_parser(RTX)
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    there = {name for name in names.union(SUPPORTED) if parser.supports_operator(name)}
    assert (there - set(SUPPORTED)) <= LATER  # an older onnx does not know them all
    assert set(SUPPORTED) - there == {"DeformConv"}


def test_where_we_are_stricter_than_the_parser_is_decided(rtx):
    taken = [said for nodes, more, said in REFUSED if parse(model_of(nodes, **more).SerializeToString()).takes]
    assert len(taken) == len(STRICTER)
    for (ours, _why), said in zip(STRICTER, taken, strict=True):
        assert ours in said
