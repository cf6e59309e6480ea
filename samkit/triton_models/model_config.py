"""config.pbtxt of every model: names, dtypes and dims of a graph from its GraphSpec, those of Python models from here.

They are built as Triton's own protobuf messages and written by protobuf, so that each one parses. Models that run as a
TensorRT engine have a config, too; none of those was ever loaded: untested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from samkit.errors import ManifestError
from samkit.methods import GraphSpec
from samkit.runtime import wire
from samkit.runtime.slices import encoder_batch
from samkit.runtime.tensorrt_runner import POINTS
from samkit.runtime.tritonclient_library import model_config
from samkit.tensors import TensorSpec

ROLES = ("preprocess", "refine", "postprocess")
"""Python models that the ensemble runs, in this order; the first word of each one's file, too."""
SESSION = "session"
"""The Python model that remembers scans."""

ONNX_FILE, ENGINE_FILE = "model.onnx", "model.plan"

QUEUE_DELAY = 500
"""How long [us] a picture waits for others to share its batch. An encoder takes many times as long, and while it runs
others gather anyway, so this only has to cover sessions that ask at the same moment."""

DTYPES = {
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int16": "TYPE_INT16",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
"""numpy's name of a dtype to Triton's."""
TEXT = "TYPE_STRING"

MASKS = "low_res_masks"
"""What decoders return, and no other graph."""
_BATCH = "batch"
_HEADER = """\
# Written by sam-serve write. Batching, instances and warm-up may be changed here; sam-serve check holds names, dtypes
# and dims to the graph, and the next sam-serve write replaces this file.
"""


# --- What graphs are ---


def batch_size(graph: GraphSpec) -> int:
    """Return the model's max_batch_size: the largest request that a session may send; 0 where Triton must not batch.

    The batcher merges requests and never splits one, so whoever sends more than this gets an error.
    """
    # Sessions send a decoder one picture's prompts at a time. Their number differs, so there is little to merge, and
    # every click would wait for it. And a click must get the bits that it gets alone: in a batch, ONNX Runtime on the
    # CPU moved brainseg-dmif's logits by 1e-5.
    tensors = (*graph.inputs, *graph.outputs)
    if any(spec.name == MASKS or spec.axes[0].name != _BATCH for spec in tensors):
        return 0
    picture = graph.inputs[0].axes
    if graph.name == "image_encoder" and len(picture) == len(("batch", "channel", "row", "column")):
        return encoder_batch(graph)
    return picture[0].max


def graph_config(model: str, graph: GraphSpec, *, engine: bool = False) -> str:
    """Return config.pbtxt of the model that runs `graph`; as a TensorRT engine (untested) with `engine`.

    Thread counts are the backend's defaults. Raises MissingDependencyError without tritonclient.
    """
    messages, batch = model_config(), batch_size(graph)
    config = messages.ModelConfig(
        name=model,
        max_batch_size=batch,
        input=[_graph_tensor(messages.ModelInput, spec, batch) for spec in graph.inputs],
        output=[_graph_tensor(messages.ModelOutput, spec, batch) for spec in graph.outputs],
        default_model_filename=ENGINE_FILE if engine else ONNX_FILE,
        model_warmup=[_warmup(messages, graph, *bucket) for bucket in _buckets(graph, batch)],
    )
    # Triton would make two on a CPU: twice the memory, and batches cut in half. On a GPU it is one by default
    config.instance_group.add(count=1, kind="KIND_AUTO")
    if engine:
        config.platform = "tensorrt_plan"
    else:
        config.backend = "onnxruntime"
    if batch > 1:
        config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY
    return _to_text(config)


def _graph_tensor(kind: Any, spec: TensorSpec, batch: int) -> Any:
    return kind(name=spec.name, data_type=_dtype(spec), dims=_dims(spec, batch))


def _dtype(spec: TensorSpec) -> str:
    if spec.dtype not in DTYPES:
        raise ManifestError(
            f"tensor '{spec.name}' is {spec.dtype}, which no model is served with; make it one of {', '.join(DTYPES)}"
        )
    return DTYPES[spec.dtype]


def _dims(spec: TensorSpec, batch: int) -> list[int]:
    """Return the dims as Triton counts them: without the batch axis where it batches, -1 for what may differ.

    An axis that may be empty is -1 like any other, although an engine's begins at 1: the caller fills it.
    """
    axes = spec.axes[1:] if batch else spec.axes
    return [-1 if axis.is_dynamic else axis.min for axis in axes]


# --- Warm-up ---


def _buckets(graph: GraphSpec, batch: int) -> list[tuple[str, int, int | None]]:
    """Return what shapes are run before the model says it is ready: name, batch size, number of points or None."""
    if batch:
        return [(f"batch-{size}", size, None) for size in sorted({1, batch})]
    points = {axis.opt for spec in graph.inputs for axis in spec.axes if axis.name == POINTS}
    return [(f"points-{count}", 1, count) for count in sorted(points | {1})] if points else [("usual", 1, None)]


def _warmup(messages: ModuleType, graph: GraphSpec, name: str, size: int, points: int | None) -> Any:
    """Return one sample. Zeros everywhere: a black picture, background points; random bits are no labels."""
    batched = batch_size(graph) > 0
    inputs = {}
    for spec in graph.inputs:
        axes = spec.axes[1:] if batched else spec.axes
        dims = [points if axis.name == POINTS and points is not None else axis.opt for axis in axes]
        inputs[spec.name] = messages.ModelWarmup.Input(data_type=_dtype(spec), dims=dims, zero_data=True)
    return messages.ModelWarmup(name=name, batch_size=size, inputs=inputs)


# --- Python models and the ensemble ---


@dataclass(frozen=True)
class Port:
    """One input or output of a Python model."""

    name: str
    dtype: str
    """Triton's."""
    dims: tuple[int, ...]
    optional: bool = False


_ONE, _CUBE = (1,), (-1, -1, -1)


def _volumes(*, affine_optional: bool) -> tuple[Port, ...]:
    """Return the inputs that a scan comes in: exactly one of the volumes is given, (sequence, I, J, K)."""
    volumes = (Port(name, DTYPES[dtype], (-1, *_CUBE), optional=True) for name, dtype in wire.VOLUMES.items())
    return (*volumes, Port(wire.AFFINE, DTYPES["float64"], (4, 4), optional=affine_optional))


_SCAN = _volumes(affine_optional=False)
_ASKED = (
    *_SCAN,
    Port(wire.PROMPTS, TEXT, _ONE, optional=True),
    Port(wire.OPTIONS, TEXT, _ONE, optional=True),
)
_ANSWERED = (Port(wire.MASK, DTYPES["uint8"], _CUBE), Port(wire.REPORT, TEXT, _ONE))
_PREPARED = (Port(wire.PREPARED, DTYPES["float32"], (-1, *_CUBE)), Port(wire.TASK, TEXT, _ONE))
_REQUEST = (Port(wire.REQUEST, TEXT, _ONE), Port(wire.TOKEN, TEXT, _ONE, optional=True))
_CHANGE = (Port(wire.ANSWER, TEXT, _ONE), Port(wire.CHANGED, DTYPES["uint8"], _CUBE))


def role_ports(role: str, *, slices: bool) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Return inputs and outputs of a Python model; `slices` for methods that answer slice by slice."""
    result = Port(wire.LABELS, DTYPES["uint8"], _CUBE) if slices else Port(wire.LOGITS, DTYPES["float32"], (-1,))
    found = (Port(wire.FOUND, TEXT, _ONE), result)
    return {
        "preprocess": (_ASKED, _PREPARED),
        "refine": (_PREPARED, found),
        "postprocess": (found, _ANSWERED),
        SESSION: ((*_REQUEST, *_volumes(affine_optional=True)), _CHANGE),
    }[role]


def python_config(model: str, role: str, parameters: Mapping[str, str], *, slices: bool) -> str:
    """Return config.pbtxt of a Python model.

    One instance, on the CPU: its threads answer many requests at once, and what it remembers is in one process. It has
    no batching, and no sequence batching either: a session is found by its token, not by where it was sent.
    """
    messages = model_config()
    inputs, outputs = role_ports(role, slices=slices)
    config = messages.ModelConfig(
        name=model,
        backend="python",
        max_batch_size=0,
        input=_port_inputs(messages, inputs),
        output=_port_outputs(messages, outputs),
        instance_group=[messages.ModelInstanceGroup(kind=messages.ModelInstanceGroup.KIND_CPU, count=1)],
        parameters={key: messages.ModelParameter(string_value=value) for key, value in parameters.items()},
    )
    return _to_text(config)


def ensemble_config(name: str, *, slices: bool) -> str:
    """Return config.pbtxt of the ensemble `name`: preprocess, refine, postprocess."""
    messages = model_config()
    steps = []
    for role in ROLES:
        inputs, outputs = role_ports(role, slices=slices)
        steps.append(
            messages.ModelEnsembling.Step(
                model_name=f"{name}_{role}",
                model_version=-1,  # the newest, and the only one
                input_map={port.name: port.name for port in inputs},
                output_map={port.name: port.name for port in outputs},
            )
        )
    config = messages.ModelConfig(
        name=name,
        platform="ensemble",
        max_batch_size=0,
        input=_port_inputs(messages, _ASKED),
        output=_port_outputs(messages, _ANSWERED),
        ensemble_scheduling=messages.ModelEnsembling(step=steps),
    )
    return _to_text(config)


def _port_inputs(messages: ModuleType, ports: Sequence[Port]) -> list[Any]:
    return [messages.ModelInput(name=p.name, data_type=p.dtype, dims=p.dims, optional=p.optional) for p in ports]


def _port_outputs(messages: ModuleType, ports: Sequence[Port]) -> list[Any]:
    return [messages.ModelOutput(name=p.name, data_type=p.dtype, dims=p.dims) for p in ports]


# --- Text ---


def parse_config(text: str, model: str) -> Any:
    """Return the ModelConfig message of a config.pbtxt; raises ManifestError where it does not parse."""
    from google.protobuf import text_format  # comes with tritonclient

    message = model_config().ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise ManifestError(
            f"config.pbtxt of {model} does not parse ({str(error).splitlines()[0]}); mend it, or write the repository "
            "again"
        ) from error
    return message


def check_config(text: str, graph: GraphSpec) -> None:
    """Raise ManifestError unless a config.pbtxt, which someone may have edited, still describes `graph`."""
    config = parse_config(text, graph.name)
    needed, most = batch_size(graph), config.max_batch_size
    if most and not 0 < needed <= most <= graph.inputs[0].axes[0].max:
        allowed = f"0 or {needed} to {graph.inputs[0].axes[0].max}" if needed else "0"
        raise ManifestError(
            f"config.pbtxt of {graph.name} has max_batch_size {most} and it must be {allowed}, because the graph takes "
            f"no other batches and Triton splits no request; set it to {needed}"
        )
    dtype_name = model_config().DataType.Name
    for kind, found, specs in (("inputs", config.input, graph.inputs), ("outputs", config.output, graph.outputs)):
        there = [(tensor.name, dtype_name(tensor.data_type), list(tensor.dims)) for tensor in found]
        wanted = [(spec.name, _dtype(spec), _dims(spec, most)) for spec in specs]
        if sorted(there) != sorted(wanted):
            raise ManifestError(
                f"config.pbtxt of {graph.name} has the {kind} {_shown(there)}, its graph has {_shown(wanted)}; restore "
                "it, or write the repository again"
            )


def _shown(tensors: Sequence[tuple[str, str, list[int]]]) -> str:
    return ", ".join(f"{name} {dtype} {dims}" for name, dtype, dims in tensors) or "none"


def _to_text(config: Any) -> str:
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    return _HEADER + text
