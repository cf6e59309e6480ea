"""Guards the command `sam-serve`: what it says, where, and how it ends. The server itself is a stand-in here."""

from __future__ import annotations

import functools
import logging
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest

from samkit.errors import ServingError
from samkit.triton_models import checks, cli, server
from samkit.triton_models.model_config import parse_config
from samkit.triton_models.processes import Death
from samkit.triton_models.repository import write_repository


@pytest.fixture
def sam_serve(in_process):
    return functools.partial(in_process, cli.main, "sam-serve")


@pytest.fixture
def repository(paper_export, tmp_path, monkeypatch):
    """A repository of nothing but paper, which this machine can serve."""
    write_repository([paper_export("m-sam")], tmp_path / "repository")
    monkeypatch.setattr(checks, "_in_environment", lambda record: [])
    return tmp_path / "repository"


@pytest.fixture
def fake_server(monkeypatch):
    """A class in the server's place: `asked` is what it was made with, `ends` returns the next of it that died."""

    class FakeServer:
        asked: ClassVar[dict] = {}
        ends = staticmethod(lambda: signal.raise_signal(signal.SIGTERM))
        is_idle = staticmethod(lambda: True)
        clean = True
        stops: ClassVar[list] = []
        signs = SimpleNamespace(say_watched=lambda: None)
        grpc, http, metrics = "127.0.0.1:1", "127.0.0.1:2", "http://127.0.0.1:3/metrics"

        def __init__(self, folder, **options):
            self.asked.update(options, folder=folder)

        def start(self):
            logging.getLogger(server.__name__).info("loading")

        def wait(self, seconds):
            return FakeServer.ends()

        def drain(self, seconds):
            self.asked["drain"] = seconds
            return FakeServer.is_idle()

        def stop(self, at_once=False):
            self.stops.append(at_once)
            return FakeServer.clean

    FakeServer.asked.clear()
    FakeServer.stops.clear()
    monkeypatch.setattr(server, "EmbeddedServer", FakeServer)
    return FakeServer


@pytest.mark.parametrize("words", [[], ["write"], ["check"], ["start"]])
def test_help_needs_no_optional_package(words):
    hidden = "tritonclient", "onnxruntime", "torch", "google.protobuf", "pytriton"
    program = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in hidden)
    program += f"sys.argv = ['sam-serve', *{words!r}, '--help']\nfrom samkit.triton_models.cli import main\nmain()\n"

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Usage: sam-serve" in ended.stdout


# --- write ---


def test_write_says_what_is_served(sam_serve, paper_export, tmp_path):
    exports = [paper_export("m-sam"), paper_export("sam")]
    code, out, _ = sam_serve("write", *exports, "--out", tmp_path / "repository")

    assert code == 0
    assert out.splitlines() == ["m_sam: m-sam in fp32, 9 models", "sam: sam in fp32, 8 models"]


def test_write_hands_limits_on(sam_serve, paper_export, tmp_path):
    out = tmp_path / "repository"
    limits = {"max-sessions": 3, "idle-seconds": 61, "cache-mb": 7, "max-voxels": 12345, "threads": 5}
    sam_serve("write", paper_export("sam"), "--out", out, *(f"--{name}={value}" for name, value in limits.items()))

    found = {}
    for model in ("sam_session", "sam_preprocess", "sam_refine"):
        config = parse_config((out / model / "config.pbtxt").read_text(), model)
        found[model] = {name: entry.string_value for name, entry in config.parameters.items()}
    wanted = {
        "max_sessions": "3",
        "idle_seconds": "61",
        "cache_bytes": str(7 << 20),
        "max_voxels": "12345",
        "threads": "5",
    }
    assert wanted.items() <= found["sam_session"].items()
    assert found["sam_preprocess"]["max_voxels"] == "12345"
    assert found["sam_refine"]["threads"] == "5"


def test_write_fails_in_one_line(sam_serve, paper_export, tmp_path):
    export = paper_export("m-sam")
    code, out, err = sam_serve("write", export, export, "--out", tmp_path / "repository")

    assert (code, out) == (1, "")
    assert err.startswith("sam-serve: two exports would be served as m_sam")
    assert err.count("\n") == 1


# --- check ---


def test_check_says_that_all_is_well(sam_serve, repository):
    assert sam_serve("check", repository) == (0, "it can be served here\n", "")


def test_check_says_all_problems_one_per_line(sam_serve, repository):
    (repository / "m_sam_mask_decoder" / "1" / "model.onnx").write_text("other")
    (repository / "m_sam" / "config.pbtxt").unlink()

    code, out, err = sam_serve("check", repository)

    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 2
    assert all(line.startswith("sam-serve: ") for line in err.splitlines())


def test_check_for_a_container_does_not_ask_for_the_embedded_server(sam_serve, repository, monkeypatch):
    monkeypatch.setattr(checks, "_in_environment", lambda record: ["the wheel is missing"])

    assert sam_serve("check", repository)[0] == 1
    assert sam_serve("check", repository, "--container")[0] == 0


# --- start ---


def test_start_prints_endpoints_and_a_signal_ends_it_with_0(sam_serve, repository, fake_server):
    handlers = [signal.getsignal(number) for number in cli._STOPS]
    code, out, err = sam_serve("start", repository)

    assert code == 0
    assert out.splitlines() == [
        "READY",
        "triton://127.0.0.1:1/m-sam",
        "triton+http://127.0.0.1:2/m-sam",
        "http://127.0.0.1:3/metrics",
    ]
    assert err.splitlines() == ["loading", "sam-serve: stopping; a second signal ends it at once"]
    assert fake_server.stops == [False]
    assert fake_server.asked["drain"] == 30
    assert [signal.getsignal(number) for number in cli._STOPS] == handlers


def test_start_is_on_loopback_and_on_triton_s_ports_by_default(sam_serve, repository, fake_server):
    _, _, err = sam_serve("start", repository, "--quiet")

    asked = {name: fake_server.asked[name] for name in ("grpc_port", "http_port", "metrics_port", "address", "device")}
    assert asked == {
        "grpc_port": 8001, "http_port": 8000, "metrics_port": 8002, "address": "127.0.0.1", "device": "cpu",
    }  # fmt: skip
    assert "loading" not in err


def test_start_warns_of_an_address_that_others_reach(sam_serve, repository, fake_server):
    _, _, err = sam_serve("start", repository, "--address", "192.168.1.2")

    assert "warning: whoever reaches 192.168.1.2" in err
    assert fake_server.asked["address"] == "192.168.1.2"


def test_start_refuses_an_address_that_is_not_of_ipv4(sam_serve, repository, fake_server):
    code, out, err = sam_serve("start", repository, "--address", "::1")

    assert (code, out) == (1, "")
    assert err.startswith("sam-serve: the address '::1' is none of IPv4")
    assert not fake_server.asked


def test_start_refuses_what_check_finds(sam_serve, repository, fake_server):
    (repository / "m_sam_mask_decoder" / "1" / "model.onnx").write_text("other")

    code, out, err = sam_serve("start", repository)

    assert (code, out) == (1, "")
    assert "changed since it was written" in err
    assert not fake_server.asked


def test_start_ends_with_1_when_the_server_dies_too_often(sam_serve, repository, fake_server):
    fake_server.ends = staticmethod(lambda: Death("", "ended"))

    code, _, err = sam_serve("start", repository, "--restarts", "1")

    assert code == 1
    assert "the server ended, and 1 starts in a row did not help" in err
    assert fake_server.stops == [True, True, False]


@pytest.mark.parametrize("waits", [lambda: False, lambda: signal.raise_signal(signal.SIGTERM)])
def test_start_kills_what_is_at_work_too_long_or_when_asked_twice(sam_serve, repository, fake_server, waits):
    fake_server.is_idle = staticmethod(waits)

    code, _, err = sam_serve("start", repository, "--drain-seconds", "3")

    assert code == 1
    assert "did not end in order" in err
    assert fake_server.stops == [True]
    assert fake_server.asked["drain"] == 3


def test_start_ends_with_1_when_the_server_had_to_be_killed(sam_serve, repository, fake_server):
    fake_server.clean = False

    code, _, err = sam_serve("start", repository)

    assert code == 1
    assert "did not end in order" in err


def test_start_ends_with_1_when_the_server_does_not_start(sam_serve, repository, fake_server, monkeypatch):
    def fail(self):
        raise ServingError("port 8001 can't be had; pass another")

    monkeypatch.setattr(fake_server, "start", fail)

    code, out, err = sam_serve("start", repository)

    assert (code, out) == (1, "")
    assert err == "sam-serve: port 8001 can't be had; pass another\n"
