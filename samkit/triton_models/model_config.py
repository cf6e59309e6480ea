"""config.pbtxt of every model: names, dtypes and dims of a graph from its GraphSpec, those of Python models from here.

They are built as Triton's own protobuf messages and written by protobuf, so that each one parses. Models that run as an
engine have a config, too; none of those was ever loaded: untested.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from samkit.errors import ManifestError, ServingError
from samkit.methods import GraphSpec
from samkit.runtime.backends.tensorrt_library import EAGER, LAZY
from samkit.runtime.backends.tensorrt_runner import POINTS
from samkit.runtime.client.tritonclient_library import model_config
from samkit.runtime.loops.slices import encoder_batch
from samkit.runtime.protocol import wire
from samkit.tensors import TensorSpec
from samkit.triton_models.limits import LIMITS, Limits

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

_ENGINE = "tensorrt_plan"
"""Triton's platform of a TensorRT engine."""
_FACTS = ("samkit_name", "precision", "manifest", "engines")
"""Parameters that every Python model reads, besides its limits."""

MASKS = "low_res_masks"
"""What decoders return, and no other graph."""
_BATCH = "batch"
LARGEST = "largest"
"""Parameter of a graph's model: JSON of each input's largest shape, batch axis first. Our stand-in refuses what is
larger before it runs, and so do engines behind the Python backend; the C++ backend ignores the parameter. Engines of
Triton's own have none: their profile says it."""
GRAPH, PRECISION, KERNELS = "graph", "precision", "kernels"
"""Parameters of an engine behind the Python backend: which one it is, and whether kernels for a new shape are compiled
`lazy` or `eager`."""

_HEADER = "# Written by sam-serve write, which replaces this file when it writes again.\n"
_GRAPH_EDITS = """\
# Batching, instances and warm-up may be changed here; sam-serve check holds names, dtypes and dims to the graph.
"""
_PYTHON_EDITS = "# Limits among the parameters may be changed here, and how many instances there are.\n"
_SESSION_EDITS = """\
# Limits among the parameters may be changed here. There must be one instance, on the CPU and without batching: all that
# sessions remember is in one process.
"""
_ENSEMBLE_EDITS = "# Nothing here is to be changed: it names the steps and hands their tensors on.\n"


# --- What graphs are ---


def request_rows(graph: GraphSpec) -> int:
    """Return how many rows the largest request of a session has; 0 where Triton must not batch.

    The batcher merges requests and never splits one, so whoever sends more than a model takes gets an error.
    """
    # Sessions send a decoder one picture's prompts at a time. Their number differs, so there is little to merge, and
    # every click would wait for it. And a click must get the bits that it gets alone: in a batch, ONNX Runtime on the
    # CPU moved brainseg-dmif's logits by 1e-5.
    tensors = (*graph.inputs, *graph.outputs)
    if any(spec.name == MASKS or spec.axes[0].name != _BATCH for spec in tensors):
        return 0
    return encoder_batch(graph) if _is_encoder_of_slices(graph) else graph.inputs[0].axes[0].max


def batch_size(graph: GraphSpec, *, engine: bool = False) -> int:
    """Return the model's max_batch_size; 0 where Triton must not batch.

    An encoder of slices takes twice what one session sends: were it the same, a session's full request would be a batch
    by itself, and no two of them ever share one. An engine takes no more than its profile, which ends with the axis.
    """
    rows = request_rows(graph)
    if not rows or not _is_encoder_of_slices(graph):
        return rows
    return min(2 * rows, _most_rows(graph, engine=engine))


def _is_encoder_of_slices(graph: GraphSpec) -> bool:
    return graph.name == "image_encoder" and len(graph.inputs[0].axes) == len(("batch", "channel", "row", "column"))


def _most_rows(graph: GraphSpec, *, engine: bool) -> int:
    """Return the largest batch that a model of `graph` may be set to: where its first axis ends.

    That is what sessions and profiles keep to; an ONNX file with a dynamic axis runs any batch of two sessions as well.
    """
    axis = graph.inputs[0].axes[0]
    is_shared = axis.is_dynamic and not engine and _is_encoder_of_slices(graph)
    return max(axis.max, 2 * request_rows(graph)) if is_shared else axis.max


def graph_config(model: str, graph: GraphSpec, *, engine: bool = False, rtx: str | None = None) -> str:
    """Return config.pbtxt of the model that runs `graph`; as a TensorRT engine with `engine`, as one of TensorRT for
    RTX where `rtx` is its precision (both untested).

    Thread counts are the backend's defaults. Raises MissingDependencyError without tritonclient.
    """
    messages, batch = model_config(), batch_size(graph, engine=engine or rtx is not None)
    parameters = {} if engine else {LARGEST: _largest(graph, engine=rtx is not None)}
    if rtx is not None:
        parameters |= {GRAPH: graph.name, PRECISION: rtx, KERNELS: LAZY}
    config = messages.ModelConfig(
        name=model,
        max_batch_size=batch,
        input=[_graph_tensor(messages.ModelInput, spec, batch) for spec in graph.inputs],
        output=[_graph_tensor(messages.ModelOutput, spec, batch) for spec in graph.outputs],
        default_model_filename="" if rtx is not None else ENGINE_FILE if engine else ONNX_FILE,
        model_warmup=[_warmup(messages, graph, *bucket) for bucket in _buckets(graph, batch)],
        parameters={key: messages.ModelParameter(string_value=value) for key, value in parameters.items()},
    )
    # Triton would make two on a CPU: twice the memory, and batches cut in half. On a GPU it is one by default. An
    # engine behind the Python backend finds the first GPU itself, and one is enough
    config.instance_group.add(count=1, kind="KIND_AUTO" if rtx is None else "KIND_CPU")
    if rtx is not None:
        config.backend = "python"
    elif engine:
        config.platform = _ENGINE
    else:
        config.backend = "onnxruntime"
    if batch > 1:
        config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY
    return _to_text(config, _GRAPH_EDITS)


def _largest(graph: GraphSpec, *, engine: bool) -> str:
    """Return LARGEST's value. Where Triton batches, the batch axis goes as far as max_batch_size may."""
    shapes = {spec.name: [axis.max for axis in spec.axes] for spec in graph.inputs}
    if request_rows(graph):
        for shape in shapes.values():
            shape[0] = _most_rows(graph, engine=engine)
    return json.dumps(shapes)


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
    batched = request_rows(graph) > 0
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


_ONE, _CUBE = (1,), (-1, -1, -1)


_SCAN = (
    *(Port(name, DTYPES[dtype], (-1, *_CUBE)) for name, dtype in wire.VOLUMES.items()),
    Port(wire.AFFINE, DTYPES["float64"], (4, 4)),
)
"""The inputs that a scan comes in: exactly one of the volumes, (sequence, I, J, K), and the affine."""
_ASKED = (
    *_SCAN,
    Port(wire.PROMPTS, TEXT, _ONE),
    Port(wire.OPTIONS, TEXT, _ONE),
)
_ANSWERED = (Port(wire.MASK, DTYPES["uint8"], _CUBE), Port(wire.REPORT, TEXT, _ONE))
_PREPARED = (Port(wire.PREPARED, DTYPES["float32"], (-1, *_CUBE)), Port(wire.TASK, TEXT, _ONE))
_REQUEST = (Port(wire.REQUEST, TEXT, _ONE), Port(wire.TOKEN, TEXT, _ONE))
_CHANGE = (Port(wire.ANSWER, TEXT, _ONE), Port(wire.CHANGED, DTYPES["uint8"], _CUBE))


def role_ports(role: str, *, slices: bool) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Return inputs and outputs of a Python model; `slices` for methods that answer slice by slice."""
    result = Port(wire.LABELS, DTYPES["uint8"], _CUBE) if slices else Port(wire.LOGITS, DTYPES["float32"], (-1,))
    found = (Port(wire.FOUND, TEXT, _ONE), result)
    return {
        "preprocess": (_ASKED, _PREPARED),
        "refine": (_PREPARED, found),
        "postprocess": (found, _ANSWERED),
        SESSION: ((*_REQUEST, *_SCAN), _CHANGE),
    }[role]


def python_config(model: str, role: str, parameters: Mapping[str, str], *, slices: bool) -> str:
    """Return config.pbtxt of a Python model.

    One instance, on the CPU: its threads answer many requests at once, and what a session remembers is in one process.
    It has no batching, and no sequence batching either: a session is found by its token, not by where it was sent.
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
    return _to_text(config, _SESSION_EDITS if role == SESSION else _PYTHON_EDITS)


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
    return _to_text(config, _ENSEMBLE_EDITS)


def _port_inputs(messages: ModuleType, ports: Sequence[Port]) -> list[Any]:
    """Return inputs that are optional to Triton: the model says what it lacks, and counts it, where Triton's ensemble
    would say "unexpected deadlock".
    """
    return [messages.ModelInput(name=p.name, data_type=p.dtype, dims=p.dims, optional=True) for p in ports]


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
    is_rtx = GRAPH in config.parameters
    engine = is_rtx or config.platform == _ENGINE
    needed, most, highest = request_rows(graph), config.max_batch_size, _most_rows(graph, engine=engine)
    if most and not 0 < needed <= most <= highest:
        allowed = f"0 or {needed} to {highest}" if needed else "0"
        raise ManifestError(
            f"config.pbtxt of {graph.name} has max_batch_size {most} and it must be {allowed}, because the graph takes "
            f"no other batches and Triton splits no request; set it to {batch_size(graph, engine=engine)}"
        )
    for kind, found, specs in (("inputs", config.input, graph.inputs), ("outputs", config.output, graph.outputs)):
        _check_tensors(graph.name, kind, found, [(spec.name, _dtype(spec), _dims(spec, most)) for spec in specs])
    if engine and not is_rtx:
        return
    expected = _largest(graph, engine=engine)
    if (largest := config.parameters[LARGEST].string_value) != expected:
        raise ManifestError(
            f"config.pbtxt of {graph.name} has the parameter {LARGEST} '{largest:.200}', needed is "
            f"'{expected}'; restore it, or write the repository again"
        )
    if is_rtx and (kernels := config.parameters[KERNELS].string_value) not in (LAZY, EAGER):
        raise ManifestError(
            f"config.pbtxt of {graph.name} has the parameter {KERNELS} '{kernels:.80}', needed is {LAZY} or {EAGER}; "
            "set it to one of them"
        )


def check_python_config(text: str, model: str, role: str, *, slices: bool) -> None:
    """Raise ManifestError or ServingError unless the config.pbtxt of a Python model can still be served."""
    config = parse_config(text, model)
    inputs, outputs = role_ports(role, slices=slices)
    _check_tensors(model, "inputs", config.input, [(port.name, port.dtype, list(port.dims)) for port in inputs])
    _check_tensors(model, "outputs", config.output, [(port.name, port.dtype, list(port.dims)) for port in outputs])
    if found := sorted(tensor.name for tensor in config.input if not tensor.optional):
        raise ManifestError(
            f"config.pbtxt of {model} makes {', '.join(found)} necessary, and the model says itself what it lacks; "
            "restore `optional`"
        )
    if config.max_batch_size or config.HasField("dynamic_batching") or config.HasField("sequence_batching"):
        raise ManifestError(
            f"config.pbtxt of {model} has batching, and its tensors have no batch axis; set max_batch_size to 0 and "
            "take the batcher out"
        )
    groups = [(group.kind, group.count) for group in config.instance_group]
    if role == SESSION and groups != [(model_config().ModelInstanceGroup.KIND_CPU, 1)]:
        raise ManifestError(
            f"config.pbtxt of {model} has {sum(count for _, count in groups)} instance(s) in {len(groups)} group(s), "
            "needed is one on the CPU, because all that sessions remember is in one process; set count to 1 and kind "
            "to KIND_CPU"
        )
    parameters = {key: entry.string_value for key, entry in config.parameters.items()}
    if missing := [name for name in (*_FACTS, *LIMITS[role]) if name not in parameters]:
        raise ManifestError(
            f"config.pbtxt of {model} lacks the parameter {', '.join(missing)}; restore it, or write the repository "
            "again"
        )
    try:
        Limits.from_parameters(parameters)
    except ServingError as error:
        raise ServingError(f"config.pbtxt of {model}: {error}") from error


def _check_tensors(model: str, kind: str, found: Sequence[Any], wanted: list[tuple[str, str, list[int]]]) -> None:
    dtype_name = model_config().DataType.Name
    there = [(tensor.name, dtype_name(tensor.data_type), list(tensor.dims)) for tensor in found]
    if sorted(there) != sorted(wanted):
        raise ManifestError(
            f"config.pbtxt of {model} has the {kind} {_shown(there)}, needed are {_shown(wanted)}; restore it, or "
            "write the repository again"
        )


def _shown(tensors: Sequence[tuple[str, str, list[int]]]) -> str:
    return ", ".join(f"{name} {dtype} {dims}" for name, dtype, dims in tensors) or "none"


def _to_text(config: Any, edits: str) -> str:
    """Return the file: who wrote it, what may be changed in it, the config."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    return _HEADER + edits + text
