"""Measure what a float32 graph's tensors reach: the largest magnitude of each, along whatever is run through it.

The graph gets a probe behind every tensor, so that nothing large is kept or copied: one number per tensor comes out.
A product gets a second one, over the same product of magnitudes |A| |B|. No order of summation has a partial sum beyond
it, so it bounds what an accumulator may see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from samkit.export.typed_graph import PRODUCTS, TypedGraph, copy_node, rebuilt, save_beside
from samkit.methods import GraphSpec
from samkit.prompts import ABSENT_LOGIT
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.tensors import Axis, Tensor, TensorSpec

_RANGES = "samkit_ranges"


@dataclass
class Ranges:
    """The largest magnitudes that were seen in one graph."""

    tensors: dict[str, float] = field(default_factory=dict)
    """By the tensor's name."""
    logits: dict[str, float] = field(default_factory=dict)
    """By the name of a softmax's node: of its logits, without those of absent tokens, which are only very negative."""
    sums: dict[str, float] = field(default_factory=dict)
    """By the name of a product's node: the largest partial sum that any order of summation may have."""


class RangeRunner(OnnxRuntimeRunner):
    """A runner that gives what its graph gives, and remembers how large every tensor was."""

    def __init__(self, path: Path, graph: GraphSpec, folder: Path) -> None:
        """Measure the float32 file at `path`; the file with probes is written to `folder`."""
        self.ranges = Ranges()
        self.first: Mapping[str, Tensor] = {}
        """The inputs of the first run."""
        model, self._probed = _with_probes(onnx.load(path))
        probed = folder / f"{path.stem}.ranges.onnx"
        save_beside(model, probed)
        vector = TensorSpec(_RANGES, "float32", (Axis.fixed("tensor", len(self._probed)),))
        super().__init__(probed, replace(graph, outputs=(*graph.outputs, vector)), optimise=False)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name, as any runner; `ranges` has grown by what this run reached."""
        self.first = self.first or inputs
        outputs = super().run(inputs)
        for (kind, name), value in zip(self._probed, outputs.pop(_RANGES), strict=True):
            seen: dict[str, float] = getattr(self.ranges, kind)
            seen[name] = float(np.maximum(seen.get(name, 0.0), value))
        return outputs


def _with_probes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[tuple[str, str]]]:
    """Return `model` with one more output, a vector of magnitudes, and what each of them is of."""
    graph = TypedGraph(model)
    nodes: list[onnx.NodeProto] = []
    probed: list[tuple[str, str]] = []
    absolutes: dict[str, str] = {}

    def absolute(name: str) -> str:
        if name not in absolutes:
            absolutes[name] = f"{name}/abs"
            nodes.append(helper.make_node("Abs", [name], [f"{name}/abs"]))
        return absolutes[name]

    def probe(kind: str, name: str, magnitude: str) -> None:
        nodes.append(helper.make_node("ReduceMax", [magnitude], [f"{magnitude}/max"], keepdims=0))
        nodes.append(helper.make_node("Reshape", [f"{magnitude}/max", "samkit_one"], [f"{magnitude}/probe"]))
        probed.append((kind, name))
        vector.append(f"{magnitude}/probe")

    vector: list[str] = []
    for value in model.graph.input:
        if graph.is_float(value.name):
            probe("tensors", value.name, absolute(value.name))
    for node in graph.nodes:
        nodes.append(node)
        for name in graph.activations(node.output):
            probe("tensors", name, absolute(name))
        if node.op_type == "Softmax":
            logits = node.input[0]
            nodes.append(helper.make_node("Less", [logits, "samkit_absent"], [f"{node.name}/absent"]))
            nodes.append(
                helper.make_node(
                    "Where", [f"{node.name}/absent", "samkit_zero", absolute(logits)], [f"{node.name}/seen"]
                )
            )
            probe("logits", node.name, f"{node.name}/seen")
        if node.op_type in PRODUCTS:
            shadow = copy_node(node)
            shadow.name = f"{node.name}/magnitudes"
            del shadow.input[:], shadow.output[:]
            shadow.input.extend(absolute(name) if name else "" for name in node.input)
            shadow.output.append(f"{node.output[0]}/magnitudes")
            nodes.append(shadow)
            probe("sums", node.name, shadow.output[0])
    nodes.append(helper.make_node("Concat", vector, [_RANGES], axis=0))
    constants = {
        "samkit_one": np.ones(1, np.int64),
        "samkit_zero": np.array(0, np.float32),
        "samkit_absent": np.array(ABSENT_LOGIT / 2, np.float32),
    }
    added = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    out = rebuilt(model, nodes, [*graph.weights.values(), *added])
    out.graph.output.append(helper.make_tensor_value_info(_RANGES, TensorProto.FLOAT, [len(probed)]))
    return out, probed
