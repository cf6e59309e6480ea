"""Processes: a function called in a new one, for which this module is a program, and what those that run take."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from samkit.errors import SamkitError

if TYPE_CHECKING:
    from psutil import Process

Found = TypeVar("Found")


def call_alone(function: Callable[..., dict[str, Any]], failure: str, **arguments: Any) -> tuple[float, dict[str, Any]]:
    """Call a module's function in a new process; return the seconds from before it began to its answer, and the answer.

    Arguments and answer travel as JSON, paths as text. Raises SamkitError, which begins with `failure`.
    """
    target = f"{function.__module__}:{function.__name__}"
    command = [sys.executable, "-m", "samkit.benchmarks.measure.processes", target, json.dumps(arguments, default=str)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline() if process.stdout is not None else ""
        seconds = time.perf_counter() - start
    if process.returncode or not line:
        raise SamkitError(f"{failure}; the message of its process stands above")
    return seconds, json.loads(line)


def main() -> None:
    """Call MODULE:FUNCTION with arguments from a JSON object, the command's two words; write its answer as one line."""
    target, arguments = sys.argv[1:]
    module, _, function = target.partition(":")
    try:
        answer = getattr(import_module(module), function)(**json.loads(arguments))
    except SamkitError as error:
        sys.exit(f"{function}: {error}")
    sys.stdout.write(f"{json.dumps(answer)}\n")


def resident_mb(name: str = "VmRSS") -> float:
    """Return the resident memory of this process [MB, 10^6 bytes]: now, or with "VmHWM" the most there was."""
    # Not `ru_maxrss`, which a child inherits from its parent
    kilobytes = int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
    return round(kilobytes * 1024 / 1e6, 1)


def measure_memory(graph: Path, inputs: Mapping[str, np.ndarray], threads: int) -> dict[str, float]:
    """Return what `run_graph` does, of a process of its own that holds nothing else; raises SamkitError."""
    arrays: dict[str, Any] = dict(inputs)
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **arrays)
        file.flush()
        failure = f"the memory of {graph.name} was not measured"
        return call_alone(run_graph, failure, graph=graph, inputs=file.name, threads=threads)[1]


def run_graph(graph: str, inputs: str, threads: int) -> dict[str, float]:
    """Run a file on the arrays of an .npz file; return `loaded_mb`, what this process holds with the session open,
    `peak_mb` while it runs, and the difference, `above_session_mb` [MB, 10^6 bytes].
    """
    from samkit.runtime.backends.onnxruntime_runner import open_inference_session

    with np.load(inputs) as file:
        arrays = {name: file[name] for name in file.files}
    session = open_inference_session(Path(graph), threads=threads)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    loaded = resident_mb()
    for _ in range(2):  # the first fills ONNX Runtime's arena, the second shows whether it grows on
        session.run(None, arrays)
    peak = resident_mb("VmHWM")
    return {"loaded_mb": loaded, "peak_mb": peak, "above_session_mb": round(peak - loaded, 1)}


def memory_of(pid: int) -> dict[str, Any]:
    """Return what a process and its descendants hold now [MB, 10^6 bytes]: `rss` and `pss` together, and of each.

    What processes share counts once for each of them in the sum of `rss`, and once in the sum of `pss`.
    """
    processes = dict(_of_all(pid, _held))
    totals = {kind: round(sum(held[kind] for held in processes.values()), 1) for kind in ("rss", "pss")}
    return {**totals, "processes": processes}


def _held(process: Process) -> tuple[str, dict[str, float]]:
    name, held = process_name(process.cmdline()), process.memory_full_info()
    return f"{name} {process.pid}", {kind: round(getattr(held, kind) / 1e6, 1) for kind in ("rss", "pss")}


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process and its living descendants have taken so far [s]."""
    return sum(times.user + times.system for times in _of_all(pid, lambda process: process.cpu_times()))


def _of_all(pid: int, read: Callable[[Process], Found]) -> list[Found]:
    """Return what `read` finds of a process and of all that it started, and those did; not of what ends meanwhile.

    A Triton server is one process for each model.
    """
    import psutil  # not above: no process that is timed from its start waits for it

    found = []
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in (first, *first.children(recursive=True)):
            with suppress(psutil.Error):
                found.append(read(process))
    return found


def process_name(words: Sequence[str]) -> str:
    """Return the model that a Triton stub runs, from its command line, or the program's name."""
    if len(words) > 1 and Path(words[1]).parent.name == "1":  # the model's version
        return Path(words[1]).parents[1].name
    return Path(*words[:1]).name


if __name__ == "__main__":
    main()
