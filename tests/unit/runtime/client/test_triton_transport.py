"""Requests reach a server over gRPC and HTTP alike, and each way a call fails is told apart.

The servers here are stand-ins that speak Triton's protocols and answer as they are told to.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from samkit.errors import AtCapacity, InputRefused, OptionError, ServerRestarting, ServerTimeout, ServingError
from samkit.runtime.client import triton_transport
from samkit.runtime.client.triton_transport import Address, ConnectionLost, connect, is_url
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.failure import error_text

DTYPES = {"UINT8": np.uint8, "INT16": np.int16, "FP32": np.float32, "FP64": np.float64}


class Fake:
    """What both stand-ins do: `inputs` is what came, `changed` goes out, `error` and `is_silent` spoil it."""

    def __init__(self):
        self.inputs = {}
        self.changed = np.zeros((0, 0, 0), np.uint8)
        self.error = None
        self.drops = False
        self.silence = threading.Event()
        self.silence.set()

    def take(self, model, tensors):
        """Return the output tensors, as name, datatype, shape and bytes."""
        assert model == "m_sam_session"
        self.inputs = {name: _array(*tensor) for name, tensor in tensors.items()}
        self.silence.wait()
        answer = np.array([b'{"turn": 1}'], object)
        return [
            (wire.ANSWER, "BYTES", [1], serialize_byte_tensor(answer).item()),
            (wire.CHANGED, "UINT8", list(self.changed.shape), self.changed.tobytes()),
        ]


def _array(datatype, shape, raw):
    if datatype == "BYTES":
        (size,) = struct.unpack("<I", raw[:4])
        return np.array([raw[4 : 4 + size]], object)
    return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)


class Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, fake):
        self.fake = fake

    def ModelInfer(self, request, context):  # noqa: N802
        fake = self.fake
        if fake.drops:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if fake.error is not None:
            code = grpc.StatusCode.NOT_FOUND if "unknown" in fake.error else grpc.StatusCode.INTERNAL
            context.abort(code, fake.error)
        tensors = {
            one.name: (one.datatype, list(one.shape), raw)
            for one, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, datatype, shape, raw in fake.take(request.model_name, tensors):
            response.outputs.add(name=name, datatype=datatype, shape=shape)
            response.raw_output_contents.append(raw)
        return response


class Handler(BaseHTTPRequestHandler):
    fake: Fake

    def do_POST(self):
        fake = self.fake
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if fake.drops:
            return self.connection.close()
        if fake.error is not None:
            code = 404 if "unknown" in fake.error else 500
            return self.give(code, json.dumps({"error": fake.error}).encode())
        start = int(self.headers["Inference-Header-Content-Length"])
        tensors = {}
        for one in json.loads(body[:start])["inputs"]:
            size = one["parameters"]["binary_data_size"]
            tensors[one["name"]] = (one["datatype"], one["shape"], body[start : start + size])
            start += size
        outputs = fake.take(self.path.split("/")[3], tensors)
        entries = [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
            for name, datatype, shape, raw in outputs
        ]
        head = json.dumps({"model_name": "m_sam_session", "model_version": "1", "outputs": entries}).encode()
        return self.give(200, head + b"".join(raw for *_, raw in outputs), len(head))

    def give(self, code, body, head=None):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        if head is not None:
            self.send_header("Inference-Header-Content-Length", str(head))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def fake():
    return Fake()


@pytest.fixture(params=["triton", "triton+http"])
def transport(request, fake):
    """A transport to a stand-in server of its protocol."""
    if request.param == "triton":
        with ThreadPoolExecutor(4) as threads:
            server = grpc.server(threads)
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Service(fake), server)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            made = connect(Address.parse(f"triton://127.0.0.1:{port}/m-sam"))
            try:
                yield made
            finally:
                made.close()
                fake.silence.set()
                server.stop(None).wait()
        return
    handler = type("Handler", (Handler,), {"fake": fake})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        made = connect(Address.parse(f"triton+http://127.0.0.1:{server.server_port}/m-sam"))
        try:
            yield made
        finally:
            made.close()
            fake.silence.set()
            server.shutdown()
            thread.join()


REQUEST = {wire.REQUEST: wire.encode({"op": "describe"})}


@pytest.mark.parametrize("changed", [np.zeros((0, 0, 0), np.uint8), np.arange(24, dtype=np.uint8).reshape(2, 3, 4)])
def test_tensors_arrive_as_they_were_sent(transport, fake, changed):
    fake.changed = changed
    sent = {
        **REQUEST,
        wire.TOKEN: np.array([b"token"], object),
        wire.AFFINE: np.arange(16.0).reshape(4, 4).T,
        "volume": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4).transpose(0, 3, 2, 1),
        "volume_int16": np.full((1, 2, 2, 2), -5, np.int16),
        "volume_uint8": np.full((1, 2, 2, 2), 250, np.uint8),
    }

    for _ in range(2):
        found = transport.call(sent, 60.0)
        assert wire.decode(found[wire.ANSWER], wire.ANSWER) == {"turn": 1}
        assert found[wire.CHANGED].dtype == np.uint8
        assert found[wire.CHANGED].shape == changed.shape
        assert np.array_equal(found[wire.CHANGED], changed)
    assert list(fake.inputs) == list(sent)
    for name, array in sent.items():
        assert fake.inputs[name].shape == array.shape
        assert np.array_equal(fake.inputs[name], array)


def test_an_error_of_samkit_comes_back_as_itself(transport, fake):
    fake.error = "in ensemble 'm_sam', " + error_text(AtCapacity("16 sessions are open; close one"))
    with pytest.raises(AtCapacity, match=r"^16 sessions are open; close one$"):
        transport.call(REQUEST, 60.0)
    fake.error = error_text(InputRefused("too-large", "the volume is large", "crop it"))
    with pytest.raises(InputRefused) as raised:
        transport.call(REQUEST, 60.0)
    assert raised.value.code == "too-large"


def test_another_error_carries_the_servers_words_in_one_line(transport, fake):
    fake.error = "Failed to process the request(s)\n for model instance 'm_sam_session_0'"

    with pytest.raises(
        ServingError, match=r"\(Failed to process .* for model instance 'm_sam_session_0'\); see the server's log"
    ):
        transport.call(REQUEST, 60.0)


@pytest.mark.parametrize(
    "said", ["Stub process 'm_sam_session_0'\n is not healthy.", "Model 'm_sam_session' is not ready"]
)
def test_a_part_that_died_is_being_started_again(transport, fake, said):
    fake.error = said

    with pytest.raises(ServerRestarting, match=r"part of .* is away \(.*\), .*; try again in 10 s$") as raised:
        transport.call(REQUEST, 60.0)
    assert raised.value.seconds == 10.0


def test_a_model_that_was_there_is_being_started_again_and_no_wrong_name(transport, fake):
    transport.call(REQUEST, 60.0)
    fake.error = "Request for unknown model: 'm_sam_session' is not found"

    with pytest.raises(ServerRestarting, match="try again in 10 s"):
        transport.call(REQUEST, 60.0)


def test_an_unknown_model_says_where_the_names_are(transport, fake):
    fake.error = "Request for unknown model: 'm_sam_session' is not found"

    with pytest.raises(
        ServingError, match=r"has no model m_sam_session; .* sam-serve start prints all, .* sam-serve write"
    ):
        transport.call(REQUEST, 60.0)


def test_a_server_that_says_nothing_is_late(transport, fake):
    transport.call(REQUEST, 60.0)  # they have met: on a busy machine that alone may take longer than the call below
    fake.silence.clear()

    with pytest.raises(ServerTimeout, match=r"no answer within 0\.2 s"):
        transport.call(REQUEST, 0.2)


def test_a_broken_connection_is_lost_and_the_next_one_serves(transport, fake):
    fake.drops = True
    with pytest.raises(ConnectionLost, match="can't be reached"):
        transport.call(REQUEST, 60.0)
    fake.drops = False
    assert transport.call(REQUEST, 60.0)


@pytest.mark.parametrize("scheme", ["triton", "triton+http"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_closed_port_is_a_lost_connection(scheme, host):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as bound:
        port = bound.server_port
    transport = connect(Address.parse(f"{scheme}://{host}:{port}/m-sam"))
    try:
        with pytest.raises(ConnectionLost, match=f"{host}:{port} can't be reached"):
            transport.call(REQUEST, 60.0)
    finally:
        transport.close()


@pytest.mark.parametrize("scheme", ["triton", "triton+http"])
def test_a_server_that_never_said_a_word_gets_little_of_the_time(monkeypatch, scheme):
    monkeypatch.setattr(triton_transport, "CONNECTING", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        transport = connect(Address.parse(f"{scheme}://127.0.0.1:{port}/m-sam"))
        try:
            with pytest.raises(ConnectionLost, match=r"nothing came back within 0\.2 s"):
                transport.call(REQUEST, 3600.0)
        finally:
            transport.close()


def test_a_scan_beyond_a_grpc_message_is_refused_before_it_travels(monkeypatch):
    monkeypatch.setattr(triton_transport, "MAX_MESSAGE", 2**16 + 100)
    transport = connect(Address.parse("triton://127.0.0.1:1/m-sam"))
    try:
        with pytest.raises(InputRefused, match=r"or use triton\+http://"):
            transport.call({**REQUEST, "volume_uint8": np.zeros((1, 5, 5, 5), np.uint8)}, 60.0)
    finally:
        transport.close()


# --- Addresses ---


@pytest.mark.parametrize(
    ("url", "server", "model"),
    [
        ("triton://localhost:8001/m-sam", "localhost:8001", "m_sam_session"),
        ("triton+http://10.1.2.3:8000/sam_med3d", "10.1.2.3:8000", "sam_med3d_session"),
        ("triton://[::1]:8001/lora-sam", "[::1]:8001", "lora_sam_session"),
        ("triton://ai.hospital.example:8001/m-sam", "ai.hospital.example:8001", "m_sam_session"),
    ],
)
def test_an_address_is_read(url, server, model):
    address = Address.parse(url)

    assert (address.server, address.model) == (server, model)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8001/m-sam", "triton+tls://localhost:8001/m-sam", "triton://localhost/m-sam",
        "triton://localhost:8001", "triton://localhost:8001/", "triton://localhost:8001/a/b", "triton://:8001/m-sam",
        "triton://localhost:99999/m-sam", "triton://localhost:x/m-sam", "triton://[::1:8001/m-sam",
        "triton://localhost:8001/m-sam?x=1", "triton://localhost:8001/m-sam#x", "triton://localhost:8001/../m-sam",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_an_example(url):
    with pytest.raises(OptionError, match=r"e\.g\. triton://localhost:8001/m-sam"):
        Address.parse(url)


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(OptionError) as raised:
        Address.parse("triton://me:secret@localhost:8001/m-sam")
    assert "secret" not in str(raised.value)


def test_a_folder_is_no_address(tmp_path):
    assert not is_url(tmp_path)
    assert not is_url("exports/m-sam")
    assert is_url("http://localhost/m-sam")  # so that it is refused as an address, and not looked for on the disk
