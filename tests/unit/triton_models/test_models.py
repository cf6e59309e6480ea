"""The Python models of a written repository, loaded as Triton loads them, answer as the export does in-process."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading

import numpy as np
import pytest
from google.protobuf import json_format

from samkit.errors import PromptError, SamkitError, ServingError, TensorMismatchError, UnknownSession
from samkit.geometry import Volume
from samkit.manifest import Manifest
from samkit.runtime import open_session
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.failure import read_error
from samkit.triton_models.limits import Limits
from samkit.triton_models.model_config import parse_config
from samkit.triton_models.repository import MODELS, write_repository
from support import stand_ins as the
from support.bright_slices import write_export

ROLES = ("preprocess", "refine", "postprocess", "session")


@pytest.fixture(scope="module")
def exports(bright_export, tmp_path_factory):
    """An export of each kind, by its name on the server."""
    slices = tmp_path_factory.mktemp("bright-slices")
    write_export(slices, "sam")
    return {"sam_med3d": bright_export, "sam": slices}


@pytest.fixture(scope="module")
def repository(exports, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "models"
    write_repository(list(exports.values()), folder, limits=Limits(max_sessions=2, max_voxels=100_000))
    return folder


class Server:
    """Loads Python models and asks them, as Triton does; the graphs are runners in this process."""

    def __init__(self, exports, repository):
        self.models, self.loaded, self.runners = {}, [], []
        self.utils = the.fake_backend(self.models)
        self.repository = repository
        for name, folder in exports.items():
            for spec in Manifest.load(folder).plan.specs:
                runner = OnnxRuntimeRunner(folder / f"{spec.name}.onnx", spec)
                self.runners.append(runner)
                self.models[f"{name}_{spec.name}"] = runner.run

    def load(self, model):
        folder = self.repository / model
        config = parse_config((folder / "config.pbtxt").read_text(), model)
        spec = importlib.util.spec_from_file_location(f"model_{model}_{len(self.loaded)}", folder / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        instance = module.TritonPythonModel()
        told = json_format.MessageToDict(
            config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        instance.initialize(
            {
                "model_config": json.dumps(told),
                "model_repository": str(folder),
                "model_version": "1",
                "model_name": model,
                "model_instance_kind": "CPU",
            }
        )
        self.loaded.append(instance)
        return instance

    def ask(self, instance, **tensors):
        """Return the response to one request, whether it comes at once or from a thread."""
        request = the.Request(**tensors)
        answers = instance.execute([request])
        if answers is not None:
            (response,) = answers
            return response
        assert request.sender.sent.wait(60)
        assert request.sender.flags == self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        return request.sender.response

    def close(self):
        for instance in self.loaded:
            getattr(instance, "finalize", lambda: None)()
        for runner in self.runners:
            runner.close()


@pytest.fixture
def server(exports, repository, monkeypatch):
    running = Server(exports, repository)
    # This process is no server's: its heap stays as it is
    monkeypatch.setattr("samkit.triton_models.python_backend.keep_heap", lambda: None)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", running.utils)
    try:
        yield running
    finally:
        running.close()


def error_of(response):
    return read_error(response.error().message())


def prompts_for(name, array):
    places = [the.bright_voxel(array, number) for number in range(3)]
    if name == "sam_med3d":
        return [{"point": place, "label": label} for place, label in zip(places, (1, 1, 0), strict=True)]
    k = places[0][2]
    return [{"box": [1, 1, k, 38, 34, k]}, {"point": places[1], "label": 1}]


def in_process(folder, array, affine, prompts):
    with open_session(folder) as session:
        session.set_image(Volume(array, affine))
        for prompt in prompts:
            act = session.click if "point" in prompt else session.box
            words = (
                (prompt["point"], prompt["label"] == 1) if "point" in prompt else (prompt["box"][:3], prompt["box"][3:])
            )
            act(*words)
        return session.labels()


def test_models_of_the_repository_are_the_files_that_are_checked(repository):
    for name in ("sam", "sam_med3d"):
        for role in ROLES:
            copied = repository / f"{name}_{role}" / "1" / "model.py"
            assert copied.read_bytes() == (MODELS / f"{role}.py").read_bytes()


@pytest.mark.parametrize("name", ["sam_med3d", "sam"])
def test_three_steps_give_the_exports_mask(name, server, exports):
    array, affine = the.scan(1), the.oblique()
    prompts = prompts_for(name, array)
    models = [server.load(f"{name}_{role}") for role in ("preprocess", "refine", "postprocess")]
    tensors = {"volume_int16": array[None], "affine": affine, "prompts": wire.encode(prompts)}
    for model in models:
        response = server.ask(model, **tensors)
        tensors = {key: response.array(key) for key in response.tensors}
    report = wire.decode(tensors["report"], "report")

    assert np.array_equal(tensors["mask"], in_process(exports[name], array, affine, prompts))
    assert tensors["mask"].any()
    assert report["manifest_sha256"] == Manifest.load(exports[name]).digest
    assert server.utils.lines == []


@pytest.mark.parametrize("name", ["sam_med3d", "sam"])
def test_session_gives_the_exports_mask_after_every_prompt(name, server, exports):
    array, affine = the.scan(1), the.FLIPPED
    prompts = prompts_for(name, array)
    model = server.load(f"{name}_session")
    response = server.ask(
        model, request=wire.encode({"op": "open", "sequences": [""]}), volume_int16=array[None], affine=affine
    )
    token = wire.decode(response.array("answer"), "answer")["token"]
    labels = np.zeros(array.shape, np.uint8)
    for turn, prompt in enumerate(prompts, 1):
        request = {"op": "click" if "point" in prompt else "box", "turn": turn, **prompt}
        response = server.ask(model, request=wire.encode(request), token=np.array([token.encode()], object))
        answer = wire.decode(response.array("answer"), "answer")
        labels[tuple(slice(*side) for side in answer["region"])] = response.array("changed")
        assert np.array_equal(labels, in_process(exports[name], array, affine, prompts[:turn]))
    assert labels.any()
    assert token not in "\n".join(server.utils.lines)


def test_refusals_and_bugs_are_answers_of_every_model(server):
    nothing = {"request": wire.encode({}), "found": wire.encode({}), "task": wire.encode({})}
    for name in ("sam_med3d", "sam"):
        for role in ROLES:
            model = server.load(f"{name}_{role}")
            empty, wrong = error_of(server.ask(model)), error_of(server.ask(model, **nothing))
            assert isinstance(empty, SamkitError)
            assert isinstance(wrong, SamkitError)
            assert "/" not in str(wrong)


def test_session_without_a_token_or_request_is_refused(server):
    model = server.load("sam_session")

    assert type(error_of(server.ask(model, request=wire.encode({"op": "state"})))) is UnknownSession
    assert type(error_of(server.ask(model))) is PromptError
    assert type(error_of(server.ask(model, request=np.array([b"{"], object)))) is TensorMismatchError


def test_limits_are_those_of_the_config(server):
    session = server.load("sam_session")
    preprocess = server.load("sam_preprocess")

    assert session.host._served.limits == Limits(max_sessions=2, max_voxels=100_000)
    large = {"volume_uint8": np.ones((1, 50, 50, 50), np.uint8), "affine": np.eye(4)}
    for response in (
        server.ask(session, request=wire.encode({"op": "open"}), **large),
        server.ask(preprocess, **large),
        server.ask(server.load("sam_refine"), prepared=np.ones((1, 50, 50, 50), np.float32), task=wire.encode({})),
    ):
        assert "this server's limit is 100000" in str(error_of(response))


def test_description_is_the_exports(server, exports):
    for name, kind in (("sam_med3d", "volume"), ("sam", "slices")):
        response = server.ask(server.load(f"{name}_session"), request=wire.encode({"op": "describe"}))
        described = wire.decode(response.array("answer"), "answer")
        assert described["kind"] == kind
        assert described["providers"]["image_encoder"] == [f"triton model {name}_image_encoder"]
        assert described["digest"] == Manifest.load(exports[name]).digest
        assert response.array("changed").shape == (0, 0, 0)


def test_metrics_follow_the_sessions(server):
    array = the.scan(1)
    model = server.load("sam_med3d_session")
    model.ends = True  # figures are shown below alone
    model.news.set()
    model.looker.join(60)
    response = server.ask(model, request=wire.encode({"op": "open"}), volume_int16=array[None], affine=np.eye(4))
    token = np.array([wire.decode(response.array("answer"), "answer")["token"].encode()], object)
    click = {"op": "click", "turn": 1, "point": the.bright_voxel(array), "label": 1}
    server.ask(model, request=wire.encode(click), token=token)
    model.show()
    label = (("name", "sam_med3d"),)
    values = {family.name: family.values for family in server.utils.families}

    assert values["samkit_sessions_open"] == {label: 1}
    assert values["samkit_clicks_total"] == {label: 1}
    assert values["samkit_cache_misses_total"] == {label: 1}
    assert (*label, ("stage", "decode")) in values["samkit_stage_seconds_total"]
    server.ask(model, request=wire.encode({"op": "close"}), token=token)
    model.show()
    assert values["samkit_sessions_open"] == {label: 0}


def test_figures_are_shown_after_an_answer_and_never_before_it(server, monkeypatch):
    model = server.load("sam_session")
    shows, leave, shown = threading.Event(), threading.Event(), threading.Event()

    def show():
        shows.set()
        assert leave.wait(60)
        shown.set()

    monkeypatch.setattr(model, "show", show)
    monkeypatch.setitem(type(model).look.__globals__, "LOOK_SECONDS", 600)
    describe = {"request": wire.encode({"op": "describe"})}
    server.ask(model, **describe)
    assert shows.wait(60)
    server.ask(model, **describe)  # is answered while figures are being shown
    assert not shown.is_set()
    leave.set()

    assert shown.wait(60)


def test_sessions_that_nobody_uses_are_looked_for_whatever_fails(server, monkeypatch):
    model = server.load("sam_session")
    model.finalize()
    looked, times = threading.Event(), []

    def look():
        times.append(1)
        if len(times) == 1:
            raise RuntimeError("smith^john")
        looked.set()

    monkeypatch.setattr(model.host, "drop_idle", look)
    monkeypatch.setitem(type(model).look.__globals__, "LOOK_SECONDS", 0.001)
    model.ends = False
    model.looker = threading.Thread(target=model.look)
    model.looker.start()
    assert looked.wait(60)
    model.finalize()

    assert not model.looker.is_alive()
    assert server.utils.lines == ["RuntimeError while sessions were looked after; they go on"]


def test_ending_answers_what_was_asked(server):
    """A request at work when the server stops is answered, and no thread is left."""
    model = server.load("sam_med3d_session")
    entered, leave = threading.Event(), threading.Event()
    encode = server.models["sam_med3d_image_encoder"]

    def slowly(inputs):
        entered.set()
        assert leave.wait(60)
        return encode(inputs)

    server.models["sam_med3d_image_encoder"] = slowly
    array = the.scan(1)
    response = server.ask(model, request=wire.encode({"op": "open"}), volume_int16=array[None], affine=np.eye(4))
    token = np.array([wire.decode(response.array("answer"), "answer")["token"].encode()], object)
    click = wire.encode({"op": "click", "turn": 1, "point": the.bright_voxel(array), "label": 1})
    request = the.Request(request=click, token=token)
    model.execute([request])
    assert entered.wait(60)
    ending = threading.Thread(target=model.finalize)
    ending.start()
    leave.set()
    ending.join(60)

    assert wire.decode(request.sender.response.array("answer"), "answer")["turn"] == 1
    assert not model.looker.is_alive()


def test_failing_graph_says_which_model_and_leaves_the_session(server):
    model = server.load("sam_med3d_session")
    array = the.scan(1)
    response = server.ask(model, request=wire.encode({"op": "open"}), volume_int16=array[None], affine=np.eye(4))
    token = np.array([wire.decode(response.array("answer"), "answer")["token"].encode()], object)
    click = wire.encode({"op": "click", "turn": 1, "point": the.bright_voxel(array), "label": 1})
    works = server.models.pop("sam_med3d_image_encoder")
    failed = error_of(server.ask(model, request=click, token=token))
    server.models["sam_med3d_image_encoder"] = works
    again = wire.decode(server.ask(model, request=click, token=token).array("answer"), "answer")

    assert type(failed) is ServingError
    assert "model sam_med3d_image_encoder failed" in str(failed)
    assert again["turn"] == 1
