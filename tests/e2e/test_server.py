"""The embedded server: it serves what an export gives in-process or does not start, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import samkit
from samkit.errors import ServingError
from samkit.geometry import Volume
from samkit.manifest import Manifest
from samkit.runtime import open_session
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.client import tritonclient_library
from samkit.runtime.loops.slices import encoder_batch
from samkit.runtime.protocol.failure import read_error
from samkit.triton_models import server as server_module
from samkit.triton_models.model_config import graph_config, parse_config, python_config
from samkit.triton_models.record import ONNXRUNTIME, PYTHON, Repository, ServedExport
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server import EmbeddedServer, known_inputs
from samkit.triton_models.server_files import SHARED_MEMORY
from support.serving import need_server

pytestmark = pytest.mark.xdist_group("server")  # so that the one that answers is started once

TOGETHER = 4
"""Requests, of two crops each, that the encoder waits for before it runs."""

IDLE = """
import samkit.triton_models.python_backend as backend

class TritonPythonModel:
    def initialize(self, args):
        backend.begin(args["model_name"])

    def execute(self, requests):
        raise ValueError("nobody asks this model")
"""
FAILING = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("this model never loads")
"""
ZEROS = """
import numpy as np
import triton_python_backend_utils as backend

class TritonPythonModel:
    def execute(self, requests):
        outputs = [("low_res_masks", (1, 1, 8, 8, 8)), ("iou_predictions", (1, 1))]
        tensors = [backend.Tensor(name, np.zeros(shape, np.float32)) for name, shape in outputs]
        return [backend.InferenceResponse(tensors) for _ in requests]
"""


@pytest.fixture(scope="module", autouse=True)
def _needs_server():
    need_server()


@pytest.fixture(scope="module")
def graphs(bright_export):
    return {spec.name: spec for spec in Manifest.load(bright_export).plan.specs}


@pytest.fixture(scope="module")
def repository(bright_export, graphs, tmp_path_factory):
    """The graphs of the bright export, served as `bright`, whose encoder runs TOGETHER requests at once."""
    folder = tmp_path_factory.mktemp("served") / "repository"
    models = {}
    for name, graph in graphs.items():
        version = new_model(folder, f"bright_{name}", graph_config(f"bright_{name}", graph))
        shutil.copy(bright_export / f"{name}.onnx", version / "model.onnx")
        models[f"bright_{name}"] = ONNXRUNTIME
    path = folder / "bright_image_encoder" / "config.pbtxt"
    config = parse_config(path.read_text(), "bright_image_encoder")
    config.dynamic_batching.preferred_batch_size[:] = [2 * TOGETHER]
    config.dynamic_batching.max_queue_delay_microseconds = 60_000_000
    del config.instance_group[:]
    config.instance_group.add(kind="KIND_CPU", count=1)
    path.write_text(str(config))
    digest = Manifest.load(bright_export).digest
    facts = {"samkit_name": "bright", "precision": "fp32", "manifest": digest, "engines": "", "max_voxels": "1000"}
    config = python_config("bright_preprocess", "preprocess", facts, slices=False)
    version = new_model(folder, "bright_preprocess", config)
    (version / "model.py").write_text(IDLE)
    Manifest.load(bright_export).save(version)
    models["bright_preprocess"] = PYTHON
    export = ServedExport("sam-med3d", "fp32", digest, models, {})
    Repository(samkit.__version__, {"bright": export}).save(folder)
    return folder


def new_model(folder, name, config):
    version = folder / name / "1"
    version.mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(config)
    return version


@pytest.fixture(scope="module")
def server(repository):
    with EmbeddedServer(repository) as server:
        yield server


@pytest.fixture
def other_repository(repository, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(repository, tmp_path / "repository"))


def infer(server, model, inputs, output):
    library = tritonclient_library.grpc()
    tensors = tritonclient_library.as_inputs(library, inputs)
    with library.InferenceServerClient(server.grpc) as client:
        return client.infer(model, tensors).as_numpy(output)


def ask(address, verb, path):
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(verb, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def counts(server, model):
    """How often a model ran, and on how many rows altogether."""
    status, text = ask(server.http, "GET", f"/v2/models/{model}/stats")
    assert status == 200
    found = json.loads(text)["model_stats"][0]
    return found["execution_count"], found["inference_count"]


def counts_since(before, server, model, rows):
    """How often a model ran, and on how many rows, since `before`: once it counted `rows`, soon after it answered."""
    wait_until(lambda: counts(server, model)[1] >= before[1] + rows)
    return tuple(now - then for now, then in zip(counts(server, model), before, strict=True))


def is_there(pid):
    """Whether a process runs: what has ended and was not waited for does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def family(pid):
    """The process and those of its group, which are the models."""
    members = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and is_there(process.name):
            try:
                members += [int(process.name)] if os.getpgid(int(process.name)) == pid else []
            except ProcessLookupError:
                continue
    return members


def wait_until(is_true):
    until = time.monotonic() + 60
    while not is_true() and time.monotonic() < until:
        time.sleep(0.05)
    return is_true()


# --- What it answers ---


def test_answers_are_those_of_a_runner_bit_by_bit(server, repository, graphs):
    inputs = known_inputs(graphs["mask_decoder"])
    with OnnxRuntimeRunner(repository / "bright_mask_decoder" / "1" / "model.onnx", graphs["mask_decoder"]) as runner:
        expected = runner.run(inputs)

    for name, array in expected.items():
        assert np.array_equal(infer(server, "bright_mask_decoder", inputs, name), array)


def test_a_decoder_takes_no_points(server, graphs):
    inputs = known_inputs(graphs["mask_decoder"])
    inputs |= {"point_coords": np.zeros((1, 0, 3), np.float32), "point_labels": np.zeros((1, 0), np.float32)}

    assert infer(server, "bright_mask_decoder", inputs, "low_res_masks").shape == (1, 1, 8, 8, 8)


def test_merged_requests_get_the_answers_they_get_alone(server, repository, graphs):
    encoder = graphs["image_encoder"]
    crops = np.random.default_rng(1).standard_normal((TOGETHER, 2, 1, 32, 32, 32)).astype(np.float32)
    before = counts(server, "bright_image_encoder")
    with ThreadPoolExecutor(TOGETHER) as pool:
        found = list(pool.map(lambda crop: infer(server, "bright_image_encoder", {"image": crop},
                                                 "image_embeddings"), crops))  # fmt: skip

    assert counts_since(before, server, "bright_image_encoder", rows=2 * TOGETHER) == (1, 2 * TOGETHER)
    with OnnxRuntimeRunner(repository / "bright_image_encoder" / "1" / "model.onnx", encoder) as runner:
        for crop, answer in zip(crops, found, strict=True):
            assert np.array_equal(answer, runner.run({"image": crop})["image_embeddings"])


def test_a_request_that_does_not_fit_gets_an_error_and_the_next_an_answer(server, graphs):
    error = tritonclient_library.grpc().InferenceServerException
    inputs = known_inputs(graphs["mask_decoder"])
    unequal = {
        "image_embeddings": np.zeros((2, 72, 2, 2, 2), np.float32),
        "mask_input": np.zeros((3, 1, 8, 8, 8), np.float32),
    }
    with pytest.raises(error) as raised:
        infer(server, "bright_mask_decoder", {**inputs, **unequal}, "low_res_masks")

    assert isinstance(read_error(raised.value.message()), ServingError)
    assert "could not run bright_mask_decoder" in raised.value.message()
    assert infer(server, "bright_mask_decoder", inputs, "low_res_masks").shape == (1, 1, 8, 8, 8)


# --- Slices of several sessions ---


@pytest.fixture(scope="module")
def chunk(bright_structures):
    """How many slices a session sends its encoder at once."""
    (encoder,) = (graph for graph in Manifest.load(bright_structures).plan.specs if graph.name == "image_encoder")
    return encoder_batch(encoder)


@pytest.fixture(scope="module")
def slice_server(bright_structures, chunk, tmp_path_factory):
    """A server of an automatic method of slices, whose encoder waits for the chunks of two sessions."""
    folder = tmp_path_factory.mktemp("slices") / "repository"
    write_repository([bright_structures], folder)
    path = folder / "lora_sam_image_encoder" / "config.pbtxt"
    config = parse_config(path.read_text(), "lora_sam_image_encoder")
    config.dynamic_batching.preferred_batch_size[:] = [2 * chunk]
    config.dynamic_batching.max_queue_delay_microseconds = 60_000_000
    path.write_text(str(config))
    with EmbeddedServer(folder) as server:
        yield server


def test_chunks_of_two_sessions_share_a_batch_and_give_the_masks_of_each_alone(slice_server, bright_structures, chunk):
    def scan(number):
        array = np.full((40, chunk, 44), 20, np.int16)
        array[10:30, :, 12 + number : 30] = 200  # coronal slices, none of them empty
        return Volume(array, np.eye(4))

    def segment(url, number):
        with open_session(url) as session:
            session.set_image(scan(number), automatic=False)
            session.segment_automatically()
            return session.mask()

    before = counts(slice_server, "lora_sam_image_encoder")
    with ThreadPoolExecutor(2) as pool:
        masks = list(pool.map(lambda n: segment(f"triton://{slice_server.grpc}/lora-sam", n), range(2)))

    assert counts_since(before, slice_server, "lora_sam_image_encoder", rows=2 * chunk) == (1, 2 * chunk)
    for number, mask in enumerate(masks):
        assert mask.any()
        assert np.array_equal(mask, segment(bright_structures, number))


# --- Who may ask what ---


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/bright_mask_decoder/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/logging"),
        ("GET", "/v2/trace/setting"),
    ],
)
def test_admin_endpoint_is_refused_over_http(server, verb, path):
    assert ask(server.http, verb, path)[0] == 403


@pytest.mark.parametrize(
    "call", ["get_model_repository_index", "get_system_shared_memory_status", "get_log_settings", "get_trace_settings"]
)
def test_admin_endpoint_is_refused_over_grpc(server, call):
    library = tritonclient_library.grpc()
    with (
        library.InferenceServerClient(server.grpc) as client,
        pytest.raises(library.InferenceServerException, match="restricted"),
    ):
        getattr(client, call)()


def test_metrics_are_on_loopback(server):
    assert server.metrics.startswith("http://127.0.0.1:")
    status, text = ask(server.metrics.split("/")[2], "GET", "/metrics")
    assert status == 200
    assert b'nv_inference_request_success{model="bright_mask_decoder"' in text


# --- Other users of the machine ---


def as_nobody(*command):
    """Return exit code and output of a command that another user runs."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    done = subprocess.run(command, user=65534, group=65534, extra_groups=[], capture_output=True, check=False)
    return done.returncode, done.stdout


def test_another_user_reads_no_shared_memory(server, repository):
    assert_private(server, len(Repository.load(repository).models))


def assert_private(server, count):
    regions = list(SHARED_MEMORY.glob(f"{server._memory}*"))
    assert len(regions) == count
    assert {region.stat().st_mode & 0o777 for region in regions} == {0o600}
    for region in regions:
        assert as_nobody("head", "--bytes=1", region)[0] == 1


def test_another_user_reads_no_memory_of_a_stub_that_died_nor_of_the_next_start(repository, graphs):
    models = len(Repository.load(repository).models)
    with EmbeddedServer(repository) as server:
        for pid in stubs(server):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(tritonclient_library.grpc().InferenceServerException, match="not healthy"):
            infer(server, "bright_mask_decoder", known_inputs(graphs["mask_decoder"]), "iou_predictions")
        assert not stubs(server)  # this Triton starts none again; what it would make anew, `backend.begin` hides
        assert_private(server, models)
        server.stop()
        server.start()
        assert_private(server, models)


def stubs(server):
    """Return the processes that run a Python model."""
    found = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in family(server.pid)}
    return [pid for pid, program in found.items() if program.endswith(b"_stub")]


@pytest.fixture
def shared_folder():
    """A folder as /tmp is one: other users come to it, to what they may read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def holding(words, places, run):
    """Return the files in `places` that hold one of `words`, as far as `run` reads them."""
    patterns = [option for word in words for option in ("-e", word)]
    _, out = run("grep", "-rlaFs", "--devices=skip", *patterns, *places)
    return set(out.decode().splitlines())


def as_myself(*command):
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode, done.stdout


def test_another_user_finds_neither_scan_nor_token_while_a_session_is_open_or_closed(bright_export, shared_folder):
    (shared_folder / "open").write_text("Anna" * 8)
    assert holding(["Anna"], [shared_folder], as_nobody) == {str(shared_folder / "open")}
    (shared_folder / "open").unlink()
    repository = shared_folder / "repository"
    environment = {**os.environ, "TMPDIR": str(shared_folder), "HOME": str(shared_folder)}
    serve = [sys.executable, "-m", "samkit.triton_models.cli"]
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    subprocess.run([*serve, "write", bright_export, "--out", repository], env=environment, check=True, umask=0o022)
    with (shared_folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*serve, "start", repository, *ports],
            env=environment,
            umask=0o022,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    voxels = np.full((32, 32, 32), b"Anna").view(np.float32)
    voxels[8:16, 8:16, 8:16] *= 2
    try:
        assert process.stdout.readline() == "READY\n", (shared_folder / "log").read_text()
        address = process.stdout.readline().strip()
        places = [SHARED_MEMORY, shared_folder, *(Path(f"/proc/{pid}/cmdline") for pid in family(child(process)))]
        with open_session(address) as session:
            session.set_image(Volume(voxels, np.eye(4)))
            words = (session._opened().token, b"Anna" * 8)
            assert holding(words, places, as_nobody) == set()
            found = holding(words, places, as_myself)  # they are there, and can be found
            assert found
            assert all(Path(path).is_relative_to(SHARED_MEMORY) for path in found)
            session.click((10, 10, 10))
            assert holding(words, places, as_nobody) == set()
        assert holding(words, places, as_nobody) == set()
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0
    assert not holding(words, [SHARED_MEMORY, shared_folder], as_myself)


def test_another_user_reads_neither_the_key_nor_the_server_s_folder(server):
    code, arguments = as_nobody("cat", f"/proc/{server.pid}/cmdline")

    assert code == 0
    assert re.findall(rb"admin-key=([^\0]*)", arguments) == [b"*" * 43] * 2
    assert as_nobody("ls", read_words(server.pid, "--backend-directory="))[0] != 0


# --- How it starts and ends ---


def test_stopping_leaves_no_process_no_shared_memory_and_no_folder(repository):
    server = EmbeddedServer(repository)
    server.start()
    members = family(server.pid)
    regions = {
        region for region in SHARED_MEMORY.glob(f"samkit_{os.getpid()}_*") if any(maps(p, region) for p in members)
    }
    folders = {Path(read_words(server.pid, "--backend-directory="))}
    assert len(members) > len(Repository.load(repository).models)
    assert regions

    assert server.stop()

    assert not [pid for pid in members if is_there(pid)]
    assert not [path for path in regions | folders if path.exists()]


def maps(pid, region):
    return region.name in Path(f"/proc/{pid}/maps").read_text()


def read_words(pid, option):
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return next(word for word in words if word.startswith(option)).removeprefix(option)


def test_a_second_stop_is_harmless_and_a_second_start_works(repository, graphs):
    server = EmbeddedServer(repository)
    with server:
        server.stop()
        assert server.stop()
        server.start()
        inputs = known_inputs(graphs["mask_decoder"])
        assert infer(server, "bright_mask_decoder", inputs, "iou_predictions").shape == (1, 1)


def test_a_server_that_dies_while_starting_is_an_error_with_its_last_words(other_repository, caplog):
    caplog.set_level(logging.INFO, "samkit")
    (other_repository / "bright_preprocess" / "1" / "model.py").write_text(FAILING)
    server = EmbeddedServer(other_repository)

    with pytest.raises(ServingError, match=r"before it was ready .*this model never loads"):
        server.start()

    assert any("this model never loads" in line for line in caplog.messages)
    assert not list(SHARED_MEMORY.glob(f"{server._memory}*"))


def test_wrong_numbers_keep_a_server_from_starting(other_repository):
    model = other_repository / "bright_mask_decoder"
    text = (model / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(text.replace('backend: "onnxruntime"', 'backend: "python"').replace(
        'default_model_filename: "model.onnx"', 'default_model_filename: "model.py"'))  # fmt: skip
    (model / "1" / "model.py").write_text(ZEROS)

    with pytest.raises(ServingError, match=r"gave other numbers .* numpy 2"):
        EmbeddedServer(other_repository).start()


def test_a_taken_port_is_refused_before_anything_starts(server, repository):
    with pytest.raises(ServingError, match=f"port {server.http_port} of 127.0.0.1 can't be had"):
        EmbeddedServer(repository, http_port=server.http_port).start()


def test_port_that_somebody_takes_while_models_load_is_chosen_again(server, repository, monkeypatch):
    free_port, handed_out = server_module._free_port, []

    def choose(held, host, port):
        handed_out.append(port)
        # The second one of the first start is HTTP's, where the other server listens
        return server.http_port if len(handed_out) == 2 else free_port(held, host, port)

    monkeypatch.setattr(server_module, "_free_port", choose)
    with EmbeddedServer(repository) as second:
        assert handed_out == [0] * 6
        assert second.http_port != server.http_port
        assert ask(second.http, "GET", "/v2/health/ready")[0] == 200


def test_another_server_on_the_port_is_not_taken_for_the_own_one(server, repository):
    other = EmbeddedServer(repository, http_port=server.http_port, metrics_port=server.metrics_port)

    assert server._is_ready()
    assert not other._is_ready()


# --- The command ---


@pytest.fixture
def command(repository):
    """`sam-serve start` in a process of its own, ready: the process and the lines that it printed."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "samkit.triton_models.cli", "start", str(repository), "--quiet"),
            *("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, [process.stdout.readline().strip() for _ in range(4)]
    finally:
        process.kill()
        process.communicate()


def child(process):
    (pid,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    return pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_endpoints_and_a_signal_ends_it_in_order(command, number):
    process, lines = command
    assert lines[0] == "READY"
    assert lines[1].startswith("triton://127.0.0.1:")
    assert lines[1].endswith("/bright")
    assert lines[2].startswith("triton+http://127.0.0.1:")
    assert lines[3].endswith("/metrics")
    members = family(child(process))

    process.send_signal(number)

    assert process.wait(60) == 0
    assert not [pid for pid in members if is_there(pid)]
    assert not list(SHARED_MEMORY.glob(f"samkit_{process.pid}_*"))


def test_a_command_that_is_killed_takes_its_server_along(command):
    process, _ = command
    members = family(child(process))
    folder = Path(read_words(child(process), "--backend-directory="))
    process.kill()

    assert wait_until(lambda: not [pid for pid in members if is_there(pid)])
    assert not list(SHARED_MEMORY.glob(f"samkit_{process.pid}_*"))
    shutil.rmtree(folder.parent)  # which nobody was left to remove
