"""NVIDIA's parser and builder, TensorRT for RTX, as tests use them: without a GPU, and silent."""

from __future__ import annotations

from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, helper

from samkit.engine_libraries import RTX
from samkit.runtime.backends.tensorrt_library import build_engine


class Parsed(NamedTuple):
    """What a parser made of a graph."""

    network: Any
    """Filled where `parser` took the graph."""
    parser: Any
    takes: bool
    alive: tuple[Any, ...]
    """What must live as long."""


def parse(rtx, graph):
    """Return what the library makes of a graph, strongly typed; `graph` is a file or the bytes of a model."""

    class Silent(rtx.ILogger):
        def __init__(self):
            rtx.ILogger.__init__(self)

        def log(self, severity, msg):
            pass

    log = Silent()
    builder = rtx.Builder(log)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, log)
    takes = parser.parse(graph) if isinstance(graph, bytes) else parser.parse_from_file(str(graph))
    return Parsed(network, parser, takes, (log, builder))


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
    return build_engine(
        path, profile, library=RTX, workspace_bytes=1 << 30, optimization_level=3, target=target, platform=platform
    )
