"""Guards config.pbtxt: every one parses, says exactly what its graph takes and gives, and a wrong edit is found."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from google.protobuf import text_format

import samkit
from samkit.errors import ManifestError, MissingDependencyError
from samkit.manifest import Manifest
from samkit.methods import GraphSpec
from samkit.runtime import wire
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.tritonclient_library import model_config
from samkit.tensors import Axis, TensorSpec
from samkit.triton_models.model_config import (
    DTYPES,
    ROLES,
    SESSION,
    batch_size,
    check_config,
    ensemble_config,
    graph_config,
    parse_config,
    python_config,
    role_ports,
)

GRAPHS = {
    f"{name}-{size}-{graph.name}": graph
    for name in samkit.list_methods()
    for size in ("full", "tiny")
    for graph in samkit.get_method(name).graphs(samkit.get_method(name).sizes[size])
}
ROWS, POINTS = Axis("batch", 1, 1, 8), Axis("points", 0, 2, 64)
ENCODER = GraphSpec(
    "image_encoder",
    (TensorSpec("image", "float32", (ROWS, *(Axis.fixed(name, 512) for name in ("channel", "row", "column")))),),
    (TensorSpec("image_embeddings", "float32", (ROWS, Axis.fixed("channel", 16))),),
    {},
)
DECODER = GraphSpec(
    "mask_decoder",
    (TensorSpec("point_labels", "float32", (ROWS, POINTS)),),
    (TensorSpec("low_res_masks", "float32", (ROWS, Axis.fixed("row", 8))),),
    {},
)


def edited(text, change):
    """The config `text` after an administrator's `change` of the message."""
    message = parse_config(text, "model")
    change(message)
    return text_format.MessageToString(message)


# --- Graphs ---


@pytest.mark.parametrize("engine", [False, True])
@pytest.mark.parametrize("case", GRAPHS)
def test_config_of_every_graph_parses_and_is_its_spec(case, engine):
    graph = GRAPHS[case]
    text = graph_config(f"model_{graph.name}", graph, engine=engine)
    check_config(text, graph)
    config = parse_config(text, graph.name)
    dtype = model_config().DataType.Name
    for found, specs in ((config.input, graph.inputs), (config.output, graph.outputs)):
        batch = [-1] if config.max_batch_size else []
        there = {tensor.name: (dtype(tensor.data_type), batch + list(tensor.dims)) for tensor in found}
        assert there == {
            spec.name: (DTYPES[spec.dtype], [-1 if axis.is_dynamic else axis.opt for axis in spec.axes])
            for spec in specs
        }
    assert (config.platform, config.backend) == (("tensorrt_plan", "") if engine else ("", "onnxruntime"))
    assert config.default_model_filename == ("model.plan" if engine else "model.onnx")
    assert not config.parameters  # thread counts are the backend's


@pytest.mark.parametrize("case", GRAPHS)
def test_every_warm_up_sample_fits_its_graph(case):
    graph = GRAPHS[case]
    config = parse_config(graph_config("model", graph), "model")
    assert config.model_warmup
    for sample in config.model_warmup:
        batch = [sample.batch_size] if config.max_batch_size else []
        assert sample.batch_size <= max(config.max_batch_size, 1)
        assert set(sample.inputs) == {spec.name for spec in graph.inputs}
        for spec in graph.inputs:
            given = sample.inputs[spec.name]
            assert given.zero_data  # random bits are no labels
            spec.check(np.zeros([*batch, *given.dims], spec.dtype))


@pytest.mark.parametrize("case", [case for case in GRAPHS if case.endswith(("image_encoder", "detector", "stem"))])
def test_graphs_of_pictures_are_batched_and_warmed_at_both_ends(case):
    config = parse_config(graph_config("model", GRAPHS[case]), "model")
    assert config.max_batch_size >= 1
    assert config.HasField("dynamic_batching") == (config.max_batch_size > 1)
    assert {sample.batch_size for sample in config.model_warmup} == {1, config.max_batch_size}


@pytest.mark.parametrize(("side", "batch"), [(128, 8), (512, 4), (1024, 1)])
def test_slices_are_batched_as_sessions_send_them(side, batch):
    (image,) = ENCODER.inputs
    axes = (image.axes[0], *(Axis.fixed(axis.name, side) for axis in image.axes[1:]))
    graph = GraphSpec("image_encoder", (TensorSpec("image", "float32", axes),), ENCODER.outputs, {})
    assert batch_size(graph) == batch


@pytest.mark.parametrize("name", samkit.list_methods())
def test_decoders_are_never_batched(name):
    decoders = [graph for case, graph in GRAPHS.items() if case.startswith(f"{name}-full-mask_decoder")]
    assert decoders
    for graph in decoders:
        config = parse_config(graph_config("model", graph), "model")
        assert config.max_batch_size == 0
        assert not config.HasField("dynamic_batching")


def test_decoder_is_warmed_with_one_point_and_with_the_usual_number():
    config = parse_config(graph_config("model", DECODER), "model")
    assert {tuple(sample.inputs["point_labels"].dims) for sample in config.model_warmup} == {(1, 1), (1, 2)}


def test_dtype_without_a_name_in_triton_is_refused():
    graph = GraphSpec("g", (TensorSpec("x", "complex64", (ROWS,)),), ENCODER.outputs, {})
    with pytest.raises(ManifestError, match="tensor 'x' is complex64, which no model is served with"):
        graph_config("model", graph)


# --- The real files ---


def assert_fits_file(path, graph):
    """The config's names, dtypes and dims are those of the ONNX file's own inputs and outputs."""
    import onnxruntime

    OnnxRuntimeRunner(path, graph).close()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    config = parse_config(graph_config("model", graph), "model")
    batch = [-1] if config.max_batch_size else []
    for found, nodes in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        named = {node.name: [n if isinstance(n, int) else -1 for n in node.shape] for node in nodes}
        assert {tensor.name: batch + list(tensor.dims) for tensor in found} == named
        assert {node.type for node in nodes} == {"tensor(float)"}
        assert {tensor.data_type for tensor in found} == {model_config().TYPE_FP32}


def test_config_fits_the_files_of_a_click_method(bright_export):
    manifest = Manifest.load(bright_export)
    for graph in manifest.plan.specs:
        assert_fits_file(manifest.path(bright_export, graph.name, "fp32"), graph)


@pytest.mark.xdist_group("export")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_config_fits_the_files_of_a_real_export(tiny_export, precision):
    manifest = Manifest.load(tiny_export)
    for graph in manifest.plan.specs:
        assert_fits_file(manifest.path(tiny_export, graph.name, precision), graph)


# --- Edits ---


def test_tuning_is_allowed():
    def tune(config):
        config.max_batch_size = 8
        config.dynamic_batching.max_queue_delay_microseconds = 20_000
        config.instance_group.add(count=2)
        del config.model_warmup[:]

    check_config(edited(graph_config("model", ENCODER), tune), ENCODER)


def test_batching_can_be_switched_off_with_the_batch_axis_written_out():
    def switch_off(config):
        config.max_batch_size = 0
        for tensor in (*config.input, *config.output):
            tensor.dims.insert(0, -1)

    check_config(edited(graph_config("model", ENCODER), switch_off), ENCODER)


@pytest.mark.parametrize(
    ("graph", "size", "allowed"), [(ENCODER, 3, "0 or 4 to 8"), (ENCODER, 9, "0 or 4 to 8"), (DECODER, 8, "0")]
)
def test_batch_that_requests_do_not_fit_is_refused(graph, size, allowed):
    text = edited(graph_config("model", graph), lambda config: setattr(config, "max_batch_size", size))
    with pytest.raises(ManifestError, match=f"max_batch_size {size} and it must be {allowed}, "):
        check_config(text, graph)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: setattr(config.input[0], "name", "picture"),
        lambda config: setattr(config.input[0], "data_type", model_config().TYPE_FP16),
        lambda config: config.input[0].dims.append(1),
        lambda config: config.input[0].dims.__setitem__(0, 4),
        lambda config: config.input.add(name="more", data_type=model_config().TYPE_FP32, dims=[1]),
        lambda config: config.input.append(config.input[0]),
        lambda config: config.output.pop(),
    ],
)
def test_config_that_left_its_graph_is_refused(change):
    with pytest.raises(ManifestError, match=r"of image_encoder has the (inputs|outputs) .*, its graph has .*; restore"):
        check_config(edited(graph_config("model", ENCODER), change), ENCODER)


@pytest.mark.parametrize("text", ["name: ", "max_batch_size: many", "inputs { }", '{"name": "json"}'])
def test_config_that_does_not_parse_is_a_sentence(text):
    with pytest.raises(ManifestError, match=r"config\.pbtxt of image_encoder does not parse"):
        check_config(text, ENCODER)


# --- Python models and the ensemble ---


@pytest.mark.parametrize("slices", [False, True])
def test_ensemble_hands_every_tensor_on_as_it_was(slices):
    config = parse_config(ensemble_config("m_sam", slices=slices), "m_sam")
    assert config.platform == "ensemble"
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["m_sam_preprocess", "m_sam_refine", "m_sam_postprocess"]
    known = {tensor.name: (tensor.data_type, list(tensor.dims), tensor.optional) for tensor in config.input}
    for step, role in zip(steps, ROLES, strict=True):
        model = parse_config(python_config(step.model_name, role, {}, slices=slices), role)
        assert dict(step.input_map) == {tensor.name: tensor.name for tensor in model.input}
        assert dict(step.output_map) == {tensor.name: tensor.name for tensor in model.output}
        for tensor in model.input:
            assert known[tensor.name] == (tensor.data_type, list(tensor.dims), tensor.optional)
        known |= {tensor.name: (tensor.data_type, list(tensor.dims), False) for tensor in model.output}
    assert {t.name: (t.data_type, list(t.dims), False) for t in config.output}.items() <= known.items()


def test_ensemble_takes_one_of_the_volumes_and_always_an_affine():
    config = parse_config(ensemble_config("sam", slices=True), "sam")
    optional = {tensor.name for tensor in config.input if tensor.optional}
    assert optional == {*wire.VOLUMES, wire.PROMPTS, wire.OPTIONS}
    assert {tensor.name for tensor in config.input} - optional == {wire.AFFINE}


def test_session_requires_nothing_but_a_request():
    inputs, outputs = role_ports(SESSION, slices=False)
    assert [port.name for port in inputs if not port.optional] == [wire.REQUEST]
    assert [port.name for port in outputs] == [wire.ANSWER, wire.CHANGED]


@pytest.mark.parametrize("role", [*ROLES, SESSION])
def test_python_model_is_one_instance_without_batching(role):
    text = python_config(f"sam_{role}", role, {"samkit_name": "sam", "precision": "fp16"}, slices=True)
    config = parse_config(text, role)
    assert (config.name, config.backend, config.max_batch_size) == (f"sam_{role}", "python", 0)
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, model_config().ModelInstanceGroup.KIND_CPU)
    assert not config.HasField("dynamic_batching")
    assert not config.HasField("sequence_batching")
    assert {key: entry.string_value for key, entry in config.parameters.items()} == {
        "samkit_name": "sam",
        "precision": "fp16",
    }


# --- The library ---


@pytest.mark.parametrize("function", ["grpc", "http", "model_config"])
def test_missing_client_library_names_the_extra(monkeypatch, function):
    from samkit.runtime import tritonclient_library

    for name in ("tritonclient", "tritonclient.grpc", "tritonclient.http", "tritonclient.grpc.model_config_pb2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'samkit\[client\]'"):
        getattr(tritonclient_library, function)()
