"""What `sam-serve start` does when a part of its server dies, and when it is told to stop: on the real server.

Nothing here is decided by how long something takes: what has to come to pass is waited for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from samkit.errors import (
    AtCapacity,
    GeometryError,
    PromptError,
    ServerRestarted,
    ServerRestarting,
    ServerStopping,
    TensorMismatchError,
)
from samkit.geometry import Volume
from samkit.runtime import open_session
from samkit.runtime.client import tritonclient_library
from samkit.runtime.protocol.failure import read_error
from samkit.triton_models.limits import Limits
from samkit.triton_models.processes import stubs
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server_files import SHARED_MEMORY
from support.serving import gate, need_server, shut_gate

pytestmark = pytest.mark.xdist_group("watched server")

NAME = "sam_med3d"


@pytest.fixture(scope="module", autouse=True)
def _needs_server():
    need_server()


@pytest.fixture(scope="module")
def repository(bright_export, tmp_path_factory):
    """The bright export, whose encoder waits while a gate is shut."""
    folder = tmp_path_factory.mktemp("watched") / "repository"
    write_repository([bright_export], folder, limits=Limits(heartbeat_seconds=6, memory_bytes=64 << 20))
    gate(folder, f"{NAME}_image_encoder")
    return folder


class Command:
    """`sam-serve start` in a process of its own, ready."""

    def __init__(self, repository, log, *options):
        self.repository, self.log = repository, log
        self._stderr = log.open("w")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "samkit.triton_models.cli", "start", str(repository)),
                *("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        lines = [self.process.stdout.readline().strip() for _ in range(4)]
        assert lines[0] == "READY", self.fail()
        self.url, self.http, self.metrics = lines[1], lines[2].removeprefix("triton+").rpartition("/")[0], lines[3]

    @property
    def server(self):
        """The process id of tritonserver; 0 while there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def pids(self):
        return {model.removeprefix(f"{NAME}_"): pid for pid, model in stubs(self.server).items()}

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.http}/v2/health/ready", timeout=30) as page:  # noqa: S310
                return page.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def fail(self):
        """End what did not begin as it must, and return what it said."""
        self.end()
        return self.said()

    def end(self):
        self.process.kill()
        self.process.communicate()
        self._stderr.close()

    def figure(self, label):
        """Return the figure of this name and these labels from the metrics page; 0 where there is none yet."""
        with urllib.request.urlopen(self.metrics) as page:  # noqa: S310
            lines = [line.rpartition(" ") for line in page.read().decode().splitlines()]
        return sum(float(value) for found, _, value in lines if found == label)

    def said(self):
        return self.log.read_text()

    def shut(self):
        """Keep the encoder from running until what is yielded is called, or the end."""
        model = f"{NAME}_image_encoder"
        (self.repository / model / "1" / "came").unlink(missing_ok=True)
        return shut_gate(self.repository, model)

    def encodes(self):
        """Whether a request has come to the encoder since the gate was shut."""
        return (self.repository / f"{NAME}_image_encoder" / "1" / "came").exists()

    def regions(self):
        return list(SHARED_MEMORY.glob(f"samkit_{self.process.pid}_*"))


@pytest.fixture
def start(repository, tmp_path):
    begun = []

    def begin(*options):
        begun.append(Command(repository, tmp_path / f"log-{len(begun)}", *options))
        return begun[-1]

    yield begin
    for command in begun:
        command.end()


@pytest.fixture(scope="module")
def running(repository, tmp_path_factory):
    command = Command(repository, tmp_path_factory.mktemp("running") / "log")
    yield command
    command.process.terminate()
    code = command.process.wait(60)
    command.end()
    assert code == 0, command.said()
    assert not command.regions()


def wait_until(is_true):
    until = time.monotonic() + 120
    while not is_true():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.02)


def scan(number):
    array = np.random.default_rng(number).normal(100, 5, (32, 32, 32)).astype(np.float32)
    array[8:16, 8:16, 8:16] += 200
    return Volume(array, np.eye(4))


CLICK = (10.0, 10.0, 10.0)


# --- What dies ---


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("model", ["image_encoder", "mask_decoder", "preprocess", "postprocess"])
def test_model_that_dies_is_loaded_again_and_sessions_go_on(running, model, number):
    with open_session(running.url) as session:
        session.set_image(scan(1))
        before = session.click(CLICK)
        server, dead = running.server, running.pids()[model]

        os.kill(dead, number)
        wait_until(lambda: running.pids().get(model, dead) != dead and running.is_ready())

        assert running.server == server
        session.reset()
        assert np.array_equal(session.click(CLICK).mask, before.mask)
        assert {region.stat().st_mode & 0o777 for region in running.regions()} == {0o600}


def test_click_whose_model_dies_gets_its_mask_all_the_same(running):
    with open_session(running.url) as session, ThreadPoolExecutor(1) as pool:
        session.set_image(scan(2))
        with running.shut() as unlock:
            clicked = pool.submit(session.click, CLICK)
            wait_until(running.encodes)
            os.kill(running.pids()["image_encoder"], signal.SIGKILL)
            unlock()
            mask = clicked.result().mask
        session.reset()
        assert np.array_equal(session.click(CLICK).mask, mask)
        assert mask.any()


@pytest.mark.parametrize("model", ["session", "refine", ""])
def test_server_is_started_again_on_its_ports_where_more_than_a_model_dies(running, model):
    server = running.server
    os.kill(running.pids()[model] if model else server, signal.SIGKILL)
    wait_until(lambda: running.server not in (0, server) and running.is_ready())

    with open_session(running.url) as session:
        session.set_image(scan(3))
        assert session.click(CLICK).mask.any()
        assert {region.stat().st_mode & 0o777 for region in running.regions()} == {0o600}


OTHER = (14.0, 12.0, 9.0)


def test_reader_whose_server_dies_goes_on_with_mask_and_history(running):
    with open_session(running.url) as session:
        session.set_image(scan(8))
        alone = [session.click(CLICK).mask, session.click(OTHER, False).mask]

    with open_session(running.url) as session, ThreadPoolExecutor(1) as pool:
        session.set_image(scan(8))
        with running.shut() as unlock:  # a click is on its way
            clicked = pool.submit(session.click, CLICK)
            wait_until(running.encodes)
            os.kill(running.pids()["session"], signal.SIGKILL)
            unlock()
            update = clicked.result()
        assert update.restored
        assert np.array_equal(update.mask, alone[0])

        session.click(OTHER, False)
        session.undo()
        os.kill(running.server, signal.SIGKILL)
        update = session.redo()
        assert update.restored
        assert np.array_equal(update.mask, alone[1])
        assert np.array_equal(session.undo().mask, alone[0])
        assert not session.undo().mask.any()


def test_session_that_is_not_to_be_restored_says_what_happened(running):
    with open_session(running.url, restore=False) as session:
        session.set_image(scan(9))
        server = running.server
        os.kill(server, signal.SIGKILL)
        with pytest.raises((ServerRestarting, ServerRestarted)):
            session.click(CLICK)
        wait_until(lambda: running.server not in (0, server) and running.is_ready())
        with pytest.raises(ServerRestarted, match="open the scan again"):
            session.click(CLICK)
        session.set_image(scan(9))
        assert session.click(CLICK).mask.any()


READER = """
import sys
import numpy as np
from samkit.geometry import Volume
from samkit.runtime import open_session

session = open_session(sys.argv[1])
array = np.random.default_rng(int(sys.argv[2])).normal(100, 5, (32, 32, 32)).astype(np.float32)
session.set_image(Volume(array, np.eye(4)))
print("opened", flush=True)
sys.stdin.readline()
session.click((10, 10, 10))
"""


def test_places_of_readers_that_were_killed_are_free_again(running):
    held = f'samkit_sessions_open{{name="{NAME}"}}'
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, running.url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    try:
        for reader in readers:
            assert reader.stdout.readline() == "opened\n"
        wait_until(lambda: running.figure(held) == 2)
        with running.shut():
            readers[0].stdin.write("\n")  # one dies in a click, the other at rest
            readers[0].stdin.flush()
            wait_until(running.encodes)
            for reader in readers:
                reader.kill()
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()
    wait_until(lambda: running.figure(held) == 0)
    assert running.figure(f'samkit_sessions_silent_total{{name="{NAME}"}}') >= 2


def test_command_gives_up_with_a_sentence(start):
    command = start("--restarts", "0", "--quiet")
    os.kill(command.server, signal.SIGKILL)

    assert command.process.wait(60) == 1
    assert "the server ended, and 0 starts in a row did not help" in command.said()
    assert not command.regions()


# --- What nobody should send ---


def ask(url, model, tensors):
    """Return the error that a model's answer carries; None where it carries none."""
    library = tritonclient_library.grpc()
    with library.InferenceServerClient(url.split("/")[2]) as client:
        try:
            client.infer(model, tritonclient_library.as_inputs(library, tensors), client_timeout=300)
        except library.InferenceServerException as error:
            return read_error(str(error))
    return None


def text(data):
    return np.array([data if isinstance(data, bytes) else json.dumps(data).encode()], object)


PREPARED = np.ones((1, 32, 32, 32), np.float32)
POINT = {"point": [16, 16, 16], "label": 1}
SCAN = {"volume": PREPARED, "affine": np.eye(4)}


@pytest.mark.parametrize(
    ("role", "tensors", "kind"),
    [
        ("refine", {}, TensorMismatchError),
        ("refine", {"prepared": PREPARED}, TensorMismatchError),
        ("refine", {"task": text({})}, TensorMismatchError),
        ("refine", {"prepared": PREPARED, "task": text({})}, PromptError),
        ("postprocess", {}, TensorMismatchError),
        ("postprocess", {"found": text({})}, TensorMismatchError),
        ("postprocess", {"logits": np.ones(3, np.float32)}, TensorMismatchError),
        ("postprocess", {"found": text({}), "logits": np.ones(3, np.float32)}, PromptError),
        ("preprocess", {"volume": PREPARED}, GeometryError),
        ("preprocess", {**SCAN, "prompts": text([POINT] * 513)}, PromptError),
        ("preprocess", {**SCAN, "prompts": text(b" " * 2**20 + b"[]")}, TensorMismatchError),
        ("session", {}, PromptError),
        ("session", {"request": text({"op": "check", "prompts": [POINT] * 513})}, PromptError),
        ("session", {"request": text({"op": "check", "prompts": [POINT] * 100_000})}, TensorMismatchError),
        ("session", {"request": text(b'{"op": ' + b" " * 60_000_000 + b'"describe"}')}, TensorMismatchError),
    ],
)
def test_bad_request_is_refused_with_its_type_and_counted(running, role, tensors, kind):
    label = f'samkit_errors_total{{model="{NAME}_{role}",name="{NAME}",type="{kind.__name__}"}}'
    before = running.figure(label)

    error = ask(running.url, f"{NAME}_{role}", tensors)

    assert type(error) is kind
    assert "bug" not in str(error)
    assert running.figure(label) == before + 1


def test_scan_beyond_the_memory_of_all_is_refused(running):
    large = Volume(np.ones((256, 256, 150), np.float32), np.eye(4))
    large.array[100, 100, 70] = 2  # 38 of the 64 MiB that sessions may hold
    with open_session(running.url) as first, open_session(running.url) as second:
        first.set_image(large)
        wait_until(lambda: running.figure(f'samkit_sessions_bytes{{name="{NAME}"}}') >= large.array.nbytes)
        with pytest.raises(AtCapacity, match="may hold 64: this scan of 37 does not fit; close one"):
            second.set_image(large)
        first.set_image(large)  # takes the place of the one before
    wait_until(lambda: running.figure(f'samkit_sessions_bytes{{name="{NAME}"}}') == 0)


# --- Stopping ---


def test_stopping_lets_clicks_end_and_refuses_new_ones(start):
    command = start()
    with open_session(command.url) as session, open_session(command.url) as other, ThreadPoolExecutor(1) as pool:
        session.set_image(scan(4))
        other.set_image(scan(5))
        with command.shut() as unlock:
            clicked = pool.submit(session.click, CLICK)
            wait_until(command.encodes)
            assert command.is_ready()
            command.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not command.is_ready())
            with pytest.raises(ServerStopping, match="try again at another server"):
                other.click(CLICK)
            with pytest.raises(ServerStopping, match="try again at another server"):
                other.set_image(scan(6))
            assert not clicked.done()
            unlock()
            assert clicked.result().mask.any()
        assert command.process.wait(60) == 0


def test_second_signal_ends_at_once(start):
    command = start("--drain-seconds", "3600")
    with open_session(command.url) as session, ThreadPoolExecutor(1) as pool, command.shut():
        session.set_image(scan(7))
        clicked = pool.submit(session.click, CLICK)
        wait_until(command.encodes)
        command.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not command.is_ready())
        command.process.send_signal(signal.SIGTERM)

        assert command.process.wait(60) == 1
        assert "did not end in order and was killed" in command.said()
        assert not command.regions()
        session.close()
    assert clicked.exception() is not None
