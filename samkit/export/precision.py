"""Turn a float32 graph into a strongly typed float16 one with float32 borders, by what its tensors were seen to reach.

TensorRT 11 has no precision flag, so `--fp16` must change the graph. `choose_kept` decides which nodes stay in
float32, each for a reason that a person can read; `convert_to_fp16` puts the others into float16, with Casts between.
What stays:

by kind     norms, means and sums; the log-sum-exp of folded padding; the positional encoding, where float16 loses the
            half pixel; what follows the last product on the way to an output, coordinates of boxes among it.
by range    whatever reads, makes or sums up numbers that float16 can't hold, or that are so small that it loses their
            digits; a softmax whose logits are so large that float16's rounding of them counts.
by the gate where masks moved too far with the above alone: `LEVELS`, one after the other, then the products whose
            rounding moves the output most (sensitivity.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from samkit.errors import ExportError
from samkit.export.ranges import Ranges
from samkit.export.typed_graph import (
    FLOAT16_MAX,
    FLOAT16_NORMAL,
    MOVERS,
    PRODUCTS,
    TypedGraph,
    copy_node,
    rebuilt,
)

MARGIN = 4.0
"""How far beyond what calibration saw another image may go."""
SOFTMAX_LOGIT = 16.0
"""Logits from here on lie 2^-6 apart in float16, and a softmax makes 1.6 % of that."""

_ELEMENTWISE = frozenset(
    {"Abs", "Add", "AveragePool", "Clip", "Concat", "Div", "Erf", "Gelu", "Max", "MaxPool", "Min", "Mul", "Neg", "Pad",
     "ReduceMax", "Relu", "Resize", "Sigmoid", "Sub", "Tanh", "Where"}
)  # fmt: skip
_NORMS = frozenset(
    {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization", "GlobalAveragePool",
     "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare", "Pow", "Sqrt", "Reciprocal"}
)  # fmt: skip
_EXPONENTS = frozenset({"Exp", "Log", "ReduceLogSumExp"})
_WAVES = frozenset({"Sin", "Cos"})
_ABLE = PRODUCTS | _ELEMENTWISE | _NORMS | _EXPONENTS | _WAVES | {"Softmax"}
"""Operators that have a float16 form; movers have it where what they read has."""


@dataclass(frozen=True)
class Kept:
    """One node that stays in float32."""

    node: str
    op: str
    reason: str
    range: float | None = None
    """The magnitude that forced it; None where its kind did."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Level:
    """How much runs in float16 of what its kind and range allow."""

    name: str
    elementwise: bool
    """Whether sums, activations and the like do, or only products and what moves their results."""
    softmax: bool

    def takes(self, op: str) -> bool:
        """Return whether an operator runs in float16 on this level."""
        return op in PRODUCTS or (self.softmax if op == "Softmax" else self.elementwise)


LEVELS = (
    Level("all that its range allows", elementwise=True, softmax=True),
    Level("without softmax", elementwise=True, softmax=False),
    Level("products alone", elementwise=False, softmax=False),
)
"""From fast to careful; the first one whose masks pass the gate is taken."""


def choose_kept(
    graph: TypedGraph, ranges: Ranges | None = None, level: Level = LEVELS[0], asked_by: str = ""
) -> list[Kept]:
    """Return the nodes of a float32 graph that stay in float32, in its order, each with the first reason found.

    Left out are nodes that float16 does not concern, and those that only move numbers: they follow what they read.
    Without `ranges` that is decided by kind and weights alone. `asked_by` says what the gate found, for the reasons of
    a level above the first.
    """
    ranges = ranges or Ranges()
    encoding = _flood(graph, _named(graph, _WAVES), graph.behind)
    exponents = _exponent_region(graph)
    tail = _tail(graph)
    kept = []
    for node in graph.nodes:
        if node.op_type in MOVERS or not graph.activations(node.output):
            continue
        if node.op_type not in _ABLE:
            if node.op_type not in ("Cast", "Constant", "ConstantOfShape"):
                kept.append(Kept(node.name, node.op_type, "operator without a float16 form here"))
        elif node.op_type in _NORMS:
            kept.append(Kept(node.name, node.op_type, "norm, mean or sum"))
        elif node.name in exponents:
            kept.append(Kept(node.name, node.op_type, "log-sum-exp"))
        elif node.name in encoding:
            kept.append(Kept(node.name, node.op_type, "positional encoding"))
        elif node.name in tail:
            kept.append(Kept(node.name, node.op_type, "between the last product and an output"))
        elif (forced := _by_range(graph, node, ranges)) is not None:
            kept.append(forced)
        elif not level.takes(node.op_type):
            kept.append(Kept(node.name, node.op_type, f"the gate: {asked_by}"))
    return kept


def count_products(graph: TypedGraph, kept: Iterable[str]) -> tuple[int, int]:
    """Return how many matrix products and convolutions a graph has, and how many of them are not `kept`."""
    products = {node.name for node in graph.nodes if node.op_type in PRODUCTS}
    return len(products), len(products.difference(kept))


def convert_to_fp16(graph: TypedGraph, kept: Iterable[str]) -> onnx.ModelProto:
    """Return the float16 form of a float32 graph in which the nodes named in `kept` stay in float32.

    Raises ExportError where `kept` names no node of the graph, and where a weight of another node does not fit into
    float16: nothing is clamped. The caller passes the result to `graphs.save_graph`, which checks it, as every graph.
    """
    kept = set(kept)
    if unknown := sorted(kept - {node.name for node in graph.nodes}):
        raise ExportError(
            f"the keep-list names {unknown[0]}, which is no node of this graph; it was made for another network or "
            "another samkit, leave {keep_list} out to measure again",
            options=("keep_list",),
        )
    half = _half_nodes(graph, kept)
    _check_weights(graph, half)
    return _rebuild(graph, half)


# --- Reasons ---


def _by_range(graph: TypedGraph, node: onnx.NodeProto, ranges: Ranges) -> Kept | None:
    """Return why the numbers of `node` don't allow float16; None where they do."""

    def keep(reason: str, value: float) -> Kept:
        return Kept(node.name, node.op_type, reason, float(f"{value:.4g}"))

    for name in graph.data(node):
        if name in graph.weights and graph.is_float(name):
            largest = graph.largest(name)
            if not largest <= FLOAT16_MAX:
                return keep(f"weight {name} is beyond float16", largest)
            if 0 < largest < FLOAT16_NORMAL * MARGIN:
                return keep(f"weight {name} is so small that float16 loses digits", largest)
    for name in graph.activations((*graph.data(node), *node.output)):
        largest = ranges.tensors.get(name, 0.0)
        kind = "output" if name in node.output else "input"
        if not largest * MARGIN <= FLOAT16_MAX:
            return keep(f"{kind} {name} leaves float16", largest)
        if 0 < largest < FLOAT16_NORMAL * MARGIN:
            return keep(f"{kind} {name} is so small that float16 loses digits", largest)
    if node.op_type in PRODUCTS and not (total := ranges.sums.get(node.name, 0.0)) * MARGIN <= FLOAT16_MAX:
        return keep("inner sums leave float16", total)
    if node.op_type == "Softmax" and (largest := ranges.logits.get(node.name, 0.0)) >= SOFTMAX_LOGIT:
        return keep("logits so large that float16's rounding counts", largest)
    return None


def _named(graph: TypedGraph, kinds: frozenset[str]) -> list[onnx.NodeProto]:
    return [node for node in graph.nodes if node.op_type in kinds]


def _flood(
    graph: TypedGraph,
    start: Iterable[onnx.NodeProto],
    neighbours: Callable[[onnx.NodeProto], Iterable[onnx.NodeProto]],
    passes: Callable[[onnx.NodeProto], bool] = lambda node: True,
) -> set[str]:
    """Return the names of `start` and of all nodes that it leads to through nodes that let it pass."""
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found.add(node.name)
            waiting.extend(other for other in neighbours(node) if passes(other))
    return found


def _exponent_region(graph: TypedGraph) -> set[str]:
    """Return the nodes of log-sum-exps: the exponents and logarithms, and the arithmetic around them."""
    core = _named(graph, _EXPONENTS)

    def passes(node: onnx.NodeProto) -> bool:
        return (
            node.op_type in {"Add", "Sub", "Mul", "Neg", "Abs", "Max", "ReduceMax", "ReduceSum"} | MOVERS | _EXPONENTS
        )

    return _flood(graph, core, graph.beyond, passes) | _flood(graph, core, graph.behind, passes)


def _tail(graph: TypedGraph) -> set[str]:
    """Return the nodes between the last products and the outputs: no product or norm reads what they lead to."""
    outputs = [graph.makers[value.name] for value in graph.model.graph.output if value.name in graph.makers]
    read_on = _flood(graph, _named(graph, PRODUCTS | _NORMS), graph.behind)

    def passes(node: onnx.NodeProto) -> bool:
        return node.op_type in _ELEMENTWISE | MOVERS and node.name not in read_on

    return _flood(graph, filter(passes, outputs), graph.behind, passes)


# --- Conversion ---


def _half_nodes(graph: TypedGraph, kept: set[str]) -> set[str]:
    """Return the names of the nodes that run in float16."""
    half: set[str] = set()
    half_tensors: set[str] = set()
    for node in graph.nodes:
        reads = graph.activations(node.input)
        follows = node.op_type in MOVERS and bool(reads) and half_tensors.issuperset(reads)
        chosen = node.op_type in _ABLE and bool(graph.activations(node.output)) and node.name not in kept
        if chosen or follows:
            half.add(node.name)
            half_tensors.update(graph.activations(node.output))
    return half


def _check_weights(graph: TypedGraph, half: set[str]) -> None:
    for node in graph.nodes:
        for name in graph.data(node) if node.name in half else ():
            if name in graph.weights and graph.is_float(name):
                largest = graph.largest(name)
                if not largest <= FLOAT16_MAX:
                    raise ExportError(
                        f"weight {name} of {node.name} reaches {largest:.4g}, and float16 holds {FLOAT16_MAX:.0f}; add "
                        f"{node.name} to the keep-list"
                    )


def _rebuild(graph: TypedGraph, half: set[str]) -> onnx.ModelProto:
    """Return the model with float16 nodes and the Casts between; nodes stay topologically sorted."""
    outputs = {value.name for value in graph.model.graph.output}
    half_tensors: set[str] = set()
    half_weights: dict[str, TensorProto] = {}
    cast: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []

    def as_type(name: str, dtype: int) -> str:
        """Return the name of tensor `name` in `dtype`, with one Cast for all who need it."""
        if (dtype == TensorProto.FLOAT16) == (name in half_tensors):
            return name
        if name in graph.weights and dtype == TensorProto.FLOAT16:
            if name not in half_weights:
                value = graph.weight(name).astype(np.float16)
                half_weights[name] = numpy_helper.from_array(value, f"{name}_float16")
            return half_weights[name].name
        if (name, dtype) not in cast:
            suffix = "float16" if dtype == TensorProto.FLOAT16 else "float32"
            cast[name, dtype] = f"{name}_{suffix}"
            nodes.append(helper.make_node("Cast", [name], [f"{name}_{suffix}"], f"{name}_to_{suffix}", to=dtype))
        return cast[name, dtype]

    for original in graph.nodes:
        node = copy_node(original)
        dtype = TensorProto.FLOAT16 if node.name in half else TensorProto.FLOAT
        for index, name in enumerate(graph.data(original)):
            if graph.is_float(name):
                node.input[index] = as_type(name, dtype)
        nodes.append(node)
        if node.name in half:
            for index, name in enumerate(node.output):
                if name in outputs:  # borders stay float32
                    node.output[index] = cast[name, TensorProto.FLOAT16] = f"{name}_float16"
                    nodes.append(helper.make_node("Cast", [f"{name}_float16"], [name], f"{name}_to_float32", to=1))
                elif graph.is_float(name):
                    half_tensors.add(name)
    return rebuilt(graph.model, nodes, [*graph.weights.values(), *half_weights.values()])


# --- Keep-lists ---


def notes_of(graph: TypedGraph, kept: list[Kept], level: str) -> dict[str, Any]:
    """Return what the manifest says about a float16 file: its level, its products, and every node that stayed."""
    products, in_half = count_products(graph, (entry.node for entry in kept))
    return {
        "level": level,
        "products": products,
        "products_in_float16": in_half,
        "kept_in_float32": [entry.to_dict() for entry in kept],
    }


def read_keep_list(data: Any, files: Mapping[str, str]) -> dict[str, list[Kept]]:
    """Return the kept nodes of each graph, from a manifest's JSON or its `precision_notes`, which may be edited.

    `files` are the names of the float16 files by graph. Raises ExportError where one of them is not in the list.
    """
    notes = data.get("precision_notes", data) if isinstance(data, dict) else None
    try:
        return {
            graph: [
                Kept(
                    str(entry["node"]), str(entry.get("op", "")), str(entry.get("reason", "given")), entry.get("range")
                )
                for entry in notes[file]["kept_in_float32"]  # type: ignore[index]
            ]
            for graph, file in files.items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"the keep-list is not readable ({error!r}); needed is a manifest.json of a float16 export of this method, "
            'or its "precision_notes": {"FILE": {"kept_in_float32": [{"node": "NAME"}]}} for each of '
            f"{', '.join(files.values())}"
        ) from error
