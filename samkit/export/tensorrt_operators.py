"""Would TensorRT take this ONNX file? Operators, types, and the patterns that its parser or its engines can't have.

Engines can be built on few machines, and graphs are exported on many. So every export is held to the facts in
operator_facts.py: a layer that no engine could have is found where it is written. Beyond the chart, shapes must not
depend on data: a graph input that is used as a shape, NonZero and its kin, and sizes computed in floating point. The
runner allocates before it runs, and TensorRT computes shapes from integers. The parser of TensorRT for RTX is milder
here and there (`STRICTER` in tests/unit/export/test_tensorrt_operators.py): graphs are for releases since 10.1, and
float32, which it makes of float64 without a word, is nothing that anybody asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

from samkit.errors import ExportError
from samkit.export.operator_facts import LAST_OPSET, SUPPORTED, TAKEN
from samkit.export.typed_graph import infer_dtypes

_log = logging.getLogger(__name__)

_TYPES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT4: "INT4",
    TensorProto.FLOAT8E4M3FN: "FP8",
}
_FLOATS = frozenset({"FP32", "FP16", "BF16"})

DATA_DEPENDENT = frozenset({"NonZero", "NonMaxSuppression", "Compress", "Unique"})
"""Operators whose output's shape is known only after they ran."""

_SHAPE_INPUTS: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
}
"""Inputs that decide the shape of the output."""

_CONSTANT_INPUTS: Mapping[str, int] = {
    "CumSum": 1,
    "OneHot": 1,
    "Pad": 3,
    "Slice": 3,
    "Squeeze": 1,
    "Unsqueeze": 1,
    **{name: 1 for name in SUPPORTED if name.startswith("Reduce")},
}
"""Inputs that must be constants: axes, and the depth of OneHot."""

_TYPED_INPUTS: Mapping[str, tuple[int, ...]] = {"Where": (1, 2), "ConstantOfShape": (), "Range": (0,)}
"""Which inputs have the type that the chart speaks of, where it is not the first."""


def check_files(paths: Iterable[Path]) -> None:
    """Hold each ONNX file to what TensorRT takes, and log where one was not checked; raises as `check_file` does."""
    for path in paths:
        if (note := check_file(path)) is not None:
            _log.info(note)


def check_file(path: Path) -> str | None:
    """Hold an ONNX file to what TensorRT takes; return why it was not, where its opset is newer than the facts.

    Raises ExportError naming the node and its operator.
    """
    model = onnx.load(path, load_external_data=False)
    return check_model(model, path.name)


def check_model(model: onnx.ModelProto, name: str) -> str | None:
    """Hold a model called `name` to what TensorRT takes, as `check_file` does."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset > LAST_OPSET:
        return f"{name}: not checked for TensorRT, whose operators are known up to opset {LAST_OPSET}; it has {opset}"
    _Check(model, name).run()
    return None


class _Check:
    """One model; everything known of its tensors."""

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self._name = name
        self._graph = model.graph
        for node in self._graph.node:  # types can be inferred for known operators alone
            self._check_operator(node)
        self._types = _infer_types(model, name)
        self._constants = {weight.name for weight in model.graph.initializer}
        self._inputs = {value.name for value in model.graph.input} - self._constants
        self._from_data = set(self._inputs)
        """Tensors whose values depend on those of the graph's inputs."""
        self._from_shapes: set[str] = set()
        """Tensors whose values depend on the inputs' shapes."""
        self._in_floats: set[str] = set()
        """Those of them that were computed in floating point."""

    def run(self) -> None:
        """Check every node, in order."""
        for value in self._graph.input:
            if value.name in self._inputs and self._types.get(value.name) not in _FLOATS:
                self._refuse_tensor(value.name)
        for node in self._graph.node:
            self._check_types(node)
            self._check_shapes(node)
            self._check_constants(node)
            for reason in _OPTIONS.get(node.op_type, _no_options)(_attributes(node), node):
                self._refuse(node, reason)
            self._follow(node)

    def _refuse(self, node: onnx.NodeProto, reason: str) -> None:
        raise ExportError(
            f"{self._name}: node '{node.name or node.output[0]}' ({node.op_type}) {reason}, which no TensorRT engine "
            "can have; rewrite that layer"
        )

    def _refuse_tensor(self, name: str) -> None:
        raise ExportError(
            f"{self._name}: the graph's input '{name}' is {self._types.get(name)}, and engines take floating point at "
            "their borders; cast inside the graph"
        )

    def _check_operator(self, node: onnx.NodeProto) -> None:
        if node.domain not in ("", "ai.onnx"):
            self._refuse(node, f"comes from the domain {node.domain}")
        if node.op_type not in SUPPORTED:
            self._refuse(node, "is not in the chart of operators")
        if node.op_type in DATA_DEPENDENT:
            self._refuse(node, "has an output whose shape depends on data")
        if not TAKEN[node.op_type]:
            self._refuse(node, "is not in TensorRT for RTX")
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            self._refuse(node, "holds a graph of its own, which is not checked")

    def _check_types(self, node: onnx.NodeProto) -> None:
        for name in (*node.input, *node.output):
            if name and self._types.get(name) not in _TYPES.values():
                self._refuse(node, f"works with '{name}' of type {self._types.get(name, 'unknown')}")
        indices = _TYPED_INPUTS.get(node.op_type, (0,))
        typed = [node.input[index] for index in indices if index < len(node.input)] or [node.output[0]]
        if node.op_type == "Cast":
            typed.append(node.output[0])
        for name in typed:
            if self._types[name] not in TAKEN[node.op_type]:
                self._refuse(node, f"is given {self._types[name]} and takes {', '.join(sorted(TAKEN[node.op_type]))}")

    def _check_shapes(self, node: onnx.NodeProto) -> None:
        for index in _SHAPE_INPUTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if name in self._inputs:
                self._refuse(node, f"takes its shape from the graph's input '{name}'")
            if name in self._from_data:
                self._refuse(node, f"takes its shape from data ('{name}')")
            if name in self._in_floats:
                self._refuse(node, f"takes its shape from '{name}', which was computed in floating point")

    def _check_constants(self, node: onnx.NodeProto) -> None:
        index = _CONSTANT_INPUTS.get(node.op_type)
        name = node.input[index] if index is not None and index < len(node.input) else ""
        if name and name not in self._constants:
            self._refuse(node, f"has an input {index} ('{name}') that is no constant")

    def _follow(self, node: onnx.NodeProto) -> None:
        """Note what the node's outputs depend on."""
        reads = [name for name in node.input if name]
        if node.op_type == "Constant" or (reads and self._constants.issuperset(reads)):
            self._constants.update(node.output)
        elif node.op_type in ("Shape", "Size"):
            self._from_shapes.update(node.output)
        else:
            if self._from_data.intersection(reads):
                self._from_data.update(node.output)
            if self._from_shapes.intersection(reads):
                self._from_shapes.update(node.output)
                floats = [name for name in node.output if self._types.get(name) in _FLOATS]
                if floats or self._in_floats.intersection(reads):
                    self._in_floats.update(node.output)


def _infer_types(model: onnx.ModelProto, name: str) -> dict[str, str]:
    """Return the type of every tensor, as the chart calls it, else as ONNX does."""
    try:
        kinds = infer_dtypes(model)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"{name}: types can't be inferred: {str(error).splitlines()[0]}") from error
    return {tensor: _TYPES.get(kind) or TensorProto.DataType.Name(kind) for tensor, kind in kinds.items()}


# --- What the chart says of single operators ---


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _no_options(attributes: dict[str, Any], node: onnx.NodeProto) -> Iterator[str]:
    yield from ()


def _layer_norm(attributes: dict[str, Any], node: onnx.NodeProto) -> Iterator[str]:
    if len([name for name in node.output if name]) > 1:
        yield "gives more than its first output"


def _max_pool(attributes: dict[str, Any], node: onnx.NodeProto) -> Iterator[str]:
    yield from _pool(attributes, node)
    if len([name for name in node.output if name]) > 1:
        yield "gives indices"


def _pool(attributes: dict[str, Any], node: onnx.NodeProto) -> Iterator[str]:
    if set(attributes.get("dilations", [1])) != {1}:
        yield "is dilated"
    if len(attributes.get("kernel_shape", [])) not in (2, 3):
        yield "pools neither in 2D nor in 3D"


def _resize(attributes: dict[str, Any], node: onnx.NodeProto) -> Iterator[str]:
    mode = attributes.get("mode", b"nearest")
    if mode not in (b"nearest", b"linear"):
        yield f"has the mode {mode.decode()}"
    way = attributes.get("coordinate_transformation_mode", b"half_pixel")
    known = (b"half_pixel", b"pytorch_half_pixel", b"tf_half_pixel_for_nn", b"asymmetric", b"align_corners")
    if way not in known:
        yield f"has the coordinates {way.decode()}"
    if attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch" or attributes.get("antialias", 0):
        yield "keeps the aspect ratio, or is antialiased"


def _scatter(attributes: dict[str, Any], node: onnx.NodeProto) -> Iterator[str]:
    if attributes.get("reduction", b"none") != b"none":
        yield "has a reduction"


def _top_k(attributes: dict[str, Any], node: onnx.NodeProto) -> Iterator[str]:
    if attributes.get("sorted", 1) != 1:
        yield "is not sorted"


_OPTIONS: Mapping[str, Callable[[dict[str, Any], onnx.NodeProto], Iterator[str]]] = {
    "AveragePool": _pool,
    "LayerNormalization": _layer_norm,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "ScatterND": _scatter,
    "TopK": _top_k,
}
