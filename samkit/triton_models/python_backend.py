"""Triton's Python backend, as far as samkit uses it. The only file that imports triton_python_backend_utils, which
exists inside a server alone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from samkit.errors import SamkitError, ServerRestarting, ServerStopping, ServingError, TensorMismatchError
from samkit.runtime.protocol.failure import error_text, read_error
from samkit.runtime.protocol.wire import MOST_JSON, decode
from samkit.triton_models.server_files import SHARED_MEMORY
from samkit.triton_models.signs import Signs

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Of malloc.h."""
ERRORS_METRIC = "samkit_errors_total"
"""Counted by every Python model, beside what its sessions count."""
REPAIR_SECONDS = 10.0
"""How long a call waits for a model that is started again."""
_DIED = "is not healthy"
_AWAY = "is not ready"
"""What Triton 24.10 says of a model whose process died, and of one that is being loaded."""
_UNTIL_AWAY, _PAUSE = 1.0, 0.1
"""How long after the first a model is surely no longer said to be there, and between further questions [s]."""
_BACK = threading.Lock()
"""Metrics from two threads at once end Triton 24.10 with a segmentation fault; logs go the same way to the server."""


def pb_utils() -> ModuleType:
    """Return the backend's own module; raises ServingError outside of a server."""
    try:
        import triton_python_backend_utils
    except ImportError as error:
        raise ServingError(
            "triton_python_backend_utils is not there, and a server's Python model needs it; start the repository with "
            "sam-serve start, or in NVIDIA's container"
        ) from error
    return triton_python_backend_utils


def read_tensor(request: Any, name: str) -> np.ndarray | None:
    """Return an input, None where the request does not have it. The array is the request's: copy what outlives it."""
    tensor = pb_utils().get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def need_tensor(request: Any, name: str) -> np.ndarray:
    """Return an input; raises TensorMismatchError where the request does not have it."""
    array = read_tensor(request, name)
    if array is None:
        raise TensorMismatchError(f"the request has no tensor '{name}', which this model needs; send it")
    return array


def read_json(request: Any, name: str, default: object = None) -> Any:
    """Return what an input of JSON says; `default` where the request does not have it."""
    tensor = read_tensor(request, name)
    return default if tensor is None else decode(tensor, name, most=MOST_JSON)


def need_json(request: Any, name: str) -> Any:
    """Return what an input of JSON says; raises TensorMismatchError where the request does not have it."""
    return decode(need_tensor(request, name), name, most=MOST_JSON)


def begin(model: str, name: str = "") -> None:
    """Do what every Python model does before its first request: hide its shared memory, count its errors, see signs.

    `model` is the model's own name, `name` what the export is served under, where the model knows it.
    """
    hide_memory()
    _ERRORS.show_for(model, name)
    _SIGNS.read()


def hide_memory(maps: Path = Path("/proc/self/maps")) -> None:
    """Let nobody but the server's own user read the memory that this process shares with the server.

    Scans and tokens travel through it. The server makes it readable for all, whatever its umask, and anew with every
    stub that it starts; the process that `maps` lists the memory of is that stub, before its first request. Triton
    24.10 starts none again that died. What others do so comes by here as well.
    """
    for path in set(re.findall(rf"^.*? ({SHARED_MEMORY}/\S+)$", maps.read_text(), re.MULTILINE)):
        Path(path).chmod(0o600)


class _Signs:
    """What `sam-serve start` tells this process, and is told by it; in NVIDIA's container there is nothing of it."""

    def __init__(self) -> None:
        self.found: Signs | None = None

    def read(self) -> None:
        """Find out whether somebody gives signs."""
        self.found = Signs.of(os.environ)

    @property
    def is_watched(self) -> bool:
        """Whether a model that died is started again."""
        return self.found is not None and self.found.is_watched

    def at_work(self) -> AbstractContextManager[None]:
        """Say that a request is worked on."""
        return nullcontext() if self.found is None else self.found.at_work()


_SIGNS = _Signs()
"""Of the one server that a stub belongs to."""


def check_open() -> None:
    """Raise ServerStopping where nothing new may begin; for a model that clients call."""
    if _SIGNS.found is not None and _SIGNS.found.is_stopping:
        raise ServerStopping(
            "this server is being stopped and takes nothing new; try again at another server, or later at this one"
        )


Run: TypeAlias = Callable[[Any], Mapping[str, np.ndarray]]
"""Takes a request, returns its output tensors or raises."""


def answer(run: Run, request: Any) -> Any:
    """Return the response to a request: what `run` returns, or how it failed.

    An error of ours goes out whole. Of a bug only the kind does: its message may hold anything, and what a server says
    and logs must name no patient.
    """
    utils = pb_utils()
    try:
        with _SIGNS.at_work():
            tensors = run(request)
        return utils.InferenceResponse([utils.Tensor(name, np.ascontiguousarray(a)) for name, a in tensors.items()])
    except SamkitError as error:
        _ERRORS.count(error)
        return utils.InferenceResponse(error=utils.TritonError(error_text(error)))
    except Exception as error:
        _ERRORS.count(error)
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = (
            f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}, a bug of samkit; please report it"
        )
        log_error(text)
        return utils.InferenceResponse(error=utils.TritonError(error_text(ServingError(text))))


def reply(run: Run, request: Any, sender: Any) -> None:
    """Send the response to a request, which `answer` makes. A failure of that is sent bare, once, and never raised."""
    try:
        _send(sender, answer(run, request))
    except Exception as error:
        _ERRORS.count(error)
        text = f"{type(error).__name__} while a request was answered; ask again, and see the server's log"
        with suppress(Exception):
            log_error(text)
        with suppress(Exception):  # then nobody listens
            _send(sender, pb_utils().InferenceResponse(error=pb_utils().TritonError(error_text(ServingError(text)))))


def _send(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils().TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class Threads:
    """Answers requests from threads, which Triton allows a model that returns nothing from `execute`."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count)

    def answer(self, run: Run, request: Any) -> None:
        """Have `run` work on `request`, and answer it when that is done; with an error where nobody waits by then."""
        self._pool.submit(reply, partial(_unless_cancelled, run), request, request.get_response_sender())

    def close(self) -> None:
        """Wait until all requests are answered."""
        self._pool.shutdown()


def _unless_cancelled(run: Run, request: Any) -> Mapping[str, np.ndarray]:
    """Return what `run` does; raises ServingError where the client gave up while the request waited for a thread."""
    if request.is_cancelled():
        raise ServingError("the request was cancelled before work on it began, so nothing changed; ask again")
    return run(request)


def call(model: str, inputs: Mapping[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
    """Run another model of this server (BLS) and return its outputs, copied; raises what that model says.

    Of an error that is not ours the client hears the model's name alone: a server's own text may name its shared memory
    (CVE-2025-23319). Where somebody starts again what dies, a model that is away is asked again once it is there; what
    dies of the same question twice is not. Raises ServerRestarting for one that stays away.
    """
    utils = pb_utils()
    answer, deaths, until = _exec(model, inputs, outputs), 0, time.monotonic() + REPAIR_SECONDS
    while answer.has_error():
        text = answer.error().message()
        if (ours := read_error(text)) is not None:
            raise ours
        deaths += _DIED in text
        if deaths + (_AWAY in text) == 0 or not _SIGNS.is_watched:
            log_error(f"model {model} failed: {text}")
            raise ServingError(f"model {model} failed; see the server's log")
        if deaths > 1 or time.monotonic() > until:
            raise ServerRestarting(
                f"the process of model {model} died and is started again; try again in {REPAIR_SECONDS:.0f} s",
                seconds=REPAIR_SECONDS,
            )
        time.sleep(_UNTIL_AWAY if _DIED in text else _PAUSE)
        answer = _exec(model, inputs, outputs)
    found = {name: utils.get_output_tensor_by_name(answer, name).as_numpy() for name in outputs}
    # Those arrays lie in memory that the server shares and counts: what is kept for a session must not
    return {name: np.array(array) for name, array in found.items()}


def _exec(model: str, inputs: Mapping[str, np.ndarray], outputs: list[str]) -> Any:
    """Run another model of this server once, and return its answer."""
    utils = pb_utils()
    request = utils.InferenceRequest(
        model_name=model,
        requested_output_names=outputs,
        inputs=[utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()],
        preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    return request.exec()


class _ServerLog(logging.Handler):
    """Writes each record as one line to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        with _BACK:
            pb_utils().Logger.log_info(record.getMessage())


_SERVER_LOG = _ServerLog()


def open_log() -> None:
    """Have the server's log show what `samkit.triton_models` logs; the rest of samkit may name a scan."""
    logger = logging.getLogger("samkit.triton_models")
    logger.addHandler(_SERVER_LOG)  # once, however often
    logger.setLevel(logging.INFO)


def close_log() -> None:
    """Undo `open_log`."""
    logging.getLogger("samkit.triton_models").removeHandler(_SERVER_LOG)


def log_error(text: str) -> None:
    """Write an error to the server's log."""
    with _BACK:
        pb_utils().Logger.log_error(text)


def keep_heap() -> None:
    """Have this process keep the memory that it frees, up to 512 MB, for what it allocates next; on glibc alone.

    A click makes and frees arrays of megabytes. To give them back and fetch them again, page by page, costs more than
    the arithmetic on them; and a server's environment, made for its messages, asks for just that.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # elsewhere it is slower, and nothing else
        for setting, size in ((_TRIM_THRESHOLD, 2**29), (_TOP_PAD, 2**26), (_MMAP_THRESHOLD, 2**25)):
            mallopt(setting, size)


class Metrics:
    """Counters and gauges of one model on the server's metrics page."""

    def __init__(self, **labels: str) -> None:
        """Take the labels that tell this model's figures from those of others: `name="m_sam"`; empty ones are none."""
        self._labels = labels
        self._families: dict[str, Any] = {}  # a family that nobody holds is taken away with its metrics
        self._metrics: dict[tuple[str, ...], tuple[Any, float]] = {}

    def show(self, name: str, kind: str, description: str, value: float, **labels: str) -> None:
        """Make the page say that `name` is `value`; `kind` is `counter`, which only grows, or `gauge`."""
        utils = pb_utils()
        with _BACK:
            if name not in self._families:
                kinds = {"counter": utils.MetricFamily.COUNTER, "gauge": utils.MetricFamily.GAUGE}
                self._families[name] = utils.MetricFamily(name=name, description=description, kind=kinds[kind])
            key = (name, *labels.values())
            if key not in self._metrics:
                shown = {label: text for label, text in {**self._labels, **labels}.items() if text}
                self._metrics[key] = (self._families[name].Metric(labels=shown), 0.0)
            metric, before = self._metrics[key]
            if kind == "gauge":
                metric.set(value)
            elif value > before:
                metric.increment(value - before)
            self._metrics[key] = (metric, max(before, value))


class _Errors:
    """How often this process answered with an error, by class. To Triton an answer is a success, whatever it says."""

    def __init__(self) -> None:
        self._metrics: Metrics | None = None
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def show_for(self, model: str, name: str) -> None:
        """Show what is counted from now on as the errors of `model`."""
        with self._lock:
            self._metrics, self._counts = Metrics(name=name, model=model), Counter()

    def count(self, error: Exception) -> None:
        """Count one; a page that can't be written is no reason to leave a request without its answer."""
        kind = type(error).__name__
        with self._lock, suppress(Exception):
            self._counts[kind] += 1
            if self._metrics is not None:
                what = "Requests answered with an error"
                self._metrics.show(ERRORS_METRIC, "counter", what, self._counts[kind], type=kind)


_ERRORS = _Errors()
"""Of the one model that a stub runs."""
