"""Guards what the embedded server is started with: the right interpreter, its own backends, inputs that every graph
takes, and refusals in words."""

from __future__ import annotations

import logging
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import samkit
from samkit.errors import ManifestError, MissingDependencyError, ServingError
from samkit.methods import get_method
from samkit.runtime.backends.runner import check_inputs
from samkit.triton_models import server, server_files
from samkit.triton_models.record import Repository
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server import CHECKED_GRAPH, EmbeddedServer, is_loopback, known_inputs, last_words
from samkit.triton_models.server_files import (
    ServerFiles,
    check_numpy,
    find_server,
    lay_out_backends,
    server_environment,
)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package that looks like the one of nvidia-pytriton, and is found instead of it."""
    package = tmp_path / "site-packages" / "pytriton"
    stub = package / "tritonserver" / "python_backend_stubs" / "{}.{}".format(*sys.version_info)
    for folder in (stub, package / "tritonserver" / "backends" / "python", package / "tritonserver" / "bin"):
        folder.mkdir(parents=True)
    (package.parent / "nvidia_pytriton.libs").mkdir()
    (stub / "triton_python_backend_stub").write_text("stub")
    (package / "tritonserver" / "bin" / "tritonserver").write_text("server")
    (package / "tritonserver" / "backends" / "python" / "libtriton_python.so").write_text("backend")
    (package / "__init__.py").write_text("raise RuntimeError('importing it starts threads')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "pytriton", raising=False)
    library = tmp_path / "lib"
    library.mkdir()
    monkeypatch.setattr(server_files, "_library_folder", lambda: library)
    return package


@pytest.fixture
def files(wheel):
    return find_server()


# --- What must be there ---


def test_the_parts_of_the_wheel_are_found_without_importing_it(files, wheel):
    assert files.program == wheel / "tritonserver" / "bin" / "tritonserver"
    assert files.stub.is_file()
    assert files.python == Path(sys.executable).parent


def test_a_missing_wheel_names_the_extra(monkeypatch):
    monkeypatch.setattr(server_files, "find_spec", lambda name: None)

    with pytest.raises(MissingDependencyError, match=r"pip install .*\[serve\]"):
        find_server()


def test_a_python_without_a_stub_is_refused(wheel, monkeypatch):
    monkeypatch.setattr(server_files, "PYTHONS", ("3.7",))

    with pytest.raises(MissingDependencyError, match=r"runs models in Python 3\.7"):
        find_server()


def test_another_wheel_is_refused(wheel):
    (wheel / "tritonserver" / "bin" / "tritonserver").unlink()

    with pytest.raises(MissingDependencyError, match="lacks tritonserver"):
        find_server()


def test_an_interpreter_that_python3_does_not_name_is_refused(wheel, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python3.11"))

    with pytest.raises(MissingDependencyError, match="is not the Python that runs this"):
        find_server()


def test_a_python_without_a_shared_library_is_refused(monkeypatch):
    monkeypatch.setattr(server_files.sysconfig, "get_config_var", {"Py_ENABLE_SHARED": 0}.get)

    with pytest.raises(MissingDependencyError, match="no shared libpython"):
        server_files._library_folder()


def test_numpy_2_is_refused(monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.1.0")

    with pytest.raises(MissingDependencyError, match=r"numpy 2\.1\.0 is installed"):
        check_numpy()


# --- What it is started with ---


def test_backends_are_the_wheel_s_with_a_stub_that_runs_and_our_own(files, tmp_path):
    folder = tmp_path / "backends"
    folder.mkdir()
    lay_out_backends(files, folder)

    assert (folder / "python" / "libtriton_python.so").is_file()
    assert (folder / "python" / files.stub.name).stat().st_mode & stat.S_IXUSR
    assert "TritonPythonModel" in (folder / "onnxruntime" / "model.py").read_text()


def test_the_environment_puts_this_python_first_and_hides_gpus():
    parts = ServerFiles(Path("p"), Path("b"), Path("s"), (Path("/wheel"), Path("/python")), Path("/venv/bin"))
    given = {"PATH": "/usr/bin", "PYTHONPATH": "/elsewhere", "HOME": "/home/x"}

    assert server_environment(parts, given, "cpu") == {
        "HOME": "/home/x",
        "PATH": "/venv/bin:/usr/bin",
        "LD_LIBRARY_PATH": "/wheel:/python",
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert "CUDA_VISIBLE_DEVICES" not in server_environment(parts, given, "cuda")


@pytest.mark.parametrize("name", samkit.list_methods())  # a new file is tested at once
def test_known_inputs_fit_the_decoder_and_never_change(name):
    method = get_method(name)
    (graph,) = (spec for spec in method.graphs(method.sizes["tiny"]) if spec.name == CHECKED_GRAPH)
    inputs = known_inputs(graph)
    check_inputs(graph, inputs)

    for tensor, array in known_inputs(graph).items():
        assert np.array_equal(array, inputs[tensor])
        assert array.size == 1 or len(np.unique(array)) > 1


# --- How it fails ---


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"no samkit\.json"):
        EmbeddedServer(tmp_path).start()


def test_engines_for_rtx_are_not_started_without_a_gpu(paper_export, tmp_path):
    write_repository([paper_export("sam", rtx=[("image_encoder", "fp32")])], tmp_path / "repository", rtx=True)
    with pytest.raises(
        ServingError, match=r"^sam_image_encoder run as engines of TensorRT for RTX, .* device cuda, or"
    ):
        EmbeddedServer(tmp_path / "repository").start()


def test_a_server_that_was_never_started_can_be_stopped(tmp_path):
    assert EmbeddedServer(tmp_path).stop()


def test_nothing_is_asked_of_a_server_that_was_never_started(tmp_path):
    with pytest.raises(ServingError, match="not started"):
        _ = EmbeddedServer(tmp_path).pid


def test_a_taken_port_is_refused_and_zero_is_a_free_one():
    with socket.create_server(("127.0.0.1", 0)) as taken, ExitStack() as held:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port} of 127.0.0.1 can't be had"):
            server._free_port(held, "127.0.0.1", port)
        free = {server._free_port(held, "127.0.0.1", 0) for _ in range(3)}
        assert len(free - {0, port}) == 3


def test_an_address_that_is_not_here_is_refused():
    with ExitStack() as held, pytest.raises(ServingError, match=r"port 0 of 192\.0\.2\.1 can't be had"):
        server._free_port(held, "192.0.2.1", 0)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9"])
def test_loopback_is_known(address):
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.2"])  # noqa: S104  # none is bound
def test_addresses_that_others_reach_are_no_loopback(address):
    assert not is_loopback(address)


@pytest.mark.parametrize("address", ["::1", "localhost", "127.0.0", ""])
def test_address_that_is_not_of_ipv4_is_refused(address, tmp_path):
    with pytest.raises(ServingError, match=f"'{address}' is none of IPv4"):
        EmbeddedServer(tmp_path, address=address)


def test_log_is_read_on_where_nobody_listens_to_it(tmp_path, monkeypatch, caplog):
    def fail(record):
        raise BrokenPipeError(record.getMessage())

    caplog.set_level(logging.INFO, "samkit")
    monkeypatch.setattr(caplog.handler, "emit", fail)
    server = EmbeddedServer(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "print('one\\ntwo')"], stdout=subprocess.PIPE, text=True
    ) as said:
        said.wait()  # so that there is no key to paint over any more, which is told, too
        server._read_log(said, "the key")

    assert list(server._log) == ["one", "two"]


# --- Ports that somebody took ---


@pytest.fixture
def unlucky(tmp_path, monkeypatch):
    """A server that chooses ports 1001, 1002, ... where it is asked to, and whose HTTP port is taken `tries` times."""
    monkeypatch.setattr(server, "find_server", lambda: None)
    monkeypatch.setattr(server, "check_numpy", lambda: None)
    Repository("0", {}).save(tmp_path)

    def make(tries, **asked):
        found = EmbeddedServer(tmp_path, **asked)
        found.starts = 0

        def start(files, record):
            found.starts += 1
            found._log.clear()
            for number, name in enumerate(("grpc_port", "http_port", "metrics_port"), 1):
                setattr(found, name, getattr(found, name) or 1000 * found.starts + number)
            if found.starts <= tries:
                socket = f"Socket '127.0.0.1:{found.http_port}' already in use"
                found._log.append(f"failed to start HTTP service: Unavailable - {socket}")
                raise ServingError(f"the server ended ({socket})")

        monkeypatch.setattr(found, "_start", start)
        return found

    return make


def test_port_that_was_chosen_and_then_taken_is_chosen_again(unlucky):
    found = unlucky(2)
    found.start()
    assert (found.grpc_port, found.http_port, found.metrics_port) == (3001, 3002, 3003)


def test_ports_are_chosen_again_a_few_times_alone(unlucky):
    found = unlucky(99)
    with pytest.raises(ServingError, match="already in use"):
        found.start()
    assert found.starts == 4
    assert found.http_port == 0


def test_port_that_was_asked_for_and_is_taken_ends_it(unlucky):
    found = unlucky(1, http_port=8123)
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:8123"):
        found.start()
    assert found.starts == 1


def test_last_words_leave_tables_and_tracebacks_out():
    error = r'E1121 10:00:00 7 model_lifecycle.cc:642] "failed to load: ValueError: no\n\nAt:\n  model.py(3)'

    assert last_words([error, "+---+", "| x |"]) == error.split(r"\n")[0]
    assert last_words(["I1121 loading", "+---+", "ImportError: no module"]) == "I1121 loading | ImportError: no module"
    assert last_words([]) == "it said nothing"
