"""EmbeddedServer: the tritonserver of the nvidia-pytriton wheel on a model repository, for loopback and development.

It is release 24.10, older than the fixes of its remote-execution faults (25.07), and has no limit on the size of
requests: patients' data on a network belong to NVIDIA's container (docs/how-to/serve.md). The wheel holds Triton's core
and its Python backend; `backends/onnxruntime` stands in for the C++ one.

Started means: every model is loaded, and a known tensor that went through came back right. Under numpy 2, which another
interpreter may bring in, the wheel's stub reads wrong numbers and says nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from samkit import engine_libraries
from samkit.errors import ServingError
from samkit.files import working_folder
from samkit.manifest import Manifest
from samkit.methods import GraphSpec
from samkit.runtime.client import tritonclient_library
from samkit.triton_models.limits import DRAIN_SECONDS
from samkit.triton_models.processes import Death, Vigil, members, stubs
from samkit.triton_models.record import ONNXRUNTIME, PYTHON, RTX, Repository, ServedExport
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server_files import (
    SHARED_BYTES,
    SHARED_MEMORY,
    ServerFiles,
    check_numpy,
    find_server,
    lay_out_backends,
    server_environment,
)
from samkit.triton_models.signs import VARIABLE, Signs

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
CHECKED_GRAPH = "mask_decoder"
"""Every export has it, and it is small: what goes through it shows that tensors arrive as they were sent."""

_EXIT_SECONDS = 10
"""How long Triton may take to end, once nobody is at work any more."""
_RETRIES = 3
"""How often a server is started again, on other ports, after somebody took one that was free when it was chosen."""
_TAKEN = re.compile(r"Socket '[^']*:(\d+)' already in use")
_RESTRICTED = "model-repository,shared-memory,trace,logging"
"""Endpoints that change what is served, or map memory. Statistics stay open: they count, and name no patient."""
_GATE = "samkit_gate"
"""A model that can't be loaded: a server that tried says that it is not ready, and answers all the same."""
_KEY_HEADER = "admin-key"
_BROKEN = f"""name: "{_GATE}"
backend: "none"
input {{ name: "none" data_type: TYPE_UINT8 dims: 1 }}
output {{ name: "nothing" data_type: TYPE_UINT8 dims: 1 }}
"""
"""Config of the gate."""
_NO_GPU = re.compile(
    "NVML|DCGM|CudaDriverHelper|pinned system memory|CUDA memory pool disabled|unable to create stream"
)
"""What a server says that looks for a GPU and finds none, as it was told to. Nobody needs to hear it."""
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG: who starts us may be killed without a word
if os.getppid() != int(sys.argv[1]):  # it was, before the line above
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def is_loopback(address: str) -> bool:
    """Return whether nobody but this machine reaches `address`; raises ServingError for one that is not of IPv4.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    try:
        return ipaddress.IPv4Address(address).is_loopback
    except ValueError:
        raise ServingError(
            f"the address '{address}' is none of IPv4, such as 127.0.0.1, and the server's ports are kept free for it "
            "and asked whether it is ready over IPv4 alone; pass one of those"
        ) from None


# --- The server ---


@contextmanager
def serve_export(folder: Path) -> Iterator[EmbeddedServer]:
    """Give a server of one export that runs on this machine's CPU until it is left, and nothing of it stays.

    Raises as `write_repository` and `EmbeddedServer.start` do, for a missing program before any work.
    """
    find_server()
    check_numpy()
    with working_folder() as work:
        repository = work / "repository"
        write_repository([folder], repository, engines=False)  # engines would need the GPUs that are hidden from it
        with EmbeddedServer(repository) as server:
            yield server


class EmbeddedServer:
    """tritonserver on one repository, from `start` to `stop`; a context manager.

    Start it from a thread that outlives it, such as the main one: Linux ends the server with the thread that started
    it, and so with a process that was killed. What is left of the latter is a folder of 3 MB in the temporary folder.

    The endpoints that change what is served, or map memory, want a random key that nobody is told. The server takes it
    from its command line, which users of the same machine can read, and where it is painted over once it was read. Only
    this class uses it, to load a model again whose process died: Triton itself goes on without, and says it is ready.
    """

    def __init__(
        self,
        repository: Path,
        *,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        address: str = LOOPBACK,
        device: str = "cpu",
        timeout: float | None = None,
    ) -> None:
        """Describe a server on the repository that `sam-serve write` wrote.

        A port of 0 is one that is free. `address`, of IPv4, is where gRPC and HTTP listen; metrics stay on loopback.
        `device` `cpu` hides all GPUs from the server; `cuda`, which was never run, leaves them to ONNX Runtime.
        `timeout` [s] is how long loading may take, by default as long as the number of models makes likely. The
        server's log is logged line by line, from another thread. Raises ServingError for an address that is not of
        IPv4.
        """
        is_loopback(address)  # or raises
        self.repository = repository
        self.address = address
        self.grpc_port, self.http_port, self.metrics_port = grpc_port, http_port, metrics_port
        self._device = device
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._log: deque[str] = deque(maxlen=200)
        self._reader: threading.Thread | None = None
        self._held = ExitStack()
        self._folder, self._key = Path(), ""
        self._vigil = Vigil()
        self._is_scarred = False
        """Whether a model died, for which Triton waits in vain when it is to end."""
        self._memory = f"samkit_{os.getpid()}_{secrets.token_hex(8)}_"
        self._name = secrets.token_hex(8)  # not that of its memory, since this one is told to whoever asks

    @property
    def grpc(self) -> str:
        """Return host and port of gRPC, as a client on this machine reaches them."""
        return f"{self._host}:{self.grpc_port}"

    @property
    def http(self) -> str:
        """Return host and port of HTTP."""
        return f"{self._host}:{self.http_port}"

    @property
    def metrics(self) -> str:
        """Return the address of the metrics page."""
        return f"http://{LOOPBACK}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """Return the process id of tritonserver; raises ServingError when it was not started."""
        return self._running().pid

    @property
    def _host(self) -> str:
        return LOOPBACK if self.address == "0.0.0.0" else self.address  # noqa: S104  # a comparison

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, wait until every model is loaded, and compare what comes back for a known tensor.

        Raises ManifestError for what is no repository, MissingDependencyError, and ServingError with the last lines of
        the log; nothing is left running then. A port of 0 is free when it is chosen and may be taken before Triton has
        it, because models load first: then all is done again on other ports, a few times.
        """
        if self._process is not None:
            raise ServingError("this server was started before; stop it first")
        record = Repository.load(self.repository)
        engines = [model for model, kind in record.models.items() if kind == RTX]
        if engines and self._device != "cuda":
            raise ServingError(
                f"{', '.join(engines)} run as engines of {engine_libraries.RTX.title}, which need a GPU; start it with "
                "{device} cuda, or write the repository with --no-engines",
                options=("device",),
            )
        files = find_server()
        check_numpy()
        asked = self._ports
        for last in (False,) * _RETRIES + (True,):
            try:
                self._start(files, record)
                break
            except ServingError:
                chosen = {port for port, wanted in zip(self._ports, asked, strict=True) if not wanted}
                self.grpc_port, self.http_port, self.metrics_port = asked
                if last or not chosen & _taken_ports(self._log):
                    raise

    @property
    def _ports(self) -> tuple[int, int, int]:
        return self.grpc_port, self.http_port, self.metrics_port

    def _start(self, files: ServerFiles, record: Repository) -> None:
        """Start once; nothing is left running where it fails."""
        self._log.clear()
        try:
            self._launch(files)
            self._wait_until_ready(self._loading_seconds(len(record.models)))
            for name, export in record.exports.items():
                if export.models.get(f"{name}_{CHECKED_GRAPH}") == ONNXRUNTIME:
                    self._compare(name, export)
            self._check_alive("while a known tensor went through it")  # what answered may be another server
            self._watch(record)
        except BaseException:
            self.stop(at_once=True)
            raise

    def _loading_seconds(self, models: int) -> float:
        return 60 + 60 * models if self._timeout is None else self._timeout

    def _watch(self, record: Repository) -> None:
        """Begin to watch the server and the process of each of its models."""
        self._vigil.watch(self.pid)
        there = stubs(self.pid)
        for pid, model in there.items():
            self._vigil.watch(pid, model)
        for model, kind in record.models.items():
            if kind in (PYTHON, ONNXRUNTIME, RTX) and model not in there.values():
                raise ServingError(f"the process of {model} ended ({last_words(self._log)}); see the server's log")

    def _launch(self, files: ServerFiles) -> None:
        self._folder = self._held.enter_context(working_folder())
        backends = self._folder / "backends"
        for part in (backends, self._gate, self._signs_folder):
            part.mkdir()
        lay_out_backends(files, backends)
        with ExitStack() as held:
            self.grpc_port, self.http_port = (
                _free_port(held, self.address, port) for port in (self.grpc_port, self.http_port)
            )
            self.metrics_port = _free_port(held, LOOPBACK, self.metrics_port)
        key = self._key = secrets.token_urlsafe(32)
        restricted = f"{_RESTRICTED}:{_KEY_HEADER}={key}"  # Triton 24.10 reads keys from nowhere else
        memory = (f"shm-region-prefix-name={self._memory}", f"shm-default-byte-size={SHARED_BYTES}",
                  f"shm-growth-byte-size={SHARED_BYTES}", "stub-timeout-seconds=300")  # fmt: skip
        command = [
            str(files.program),
            f"--id={self._name}",
            f"--model-repository={self.repository.resolve()}",
            f"--model-repository={self._gate}",
            f"--backend-directory={backends}",
            # A Python-based backend has settings of its own name
            *(f"--backend-config={backend},{setting}" for backend in ("python", "onnxruntime") for setting in memory),
            "--model-control-mode=explicit",
            "--load-model=*",
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            "--exit-on-error=true",
            f"--exit-timeout-secs={_EXIT_SECONDS}",
            f"--http-address={self.address}",
            f"--http-port={self.http_port}",
            f"--http-restricted-api={restricted}",
            f"--grpc-address={self.address}",
            f"--grpc-port={self.grpc_port}",
            f"--grpc-restricted-protocol={restricted}",
            f"--metrics-address={LOOPBACK}",
            f"--metrics-port={self.metrics_port}",
            f"--allow-gpu-metrics={str(self._device == 'cuda').lower()}",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**server_environment(files, os.environ, self._device), VARIABLE: str(self._signs_folder)},
            process_group=0,  # Ctrl-C is ours to hear: the server is stopped, not hit
        )
        self._reader = threading.Thread(target=self._read_log, args=(self._process, key), daemon=True)
        self._reader.start()

    def _read_log(self, process: subprocess.Popen[str], key: str) -> None:
        for number, line in enumerate(process.stdout or ()):
            # What we log may have nobody who listens any more; a full pipe would stop the server
            if not number:  # whoever speaks has read its arguments
                with suppress(Exception):
                    _paint_over(process.pid, key)
            if self._device == "cuda" or not _NO_GPU.search(line):
                self._log.append(line.rstrip())
                with suppress(Exception):
                    logger.info("%s", line.rstrip())

    @property
    def _gate(self) -> Path:
        return self._folder / "gate"

    @property
    def _signs_folder(self) -> Path:
        return self._folder / "signs"

    @property
    def signs(self) -> Signs:
        """Return what is told to the models of this start."""
        return Signs(self._signs_folder)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise ServingError("the server is not started; call start first")
        return self._process

    def _check_alive(self, when: str) -> None:
        """Raise ServingError with the last lines of the log when the server has ended."""
        if (code := self._running().poll()) is None:
            return
        if self._reader is not None:
            self._reader.join(timeout=5)
        raise ServingError(f"the server ended with code {code} {when} ({last_words(self._log)}); see its log")

    def _wait_until_ready(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            self._check_alive("before it was ready")
            if self._is_ready():
                return
            time.sleep(0.1)
        raise ServingError(
            f"the server did not load its models within {timeout:.0f} s ({last_words(self._log)}); "
            "see its log, and give it more time or fewer exports"
        )

    def _is_ready(self) -> bool:
        """Return whether all models are loaded and the last of the three services, which is metrics, listens.

        What answers on a port that was free may be another server: ours says the name that it was given.
        """
        return (
            self._name in (_get(self._host, self.http_port, "/v2") or "")
            and self._says_ready()
            and _get(LOOPBACK, self.metrics_port, "/metrics") is not None
        )

    def _says_ready(self) -> bool:
        return _get(self._host, self.http_port, "/v2/health/ready") is not None

    def _compare(self, name: str, export: ServedExport) -> None:
        """Raise ServingError unless the decoder of an export answers a known input as this process does."""
        from samkit.runtime.backends.onnxruntime_runner import (
            OnnxRuntimeRunner,  # loads ONNX Runtime; --help does without
        )

        plan = Manifest.load(self.repository / f"{name}_preprocess" / "1").plan
        (graph,) = (spec for spec in plan.specs if spec.name == CHECKED_GRAPH)
        model = f"{name}_{CHECKED_GRAPH}"
        inputs = known_inputs(graph)
        with OnnxRuntimeRunner(self.repository / model / "1" / "model.onnx", graph, device=self._device) as runner:
            expected = runner.run(inputs)
        found = self._infer(model, inputs, list(expected))
        for tensor, array in expected.items():
            if not _is_equal(array, found[tensor], graph, export.precision if self._device == "cuda" else None):
                raise ServingError(
                    f"model {model} gave other numbers for '{tensor}' than the same file does in this process, though "
                    f"both were sent the same; where the stub finds numpy 2, tensors arrive wrong (here is "
                    f"numpy {np.__version__}), so run sam-serve from a virtual environment of its own"
                )

    def _infer(self, model: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        library = tritonclient_library.grpc()
        tensors = tritonclient_library.as_inputs(library, inputs)
        try:
            with library.InferenceServerClient(self.grpc) as client:
                result = client.infer(model, tensors, client_timeout=300)
                return {name: result.as_numpy(name) for name in outputs}
        except library.InferenceServerException as error:
            self._check_alive("while a known tensor went through it")
            raise ServingError(f"model {model} does not take a known tensor ({error}); see the server's log") from error

    # --- While it runs ---

    def wait(self, seconds: float) -> Death | None:
        """Return what died first, of the server and its models, as soon as it did; None after `seconds` without."""
        self._running()
        return self._vigil.wait(seconds)

    def unload(self, model: str) -> None:
        """Let go of a model whose process died; others go on, and the server says that it is not ready until `load`.

        Raises ServingError where that fails; then the whole server has to be started again.
        """
        self._is_scarred = True
        self._vigil.forget(model)
        for pid in self._pids(model):  # one that stands still, and others of the same model
            os.kill(pid, signal.SIGKILL)
        self._manage(model, "unload")

    def load(self, model: str) -> None:
        """Load a model again that was unloaded; raises ServingError as `unload` does."""
        self._manage(model, "load")
        pids = self._pids(model)
        for pid in pids:
            self._vigil.watch(pid, model)
        if not pids or not self._says_ready():
            words = last_words(self._log)
            raise ServingError(f"model {model} was loaded again and does not run ({words}); see the server's log")

    def _pids(self, model: str) -> list[int]:
        """Return the processes that run a model."""
        return [pid for pid, found in stubs(self.pid).items() if found == model]

    def _manage(self, model: str, verb: str) -> None:
        status, text = _ask(
            self._host, self.http_port, "POST", f"/v2/repository/models/{model}/{verb}",
            seconds=self._loading_seconds(1), headers={_KEY_HEADER: self._key},
        )  # fmt: skip
        if status != http.client.OK:
            raise ServingError(f"the server did not {verb} model {model} ({text or 'it gave no answer'}); see its log")

    # --- How it ends ---

    def drain(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Let requests end that are worked on, refuse new ones, and return whether all ended within `seconds`.

        From now on the server says that it is not ready.
        """
        if self._process is None or self._process.poll() is not None:
            return True
        self.signs.say_stopping()
        version = self._gate / _GATE / "1"
        version.mkdir(parents=True, exist_ok=True)
        (version.parent / "config.pbtxt").write_text(_BROKEN)
        with suppress(ServingError):  # as it should
            self._manage(_GATE, "load")
        return self.signs.wait_for_rest(seconds)

    def stop(self, *, at_once: bool = False) -> bool:
        """Stop, and return whether the server ended by itself and in order: nothing had to be killed or removed.

        What is to end `at_once` is killed, and so is a server of which a model died: Triton would wait for it in vain.
        See `drain` for requests that are worked on. Afterwards no process, no shared memory and no temporary folder of
        it is there. To stop twice is harmless.
        """
        killed = at_once or self._is_scarred or self._vigil.wait(0) is not None
        clean = True
        self._vigil.close()
        if self._process is not None:
            if not killed:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_EXIT_SECONDS + 10)
                clean = self._process.poll() == 0 and not members(self._process.pid, patience=5)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            members(self._process.pid, patience=5)
            if self._reader is not None:
                self._reader.join(timeout=5)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
        for region in SHARED_MEMORY.glob(f"{self._memory}*"):
            clean = clean and killed
            region.unlink(missing_ok=True)
        self._held.close()
        self._is_scarred = False
        return clean


# --- Parts of it ---


def known_inputs(graph: GraphSpec) -> dict[str, np.ndarray]:
    """Return inputs of the usual sizes for `graph`, the same at every call; no two values of a tensor are alike."""
    rng = np.random.default_rng(20241)
    return {spec.name: rng.standard_normal(spec.shape).astype(spec.dtype) for spec in graph.inputs}


def _is_equal(expected: np.ndarray, found: np.ndarray, graph: GraphSpec, precision: str | None) -> bool:
    """Return whether two outputs are the same bits; on a GPU, with its `precision`, within the graph's tolerance."""
    if precision is None or expected.shape != found.shape:
        return bool(np.array_equal(expected, found))
    return bool(np.linalg.norm(found - expected) <= graph.tolerance[precision].relative * np.linalg.norm(expected))


def last_words(log: Sequence[str]) -> str:
    """Return the last errors of a log in one line, or its last lines where it names none.

    >>> last_words(["I1121 all is well", 'E1121 model.cc:1] "failed to load"', "+----+", "error: creating server"])
    'E1121 model.cc:1] "failed to load" | error: creating server'
    """
    errors = [line for line in log if re.match(r"E\d{4} |error:", line)]
    words = [line for line in log if line.strip() and not line.startswith(("+", "|"))]
    # Triton writes the lines of a Python traceback as one, with the line breaks spelt out
    return " | ".join(line.split("\\n")[0] for line in (errors or words)[-3:]) or "it said nothing"


def _taken_ports(log: Iterable[str]) -> set[int]:
    """Return the ports that a server could not have, because somebody else listens there.

    >>> _taken_ports(["failed to start HTTP service: Unavailable - Socket '127.0.0.1:8000' already in use"])
    {8000}
    """
    return {int(port) for line in log for port in _TAKEN.findall(line)}


def _paint_over(pid: int, secret: str) -> None:
    """Write stars over `secret` in the arguments of a child, where all users of this machine can read them.

    With it and the name of a piece of shared memory, which all can read, too, the server would map and send out scans.
    """
    try:
        # Of /proc/PID/stat behind the program's name: where arguments begin and end
        begin, end = map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[45:47])
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(begin)
            arguments = memory.read(end - begin)
            memory.seek(begin)
            memory.write(arguments.replace(secret.encode(), b"*" * len(secret)))
    except (OSError, ValueError) as error:
        logger.warning("the key of the server's endpoints stays in its command line (%s); keep others off this machine",
                       type(error).__name__)  # fmt: skip


def _get(host: str, port: int, path: str) -> str | None:
    """Return what a GET over HTTP is answered with; None unless it is with 200."""
    status, text = _ask(host, port, "GET", path, seconds=5)
    return text if status == http.client.OK else None


def _ask(
    host: str, port: int, verb: str, path: str, *, seconds: float, headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Return status and text of an answer over HTTP; 0 and what failed where there is none within `seconds`."""
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        connection.request(verb, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, type(error).__name__
    finally:
        connection.close()


def _free_port(held: ExitStack, host: str, port: int) -> int:
    """Return `port`, or a free one for 0, held until `held` closes; raises ServingError for one that is taken."""
    holder = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just ended does not count
    try:
        holder.bind((host, port))
    except OSError as error:
        raise ServingError(
            f"port {port} of {host} can't be had ({error.strerror}), and the server needs it; stop what listens there, "
            "or pass another port"
        ) from error
    return int(holder.getsockname()[1])
