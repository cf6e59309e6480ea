"""Write a network's graphs as ONNX files: one `nn.Module` per GraphSpec, traced by torch's dynamo exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, nn

from samkit.errors import ExportError
from samkit.methods import GraphSpec

if TYPE_CHECKING:
    from samkit.models.sam3d import Sam3D

FORBIDDEN_OPS = frozenset({"Einsum", "Mod", "Range", "OneHot", "NonZero", "ScatterND", "If", "Loop"})
"""Operators with data-dependent shapes or poor support; no graph but `--no-fold`'s may hold one."""

EXAMPLE_SIZE = 2
"""Traced size of dynamic axes: the exporter takes an axis of size 1 for a constant."""


class _ImageEncoder(nn.Module):
    def __init__(self, network: Sam3D) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network.encode(image)


class _MaskDecoder(nn.Module):
    def __init__(self, network: Sam3D) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = self.network.decode(image_embeddings, point_coords, point_labels, mask_input)
        return tuple(output for output in outputs if output is not None)


_MODULES = {"image_encoder": _ImageEncoder, "mask_decoder": _MaskDecoder}


def write_graph(network: Sam3D, spec: GraphSpec, path: Path, *, opset: int, folded: bool) -> None:
    """Write the graph `spec` of `network` to `path` and check it; raises ExportError with the exporter's reason."""
    example = tuple(
        torch.zeros([EXAMPLE_SIZE if axis.is_dynamic else axis.min for axis in tensor.axes]) for tensor in spec.inputs
    )
    sizes: dict[str, object] = {
        axis.name: torch.export.Dim(axis.name, min=axis.min, max=axis.max)
        for tensor in spec.inputs
        for axis in tensor.axes
        if axis.is_dynamic
    }
    shapes = {
        tensor.name: {index: sizes[axis.name] for index, axis in enumerate(tensor.axes) if axis.is_dynamic}
        for tensor in spec.inputs
    }
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                _MODULES[spec.name](network).eval(),
                example,
                dynamo=True,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=shapes,
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
        raise ExportError(f"torch returned no program for {spec.name}; try another --opset")
    model = program.model_proto
    _strip_machine_paths(model)
    check_graph(model, spec, folded=folded)
    onnx.save_model(model, path)


def check_graph(model: onnx.ModelProto, spec: GraphSpec, *, folded: bool) -> None:
    """Raise ExportError unless `model` passes onnx's full check, has the promised names, and no forbidden operator."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{spec.name} does not pass onnx.checker: {str(error).splitlines()[0]}") from error
    inputs, outputs = [i.name for i in model.graph.input], [o.name for o in model.graph.output]
    if inputs != [t.name for t in spec.inputs] or outputs != [t.name for t in spec.outputs]:
        raise ExportError(f"{spec.name} was written with inputs {inputs} and outputs {outputs}; its record disagrees")
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
