"""Guards our stand-in for Triton's ONNX Runtime backend: the answers of a runner, whoever else asks."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from samkit.errors import ManifestError, ServingError, TensorMismatchError
from samkit.manifest import Manifest
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.wire import read_error
from samkit.triton_models.backends.onnxruntime.model import TritonPythonModel
from samkit.triton_models.model_config import batch_size
from samkit.triton_models.server import known_inputs


class FakeRequest:
    def __init__(self, inputs, outputs):
        self.inputs = inputs
        self.outputs = outputs

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
        version = tmp_path / name / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes((bright_export / f"{name}.onnx").read_bytes())
        config = {
            "name": f"bright_{name}",
            "max_batch_size": batch_size(graph),
            "default_model_filename": "model.onnx",
            "input": [{"name": spec.name} for spec in graph.inputs],
            "output": [{"name": spec.name} for spec in graph.outputs],
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


def crops(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 1, 32, 32, 32)).astype(np.float32)


def test_requests_of_equal_shape_run_once_a_lone_row_alone_and_all_get_their_own_rows(load, runs, expected):
    model = load("image_encoder")
    batches = runs(model)
    images = [crops(1, 1), crops(3, 2), crops(2, 3)]

    answers = model.execute([FakeRequest({"image": image}, ["image_embeddings"]) for image in images])

    assert batches == [1, 5]
    for image, answer in zip(images, answers, strict=True):
        alone = expected("image_encoder", {"image": image})["image_embeddings"]
        assert np.array_equal(answer.tensors["image_embeddings"], alone)


def test_a_request_that_fails_takes_no_other_along(load, runs):
    model = load("image_encoder")
    batches = runs(model)
    good, wrong_type = crops(2), crops(2).astype(np.float64)

    answers = model.execute([FakeRequest({"image": image}, ["image_embeddings"]) for image in (good, wrong_type, good)])

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

    answers = model.execute(requests)

    assert batches == [5, 2]
    assert [answer.error is None for answer in answers] == [True, False, True]


def test_without_a_batch_axis_every_request_runs_alone(load, graphs, expected):
    inputs = known_inputs(graphs["mask_decoder"])
    answers = load("mask_decoder").execute([FakeRequest(inputs, ["low_res_masks", "iou_predictions"])] * 2)

    for answer in answers:
        for name, array in expected("mask_decoder", inputs).items():
            assert np.array_equal(answer.tensors[name], array)


def test_only_outputs_that_were_asked_for_are_sent(load, graphs):
    (answer,) = load("mask_decoder").execute([FakeRequest(known_inputs(graphs["mask_decoder"]), ["iou_predictions"])])

    assert list(answer.tensors) == ["iou_predictions"]


def test_a_missing_input_is_an_error_of_its_request(load, graphs):
    inputs = known_inputs(graphs["mask_decoder"])
    whole = FakeRequest(inputs, ["iou_predictions"])
    part = FakeRequest({name: inputs[name] for name in ("image_embeddings", "mask_input")}, ["iou_predictions"])

    answers = load("mask_decoder").execute([part, whole])

    assert isinstance(read_error(answers[0].error), TensorMismatchError)
    assert answers[1].error is None


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
