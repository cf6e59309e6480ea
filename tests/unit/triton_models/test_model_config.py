"""Guards config.pbtxt: every one parses, says exactly what its graph takes and gives, and a wrong edit is found."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from google.protobuf import text_format

import samkit
from samkit.errors import ManifestError, MissingDependencyError, ServingError
from samkit.manifest import Manifest
from samkit.methods import GraphSpec
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.client.tritonclient_library import model_config
from samkit.runtime.protocol import wire
from samkit.tensors import Axis, TensorSpec
from samkit.triton_models.limits import LIMITS, Limits
from samkit.triton_models.model_config import (
    DTYPES,
    ROLES,
    SESSION,
    batch_size,
    check_config,
    check_python_config,
    ensemble_config,
    graph_config,
    parse_config,
    python_config,
    request_rows,
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
    assert set(config.parameters) == (set() if engine else {"largest"})  # thread counts are the backend's


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
            spec.check(np.zeros([*np.minimum(batch, spec.axes[0].max), *given.dims], spec.dtype))


@pytest.mark.parametrize("case", [case for case in GRAPHS if case.endswith(("image_encoder", "detector", "stem"))])
def test_graphs_of_pictures_are_batched_and_warmed_at_both_ends(case):
    config = parse_config(graph_config("model", GRAPHS[case]), "model")
    assert config.max_batch_size >= 1
    assert config.HasField("dynamic_batching") == (config.max_batch_size > 1)
    assert {sample.batch_size for sample in config.model_warmup} == {1, config.max_batch_size}


@pytest.mark.parametrize(
    ("case", "sent", "batch", "engine"),
    [
        ("sam-full-image_encoder", 1, 2, 2),  # 1024 pixels
        ("lora-sam-full-image_encoder", 4, 8, 8),  # 512
        ("sam-med2d-full-image_encoder", 8, 16, 8),  # 256; a profile ends with the axis
        ("m-sam-full-image_encoder", 8, 8, 8),  # a session sends one crop
        ("medsam-yolo-full-detector", 8, 8, 8),
    ],
)
def test_two_sessions_share_a_batch(case, sent, batch, engine):
    graph = GRAPHS[case]
    assert request_rows(graph) == sent
    assert (batch_size(graph), batch_size(graph, engine=True)) == (batch, engine)


def test_encoder_of_a_fixed_batch_is_not_served_with_another():
    one = Axis.fixed("batch", 1)
    tensors = [TensorSpec(s.name, s.dtype, (one, *s.axes[1:])) for s in (*ENCODER.inputs, *ENCODER.outputs)]
    assert batch_size(GraphSpec("image_encoder", (tensors[0],), (tensors[1],), {})) == 1


@pytest.mark.parametrize("case", GRAPHS)
def test_largest_shapes_let_through_what_the_graph_takes(case):
    graph = GRAPHS[case]
    config = parse_config(graph_config("model", graph), "model")
    largest = json.loads(config.parameters["largest"].string_value)
    assert set(largest) == {spec.name for spec in graph.inputs}
    for spec in graph.inputs:
        assert largest[spec.name][1:] == [axis.max for axis in spec.axes[1:]]
        assert largest[spec.name][0] == max(spec.axes[0].max, config.max_batch_size)


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


@pytest.mark.slow
@pytest.mark.xdist_group("export")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_config_fits_the_files_of_a_real_export(tiny_export, precision):
    manifest = Manifest.load(tiny_export)
    for graph in manifest.plan.specs:
        assert_fits_file(manifest.path(tiny_export, graph.name, precision), graph)


# --- Edits ---


def test_tuning_is_allowed():
    def tune(config):
        config.max_batch_size = 4
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


def test_largest_shapes_are_not_for_change():
    text = graph_config("model", DECODER).replace("64", "6400")
    with pytest.raises(ManifestError, match=r"has the parameter largest '.*6400.*', needed is .*; restore"):
        check_config(text, DECODER)


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
    with pytest.raises(ManifestError, match=r"of image_encoder has the (inputs|outputs) .*, needed are .*; restore"):
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
    known = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in config.input}
    assert all(tensor.optional for tensor in config.input)
    for step, role in zip(steps, ROLES, strict=True):
        model = parse_config(python_config(step.model_name, role, {}, slices=slices), role)
        assert dict(step.input_map) == {tensor.name: tensor.name for tensor in model.input}
        assert dict(step.output_map) == {tensor.name: tensor.name for tensor in model.output}
        for tensor in model.input:
            assert known[tensor.name] == (tensor.data_type, list(tensor.dims))
            assert tensor.optional
        known |= {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in model.output}
    assert {t.name: (t.data_type, list(t.dims)) for t in config.output}.items() <= known.items()


def test_all_inputs_are_optional_to_triton_so_that_samkit_says_which_is_missing():
    config = parse_config(ensemble_config("sam", slices=True), "sam")
    optional = {tensor.name for tensor in config.input if tensor.optional}
    assert optional == {*wire.VOLUMES, wire.AFFINE, wire.PROMPTS, wire.OPTIONS}
    assert {tensor.name for tensor in config.input} == optional


def test_session_answers_with_an_answer_and_what_changed():
    _, outputs = role_ports(SESSION, slices=False)
    assert [port.name for port in outputs] == [wire.ANSWER, wire.CHANGED]


@pytest.mark.parametrize("role", [*ROLES, SESSION])
def test_triton_requires_nothing_since_the_model_says_what_it_lacks(role):
    config = parse_config(python_text(role), role)
    assert all(tensor.optional for tensor in config.input)


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


PARAMETERS = {"samkit_name": "sam", "precision": "fp32", "manifest": "12ab", "engines": "", **{
    name: str(value) for name, value in vars(Limits()).items()
}}  # fmt: skip


def python_text(role):
    kept = {key: value for key, value in PARAMETERS.items() if key not in vars(Limits()) or key in LIMITS[role]}
    return python_config(f"sam_{role}", role, kept, slices=True)


@pytest.mark.parametrize("role", [*ROLES, SESSION])
def test_limits_of_a_python_model_may_be_changed(role):
    def tune(config):
        for name in LIMITS[role]:
            config.parameters[name].string_value = "3"

    check_python_config(edited(python_text(role), tune), f"sam_{role}", role, slices=True)


def test_instances_may_be_more_wherever_nothing_is_remembered():
    def double(config):
        config.instance_group[0].count = 2

    check_python_config(edited(python_text("preprocess"), double), "sam_preprocess", "preprocess", slices=True)
    with pytest.raises(ManifestError, match=r"of sam_session has 2 instance\(s\) in 1 group.*needed is one on the CPU"):
        check_python_config(edited(python_text(SESSION), double), "sam_session", SESSION, slices=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.instance_group.add(count=1, kind="KIND_CPU"), "2 instance"),
        (lambda config: config.instance_group.pop(), "0 instance"),
        (lambda config: setattr(config.instance_group[0], "kind", 1), "needed is one on the CPU"),
        (lambda config: setattr(config, "max_batch_size", 4), "has batching"),
        (lambda config: config.dynamic_batching.SetInParent(), "has batching"),
        (lambda config: config.sequence_batching.SetInParent(), "has batching"),
        (lambda config: setattr(config.parameters["threads"], "string_value", "many"), "the limit threads is 'many'"),
        (lambda config: setattr(config.parameters["max_voxels"], "string_value", "0"), "the limit max_voxels is 0"),
        (lambda config: config.parameters.pop("max_sessions"), "lacks the parameter max_sessions"),
        (lambda config: config.parameters.pop("samkit_name"), "lacks the parameter samkit_name"),
        (lambda config: config.input.pop(), "has the inputs"),
        (lambda config: setattr(config.output[0], "name", "reply"), "has the outputs"),
        (lambda config: setattr(config.input[1], "optional", False), "makes token necessary"),
    ],
)
def test_session_that_can_not_be_served_so_is_refused(change, words):
    with pytest.raises((ManifestError, ServingError), match=f"of sam_session.*{words}"):
        check_python_config(edited(python_text(SESSION), change), "sam_session", SESSION, slices=True)


def test_every_config_says_what_may_be_changed_in_it():
    graph, ensemble = graph_config("sam_image_encoder", ENCODER), ensemble_config("sam", slices=True)
    assert "# Batching, instances and warm-up may be changed" in graph
    assert "# Nothing here is to be changed" in ensemble
    assert "how many instances" in python_text("refine")
    assert "There must be one instance" in python_text(SESSION)


# --- The library ---


@pytest.mark.parametrize(("function", "extra"), [("grpc", "client"), ("http", "http"), ("model_config", "client")])
def test_missing_client_library_names_the_extra(monkeypatch, function, extra):
    from samkit.runtime.client import tritonclient_library

    for name in ("tritonclient", "tritonclient.grpc", "tritonclient.http", "tritonclient.grpc.model_config_pb2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install .*\[{extra}\]'"):
        getattr(tritonclient_library, function)()
