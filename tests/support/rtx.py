"""NVIDIA's parser and builder, TensorRT for RTX, as tests use them: without a GPU, and silent."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, helper

from samkit.engine_libraries import RTX
from samkit.export.engines import EngineSettings
from samkit.export.typed_graph import PRODUCTS
from samkit.runtime.backends.tensorrt_library import build_engine, new_parser


class Parsed(NamedTuple):
    """What a parser made of a graph."""

    network: Any
    """Filled where the parser took the graph."""
    parser: Any
    takes: bool
    builder: Any
    """Must live as long."""


def parse(graph):
    """Return what the library makes of a graph, a file or the bytes of a model."""
    builder, network, parser = new_parser(RTX)
    takes = parser.parse(graph) if isinstance(graph, bytes) else parser.parse_from_file(str(graph))
    return Parsed(network, parser, takes, builder)


def check_types(rtx, network, path, notes):
    """Every product is in float16, or was kept in float32 and is; borders are float32; nothing else has a type."""
    borders = [network.get_input(i) for i in range(network.num_inputs)]
    borders += [network.get_output(i) for i in range(network.num_outputs)]
    assert {tensor.dtype for tensor in borders} == {rtx.DataType.FLOAT}
    layers = {layer.name: layer for layer in map(network.get_layer, range(network.num_layers))}
    products = [node.name for node in onnx.load(path, load_external_data=False).graph.node if node.op_type in PRODUCTS]
    kept = {entry["node"] for entry in notes.get("kept_in_float32", ())}
    for product in products:
        half = bool(notes) and product not in kept
        assert layers[product].get_output(0).dtype == (rtx.DataType.HALF if half else rtx.DataType.FLOAT), product
    if notes:
        assert sum(product not in kept for product in products) == notes["products_in_float16"]
    types = {layer.get_output(0).dtype for layer in layers.values()}
    whole = {rtx.DataType.INT64, rtx.DataType.INT32, rtx.DataType.BOOL}
    assert types <= {rtx.DataType.FLOAT, *whole, *([rtx.DataType.HALF] if notes else [])}


def one_node(folder, op, shape):
    """Return the file of a graph of one operator on (n, 4)."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", ["n", 4]), shape))
    graph = helper.make_graph([helper.make_node(op, ["x"], [shape[0]], name="odd")], "g", [x], [y])
    path = folder / f"{op}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


SHAPES = {"x": ((1, 4), (2, 4), (8, 4))}
"""The profile of such a graph."""


def built(path, profile=SHAPES, target="portable", platform="linux"):
    """Return what the builder makes of a file."""
    settings = EngineSettings(target=target, platform=platform)
    return build_engine(path, profile, library=RTX, **asdict(settings))
