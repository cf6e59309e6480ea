"""Guards our stand-in for Triton's ONNX Runtime backend: the answers of a runner, at once, whoever else asks."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from samkit.errors import ManifestError, ServingError, TensorMismatchError
from samkit.manifest import Manifest
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.protocol.failure import read_error
from samkit.triton_models.backends.onnxruntime.model import TritonPythonModel
from samkit.triton_models.model_config import batch_size, graph_config, parse_config
from samkit.triton_models.server import known_inputs

FINAL = 1


class FakeRequest:
    def __init__(self, inputs, outputs):
        self.inputs = inputs
        self.outputs = outputs
        self.answers = []

    def get_response_sender(self):
        return self

    def send(self, response, flags):
        assert flags == FINAL
        self.answers.append(response)

    @property
    def answer(self):
        (answer,) = self.answers
        return answer

    def requested_output_names(self):
        return self.outputs


def find_tensor(request, name):
    found = request.inputs.get(name)
    return None if found is None else SimpleNamespace(as_numpy=lambda: found)


@pytest.fixture(autouse=True)
def _backend(monkeypatch):
    """What Triton's Python backend offers its models, as far as this one uses it."""
    utils = SimpleNamespace(
        get_input_tensor_by_name=find_tensor,
        Tensor=lambda name, array: (name, array),
        TritonError=str,
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(tensors=dict(tensors), error=error),
        Logger=SimpleNamespace(log_error=lambda text: None),
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)


@pytest.fixture(scope="module")
def graphs(bright_export):
    return {spec.name: spec for spec in Manifest.load(bright_export).plan.specs}


@pytest.fixture
def load(bright_export, graphs, tmp_path):
    """Return a function that loads a graph's model as Triton would."""

    def load(name, kind="CPU"):
        graph = graphs[name]
        parameters = parse_config(graph_config(name, graph), name).parameters
        version = tmp_path / name / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes((bright_export / f"{name}.onnx").read_bytes())
        config = {
            "name": f"bright_{name}",
            "max_batch_size": batch_size(graph),
            "default_model_filename": "model.onnx",
            "input": [{"name": spec.name} for spec in graph.inputs],
            "output": [{"name": spec.name} for spec in graph.outputs],
            "parameters": {"largest": {"string_value": parameters["largest"].string_value}},
        }
        model = TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(tmp_path / name),
                "model_version": "1",
                "model_instance_kind": kind,
            }
        )
        return model

    return load


@pytest.fixture
def expected(bright_export, graphs):
    """Return a function that gives what a runner answers."""

    def expected(name, inputs):
        with OnnxRuntimeRunner(bright_export / f"{name}.onnx", graphs[name]) as runner:
            return runner.run(inputs)

    return expected


@pytest.fixture
def runs(monkeypatch):
    """Return a function that counts a model's runs of its graph, in a list that grows."""

    def count(model):
        session, batches = model._session, []

        def run(names, feed):
            batches.append(len(feed["image"]))
            return session.run(names, feed)

        monkeypatch.setattr(model, "_session", SimpleNamespace(run=run))
        return batches

    return count


def ask(model, *requests):
    """The answers of the model to requests that come together, each of which gets one."""
    assert model.execute(requests) is None
    return [request.answer for request in requests]


def crops(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 1, 32, 32, 32)).astype(np.float32)


def test_requests_of_equal_shape_run_once_a_lone_row_alone_and_all_get_their_own_rows(load, runs, expected):
    model = load("image_encoder")
    batches = runs(model)
    images = [crops(1, 1), crops(3, 2), crops(2, 3)]

    answers = ask(model, *(FakeRequest({"image": image}, ["image_embeddings"]) for image in images))

    assert batches == [1, 5]
    for image, answer in zip(images, answers, strict=True):
        alone = expected("image_encoder", {"image": image})["image_embeddings"]
        assert np.array_equal(answer.tensors["image_embeddings"], alone)


def test_a_request_that_fails_takes_no_other_along(load, runs):
    model = load("image_encoder")
    batches = runs(model)
    good, wrong_type = crops(2), crops(2).astype(np.float64)

    answers = ask(model, *(FakeRequest({"image": i}, ["image_embeddings"]) for i in (good, wrong_type, good)))

    assert batches == [6, 2, 2, 2]
    assert [answer.error is None for answer in answers] == [True, False, True]
    error = read_error(answers[1].error)
    assert isinstance(error, ServingError)
    assert "could not run bright_image_encoder" in str(error)


def test_other_shapes_run_on_their_own(load, runs):
    model = load("image_encoder")
    batches = runs(model)
    requests = [
        FakeRequest({"image": image}, ["image_embeddings"]) for image in (crops(2), crops(2)[..., :16], crops(3))
    ]

    answers = ask(model, *requests)

    assert batches == [5, 2]
    assert [answer.error is None for answer in answers] == [True, False, True]


def test_without_a_batch_axis_every_request_runs_alone(load, graphs, expected):
    inputs = known_inputs(graphs["mask_decoder"])
    requests = [FakeRequest(inputs, ["low_res_masks", "iou_predictions"]) for _ in range(2)]
    answers = ask(load("mask_decoder"), *requests)

    for answer in answers:
        for name, array in expected("mask_decoder", inputs).items():
            assert np.array_equal(answer.tensors[name], array)


def test_only_outputs_that_were_asked_for_are_sent(load, graphs):
    request = FakeRequest(known_inputs(graphs["mask_decoder"]), ["iou_predictions"])
    (answer,) = ask(load("mask_decoder"), request)

    assert list(answer.tensors) == ["iou_predictions"]


def test_a_missing_input_is_an_error_of_its_request(load, graphs):
    inputs = known_inputs(graphs["mask_decoder"])
    whole = FakeRequest(inputs, ["iou_predictions"])
    part = FakeRequest({name: inputs[name] for name in ("image_embeddings", "mask_input")}, ["iou_predictions"])

    answers = ask(load("mask_decoder"), part, whole)

    assert isinstance(read_error(answers[0].error), TensorMismatchError)
    assert answers[1].error is None


def test_lone_rows_are_answered_each_when_it_is_done(load, monkeypatch):
    model = load("image_encoder")
    requests = [FakeRequest({"image": crops(1, seed)}, ["image_embeddings"]) for seed in range(3)]
    session, answered = model._session, []

    def run(names, feed):
        answered.append([len(request.answers) for request in requests])
        return session.run(names, feed)

    monkeypatch.setattr(model, "_session", SimpleNamespace(run=run))
    ask(model, *requests)

    assert answered == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


def test_bug_is_the_answer_to_its_request_alone(load, graphs, monkeypatch):
    model, inputs = load("mask_decoder"), known_inputs(graphs["mask_decoder"])
    monkeypatch.setattr(model, "run", lambda feed: {} if feed["point_labels"].any() else 1 / 0)
    answers = ask(model, *(FakeRequest({**inputs, "point_labels": label * np.ones((1, 1))}, []) for label in (0, 1)))

    assert "ZeroDivisionError in test_onnxruntime_backend.py" in str(read_error(answers[0].error))
    assert answers[1].error is None


@pytest.mark.parametrize("shape", [(17, 1, 32, 32, 32), (1, 1, 33, 32, 32), (1, 32, 32, 32)])
def test_input_larger_than_the_config_says_is_never_run(load, runs, shape):
    model = load("image_encoder")
    batches = runs(model)
    request = FakeRequest({"image": np.zeros(shape, np.float32)}, ["image_embeddings"])
    (answer,) = ask(model, request)

    assert batches == []
    error = read_error(answer.error)
    assert isinstance(error, TensorMismatchError)
    assert f"tensor 'image' is {list(shape)}, bright_image_encoder takes at most [8, 1, 32, 32, 32]" in str(error)


@pytest.mark.usefixtures("options_as_shipped")
def test_threads_of_a_served_graph_sleep_between_runs(load):
    options = load("mask_decoder")._session.get_session_options()

    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_file_that_is_no_graph_does_not_load(load, tmp_path):
    model = load("mask_decoder")
    model.finalize()
    (tmp_path / "mask_decoder" / "1" / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(ManifestError, match=r"can't load model\.onnx"):
        model.initialize(
            {
                "model_config": json.dumps({"name": "x", "max_batch_size": 0, "input": [], "output": []}),
                "model_repository": str(tmp_path / "mask_decoder"),
                "model_version": "1",
                "model_instance_kind": "CPU",
            }
        )
