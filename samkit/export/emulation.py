"""What a GPU makes of a float16 graph, on a CPU: every float16 result is really rounded, and overflows to infinity.

ONNX Runtime runs float16 graphs on a CPU in float32, and rounds where it happens to cast: no overflow is seen there.
`emulate` turns the typed float16 graph itself into a float32 one in which each float16 node's result goes through
float16 and back. Sums inside one product are float32 here, as cuBLAS accumulates by default. A kernel that sums in
float16, or joins nodes, rounds otherwise: that shows on the device alone, where the engines pass the same parity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from samkit.errors import ExportError
from samkit.export.typed_graph import MOVERS, TypedGraph, copy_node, name_nodes, rebuilt, save_beside
from samkit.methods import GraphSpec
from samkit.precisions.fp16 import PRECISION as FP16
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.tensors import Axis, Tensor, TensorSpec

_ERRORS = "samkit_errors"


class EmulatedRunner(OnnxRuntimeRunner):
    """A float16 file, run as a GPU would round it."""

    def __init__(self, path: Path, graph: GraphSpec, folder: Path, *, threads: int | None = None) -> None:
        """Emulate the float16 file at `path`; what is made for that is written to `folder`."""
        emulated = folder / f"{path.stem}.emulated.onnx"
        save_beside(emulate(onnx.load(path)), emulated)
        # No optimisation: it may find that two Casts in a row could go.
        super().__init__(emulated, graph, threads=threads, optimise=False)
        self.last: Mapping[str, Tensor] | None = None
        """The inputs of the last run: where a gate failed."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name, as any runner."""
        self.last = inputs
        return super().run(inputs)


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the float32 model that computes what the float16 nodes of `model` would, result by result."""
    graph = TypedGraph(model)
    weights = [
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        if tensor.data_type == TensorProto.FLOAT16
        else tensor
        for tensor in model.graph.initializer
    ]
    nodes: list[onnx.NodeProto] = []
    for original in graph.nodes:
        halves = [name for name in original.output if graph.dtypes.get(name) == TensorProto.FLOAT16]
        node = copy_node(original)
        if node.op_type == "Cast" and graph.dtypes.get(node.input[0]) in (TensorProto.FLOAT, TensorProto.FLOAT16):
            if halves:
                nodes += _rounding(node.input[0], node.output[0])
            else:  # to float32, from what is float32 here anyway
                nodes.append(helper.make_node("Identity", node.input, node.output, node.name))
            continue
        if node.op_type in ("Cast", "ConstantOfShape") and halves:
            raise ExportError(
                f"{node.op_type} {node.name} makes float16 of no float; this is a bug of samkit, report it"
            )
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in halves and node.op_type not in MOVERS:
                node.output[index] = f"{name}/exact"
                nodes += _rounding(f"{name}/exact", name)
    return rebuilt(model, nodes, weights)


def _rounding(source: str, target: str) -> list[onnx.NodeProto]:
    """Return the nodes that give `target` the values of `source` as float16 holds them."""
    return [
        helper.make_node("Cast", [source], [f"{target}/half"], f"{target}/to_half", to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{target}/half"], [target], f"{target}/from_half", to=TensorProto.FLOAT),
    ]


@dataclass(frozen=True)
class Offender:
    """The node of a float16 graph that is to blame for a mask."""

    graph: str
    node: str
    error: float
    """Relative to the same node in float32; infinite where it left float16's range."""
    is_beyond: bool
    """Whether that is more than the whole graph may have."""

    @property
    def is_overflow(self) -> bool:
        """Return whether the node's result is not finite."""
        return not math.isfinite(self.error)

    def __str__(self) -> str:
        if self.is_overflow:
            return f"the first node beyond float16's range is {self.node} of {self.graph}"
        which = "first node beyond that" if self.is_beyond else "worst node"
        return f"the {which} is {self.node} of {self.graph}, with a relative error of {self.error:.1e}"


def first_offender(
    single: Path, half: Path, graph: GraphSpec, inputs: Mapping[str, Tensor], folder: Path
) -> Offender | None:
    """Return the first node of the float16 file `half` whose result is not what the float32 file `single` gives.

    Both run side by side on `inputs`. The first node with an infinity or nan is named, else the first with an error
    beyond the graph's tolerance, else the one with the largest. None where no node is float16.
    """
    model, names = _side_by_side(onnx.load(single), onnx.load(half))
    if not names:
        return None
    errors = _run_probes(model, len(names), graph, inputs, folder / f"{single.stem}.compared.onnx")
    beyond = errors > graph.tolerance[FP16.name].relative
    for suspicious in (~np.isfinite(errors), beyond):
        if suspicious.any():
            number = int(suspicious.argmax())
            error = errors[number] if np.isfinite(errors[number]) else math.inf
            return Offender(graph.name, names[number], float(error), True)
    return Offender(graph.name, names[int(errors.argmax())], float(errors.max()), False)


def first_non_finite(path: Path, graph: GraphSpec, inputs: Mapping[str, Tensor], folder: Path) -> str | None:
    """Return the first node of an ONNX file whose result holds nan or an infinity on `inputs`; None where none does.

    A float16 file is rounded as a GPU would. What is made for that is written to `folder`.
    """
    model = onnx.load(path)
    name_nodes(model)
    graph_of = TypedGraph(model)
    if TensorProto.FLOAT16 in graph_of.dtypes.values():
        model = emulate(model)
    makers = {name: node.name for node in graph_of.nodes for name in graph_of.activations(node.output)}
    nodes: list[onnx.NodeProto] = []
    probes: list[str] = []
    offered: list[str] = []
    for node in model.graph.node:
        nodes.append(node)
        for name in (name for name in node.output if name in makers):
            difference, probe = f"error/{name}", f"error/{name}/finite"
            nodes += [
                helper.make_node("Sub", [name, name], [difference]),  # zeros, and nan where it is not finite
                helper.make_node("ReduceSum", [difference], [f"{difference}/sum"], keepdims=0),
                helper.make_node("Reshape", [f"{difference}/sum", "samkit_one"], [probe]),
            ]
            probes.append(probe)
            offered.append(makers[name])
    model = _with_probes(model, nodes, list(model.graph.initializer), probes)
    found = ~np.isfinite(_run_probes(model, len(probes), graph, inputs, folder / f"{path.stem}.probed.onnx"))
    return offered[int(found.argmax())] if found.any() else None


def _run_probes(
    model: onnx.ModelProto, count: int, graph: GraphSpec, inputs: Mapping[str, Tensor], path: Path
) -> np.ndarray:
    """Return the vector (count,) that a model `_with_probes` gives, float64; it is written to `path`."""
    save_beside(model, path)
    vector = TensorSpec(_ERRORS, "float32", (Axis.fixed("node", count),))
    with OnnxRuntimeRunner(path, replace(graph, outputs=(vector,)), optimise=False) as probed:
        return probed.run(inputs)[_ERRORS].astype(np.float64)


def _with_probes(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], weights: list[TensorProto], probes: list[str]
) -> onnx.ModelProto:
    """Return `nodes` as a model with the inputs of `model`, whose one output are the `probes`, each of one number."""
    if probes:
        nodes = [*nodes, helper.make_node("Concat", probes, [_ERRORS], axis=0)]
    constants = [
        numpy_helper.from_array(np.ones(1, np.int64), "samkit_one"),
        numpy_helper.from_array(np.array(1e-30, np.float32), "samkit_tiny"),
    ]
    out = rebuilt(model, nodes, [*weights, *constants])
    del out.graph.output[:]
    out.graph.output.append(helper.make_tensor_value_info(_ERRORS, TensorProto.FLOAT, [len(probes)]))
    return out


def _side_by_side(single: onnx.ModelProto, half: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return one model of both graphs whose output are relative errors, and the nodes that they belong to."""
    emulated = emulate(half)
    graph = TypedGraph(single)
    kinds = TypedGraph(half).dtypes
    inputs = {value.name for value in single.graph.input}
    nodes: list[onnx.NodeProto] = list(single.graph.node)
    for original in emulated.graph.node:
        node = copy_node(original)
        node.name = f"half/{node.name}"
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name and name not in inputs:
                    names[index] = f"half/{name}"
        nodes.append(node)
    probes: list[str] = []
    offered: list[str] = []
    for original in single.graph.node:
        if original.op_type in MOVERS:
            continue  # it has the error of what it moved
        for name in graph.activations(original.output):
            # Only what was computed in float16 is compared; an output of the graph is float16 before its last Cast.
            if TensorProto.FLOAT16 not in (kinds.get(name), kinds.get(f"{name}_float16")):
                continue
            difference, probe = f"error/{name}", f"error/{name}/relative"
            nodes += [
                helper.make_node("Sub", [name, f"half/{name}"], [difference]),
                helper.make_node("ReduceSumSquare", [difference], [f"{difference}/ours"], keepdims=0),
                helper.make_node("ReduceSumSquare", [name], [f"{difference}/all"], keepdims=0),
                helper.make_node("Max", [f"{difference}/all", "samkit_tiny"], [f"{difference}/scale"]),
                helper.make_node("Div", [f"{difference}/ours", f"{difference}/scale"], [f"{difference}/squared"]),
                helper.make_node("Sqrt", [f"{difference}/squared"], [f"{difference}/root"]),
                helper.make_node("Reshape", [f"{difference}/root", "samkit_one"], [probe]),
            ]
            probes.append(probe)
            offered.append(original.name)
    halves = []
    for tensor in emulated.graph.initializer:
        renamed = TensorProto()
        renamed.CopyFrom(tensor)
        renamed.name = f"half/{tensor.name}"
        halves.append(renamed)
    return _with_probes(single, nodes, [*single.graph.initializer, *halves], probes), offered
