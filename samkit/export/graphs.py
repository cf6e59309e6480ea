"""Write a network's graphs as ONNX files: one `nn.Module` per GraphSpec, traced by torch's dynamo exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from samkit.errors import ExportError
from samkit.export.shapes import write_out_shapes
from samkit.export.typed_graph import name_nodes, save_beside
from samkit.methods import GraphSpec
from samkit.methods.method import IMAGES
from samkit.tensors import Axis

if TYPE_CHECKING:
    from samkit.networks.network import Network

FORBIDDEN_OPS = frozenset({"Einsum", "Mod", "Range", "OneHot", "NonZero", "ScatterND", "If", "Loop"})
"""Operators with data-dependent shapes or poor support; no graph but `--no-fold`'s may hold one."""

EXAMPLE_SIZE = 2
"""Traced size of dynamic axes [steps]: the exporter takes an axis of size 1 for a constant."""

_ROWS = "batch"


LARGEST_FILE = 1_900_000_000
"""Bytes of weights beyond which they lie in a file of their own: a protobuf ends at 2 GiB."""


class _Graph(nn.Module):
    """One graph of a network as a module of its own, which is what the exporter takes."""

    def __init__(self, network: Network, name: str) -> None:
        super().__init__()
        self.network = network
        self.name = name

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.network.run_graph(self.name, *inputs)


def write_graph(network: Network, spec: GraphSpec, path: Path, *, opset: int, folded: bool) -> None:
    """Write the graph `spec` of `network` to `path` and check it; raises ExportError with the exporter's reason."""
    example = tuple(
        torch.zeros([EXAMPLE_SIZE * axis.step if axis.is_dynamic else axis.min for axis in tensor.axes])
        for tensor in spec.inputs
    )
    sizes: dict[str, Any] = {
        _traced_axis(axis): _dimension(axis) for tensor in spec.inputs for axis in tensor.axes if axis.is_dynamic
    }
    shapes = tuple(
        {index: sizes[_traced_axis(axis)] for index, axis in enumerate(tensor.axes) if axis.is_dynamic}
        for tensor in spec.inputs
    )
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                _Graph(network, spec.name).eval(),
                example,
                dynamo=True,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes={"inputs": shapes},
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(
            f"torch could not export {spec.name} ({reason}); the full report is above this error's cause"
        ) from error
    if program is None:
        raise ExportError(f"torch returned no program for {spec.name}; try another {{opset}}", options=("opset",))
    model = program.model_proto
    _strip_machine_paths(model)
    for tensor in spec.inputs:
        if tensor.axes[0].name == IMAGES and tensor.axes[0].is_dynamic:
            _share_among_rows(model, tensor.name, next(t.name for t in spec.inputs if t.axes[0].name == _ROWS))
    name_nodes(model)
    write_out_shapes(model)
    save_graph(model, path, spec, folded=folded)


def save_graph(model: onnx.ModelProto, path: Path, spec: GraphSpec, *, folded: bool) -> None:
    """Write `model` to `path`, weights beyond 2 GiB to a file beside it, and check what was written."""
    if sum(len(weight.raw_data) for weight in model.graph.initializer) > LARGEST_FILE:
        save_beside(model, path)
    else:
        onnx.save_model(model, path)
    check_graph(model, path, spec, folded=folded)


def _traced_axis(axis: Axis) -> str:
    """Return under which name an axis is traced: rows and the images they share have one size until the very end."""
    return _ROWS if axis.name == IMAGES else axis.name


def _dimension(axis: Axis) -> Any:
    low, high = -(-axis.min // axis.step), axis.max // axis.step
    name = _traced_axis(axis)
    if axis.step == 1:
        return torch.export.Dim(name, min=low, max=high)
    return axis.step * torch.export.Dim(f"{name}_steps", min=low, max=high)


def _share_among_rows(model: onnx.ModelProto, shared: str, rows: str) -> None:
    """Let the input `shared` have one row or as many as the input `rows`: it is expanded to them first.

    The exporter can't trace this, because sizes 1 and n are two programs to it.
    """
    graph = model.graph
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == shared:
                node.input[index] = f"{shared}_rows"
    wide = next(value for value in graph.input if value.name == shared)
    wide.type.tensor_type.shape.dim[0].dim_param = IMAGES
    ones = [1] * (len(wide.type.tensor_type.shape.dim) - 1)
    added = [
        onnx.helper.make_node("Shape", [rows], [f"{shared}_count"], f"{shared}_count", start=0, end=1),
        onnx.helper.make_node("Concat", [f"{shared}_count", f"{shared}_ones"], [f"{shared}_shape"], axis=0),
        onnx.helper.make_node("Expand", [shared, f"{shared}_shape"], [f"{shared}_rows"], f"{shared}_expand"),
    ]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(ones, np.int64), f"{shared}_ones"))
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*added, *old])


def check_graph(model: onnx.ModelProto, path: Path, spec: GraphSpec, *, folded: bool) -> None:
    """Raise ExportError unless the file passes onnx's full check and has the promised names, axes and operators."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{spec.name} does not pass onnx.checker: {str(error).splitlines()[0]}") from error
    inputs, outputs = [i.name for i in model.graph.input], [o.name for o in model.graph.output]
    if inputs != [t.name for t in spec.inputs] or outputs != [t.name for t in spec.outputs]:
        raise ExportError(f"{spec.name} was written with inputs {inputs} and outputs {outputs}; its record disagrees")
    for tensor, value in zip(spec.inputs, model.graph.input, strict=True):
        for axis, size in zip(tensor.axes, value.type.tensor_type.shape.dim, strict=True):
            # A network that asks a tensor for its length makes the exporter take the example's size for the only one.
            if axis.is_dynamic and not size.dim_param:
                raise ExportError(
                    f"{spec.name} was written with {axis.name} of {tensor.name} fixed to {size.dim_value}, and it goes "
                    f"from {axis.min} to {axis.max}; rewrite the layer that fixes it"
                )
    if folded and (found := sorted(FORBIDDEN_OPS & {node.op_type for node in model.graph.node})):
        raise ExportError(f"{spec.name} holds {', '.join(found)}, which no exported graph may; rewrite that layer")


def _strip_machine_paths(model: onnx.ModelProto) -> None:
    """Remove the exporter's per-node stack traces: they name folders of this machine and make files differ."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress and its notes about torchvision off our streams; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
