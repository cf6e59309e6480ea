"""What must stand beside every timing: the processor, how busy it is, and how fast it multiplies and copies.

A run is called unsettled where anything besides it took the processor, or where the same matrix product was not the
same speed throughout. The limits (product, copy) are measured in between the timings, so that a share of them is of the
machine as it was then.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from samkit.benchmarks.measure.turns import seconds_of
from samkit.benchmarks.record.rows import Row
from samkit.benchmarks.record.run import Facts, Run
from samkit.benchmarks.record.statistics import significant
from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install
from samkit.files import working_folder
from samkit.methods import GraphSpec
from samkit.runtime.backends import BACKENDS
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.tensors import Axis, TensorSpec

try:
    import psutil
except ImportError as error:
    raise MissingDependencyError(f"measuring needs psutil; {how_to_install('bench')}") from error

SIDE = 2048
PRODUCT_GFLOP = 2 * SIDE**3 / 1e9
_PRODUCT = """<ir_version: 10, opset_import: ["": 20]>
product (float[N, N] left, float[N, N] right) => (float[N, N] out) {out = MatMul(left, right)}"""
COPIED_MB = 256
"""Memory of one copy [MB, 10^6 bytes]: far beyond any cache."""
MOST_SPREAD, MOST_STOLEN, MOST_BUSY = 0.10, 0.02, 0.05
"""Of a settled machine: from the 5th to the 95th percentile of the matrix products, as a share of their median; of the
processors' time what a hypervisor gave to others, and what others used within LOOK_SECONDS before the first run."""
LOOK_SECONDS = 1.0
PACKAGES = (
    "samkit", "numpy", "scipy", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt",
    "tensorrt-rtx-cu13-libs", "monai", "tritonclient", "nvidia-pytriton",
)  # fmt: skip
"""Whose versions a run names, where they are installed."""


@contextmanager
def matrix_product(threads: int, device: str = "cpu") -> Iterator[Callable[[], object]]:
    """Give a float32 product of two square matrices in ONNX Runtime, what the processor can do at best, to be called.

    What it computes lies on the device and stays there. Raises MissingDependencyError where ONNX Runtime can't use it.
    """
    square = (Axis.fixed("row", SIDE), Axis.fixed("column", SIDE))
    left, right, out = (TensorSpec(name, "float32", square) for name in ("left", "right", "out"))
    with working_folder() as folder:
        path = folder / "product.onnx"
        onnx.save_model(onnx.parser.parse_model(_PRODUCT.replace("N", str(SIDE))), path)
        graph = GraphSpec("product", (left, right), (out,), {})
        runner = OnnxRuntimeRunner(path, graph, device=device, threads=threads)
    with runner:
        # Two inputs: a constant would be packed beforehand, and every activation product is not
        matrix = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
        first = runner.run_keeping({"left": matrix, "right": matrix}, ("out",))["out"]
        yield partial(runner.run_keeping, {"left": first, "right": first}, ("out",))


class Machine(ExitStack):
    """The machine during one run: made before the first timing, asked for limits in between, described at the end."""

    def __init__(self, threads: int | None = None, device: str = "cpu") -> None:
        """Note how busy it is now; raises MissingDependencyError where ONNX Runtime can't use `device`."""
        super().__init__()
        self.threads = threads or os.cpu_count() or 1
        self.device = device
        self._load, self._clocks = load(), clocks()
        self._busy = psutil.cpu_percent(LOOK_SECONDS) / 100  # the load still counts what ended a minute ago
        self._stolen = _stolen()
        self._product = self.enter_context(matrix_product(self.threads, device))
        # Ones: pages of zeros that nobody wrote are all the same page
        size, byte = COPIED_MB * 10**6, np.uint8
        self._copy = partial(np.copyto, np.ones(size, byte), np.ones(size, byte))
        self._product()
        self._copy()
        self.products: list[float] = []  # the seconds of each
        self.copies: list[float] = []

    def sample(self) -> None:
        """Measure the limits once more; call it between the timings, not within one."""
        self.products.append(seconds_of(self._product))
        self.copies.append(seconds_of(self._copy))

    def describe(self) -> dict[str, Any]:
        """Return the JSON form: what it is, what its limits were, and each reason why it was not settled."""
        if not self.products:
            self.sample()
        reasons = list(self._unsettled())
        return {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": self.threads,
            "device": self.device,
            "gpus": gpus(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "system": f"{platform.system()} {platform.release()}",
            "clock_mhz": {"before": self._clocks, "after": clocks()},
            "load": {"before": self._load, "after": load()},
            "busy_before": round(self._busy, 3),
            "gemm_gflops": significant(PRODUCT_GFLOP / float(np.median(self.products)), 4),
            # A copy reads and writes every byte
            "copy_gb_per_s": significant(2 * COPIED_MB / 1e3 / float(np.median(self.copies)), 4),
            "gemm_samples_s": [significant(value) for value in self.products],
            "copy_samples_s": [significant(value) for value in self.copies],
            "settled": not reasons,
            "unsettled": reasons,
        }

    def _unsettled(self) -> Iterator[str]:
        """Yield a sentence for everything that disturbed the run, and by how much."""
        if self._busy > MOST_BUSY:
            yield (
                f"others used {self._busy:.0%} of the processors before the first run, and an idle machine has at most "
                f"{MOST_BUSY:.0%}"
            )
        low, middle, high = np.percentile(self.products, (5, 50, 95))
        if (apart := (high - low) / middle) > MOST_SPREAD:
            yield (
                f"the same matrix product took {1e3 * low:.0f} to {1e3 * high:.0f} ms, {apart:.0%} apart, and a "
                f"settled machine stays within {MOST_SPREAD:.0%}"
            )
        stolen, total = (after - before for after, before in zip(_stolen(), self._stolen, strict=True))
        if total and stolen / total > MOST_STOLEN:
            yield (
                f"the hypervisor gave {stolen / total:.1%} of the processors' time to others, and more than "
                f"{MOST_STOLEN:.0%} moves timings"
            )


def processor() -> str:
    """Return name, family and model as `lscpu` has them, or what Python knows elsewhere."""
    facts = dict(_cpuinfo())
    if not facts:
        return platform.processor() or platform.machine()
    name = facts.get("model name", platform.machine())
    return f"{name}, family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}"


def clocks() -> list[float]:
    """Return what each core says of its clock [MHz]; a virtual machine may say a constant. Empty where none says."""
    return [round(float(value)) for key, value in _cpuinfo() if key == "cpu MHz"]


def _cpuinfo() -> list[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(key.strip(), " ".join(value.split())) for key, _, value in (line.partition(":") for line in lines)]


def _stolen() -> tuple[float, float]:
    """Return the time of the processors since they started [s]: what a hypervisor took, and all of it."""
    times = psutil.cpu_times()._asdict()
    total = sum(seconds for kind, seconds in times.items() if not kind.startswith("guest"))  # in `user`, too
    return times.get("steal", 0.0), total


def load() -> float:
    """Return how many processes wanted to run over the last minute; whatever is above our threads disturbs."""
    return round(os.getloadavg()[0], 2)


def gpus() -> list[dict[str, str]]:
    """Return name, driver, clocks [MHz] and memory [MiB] of each GPU of NVIDIA's; none where nvidia-smi finds none."""
    fields = ("name", "driver_version", "clocks.sm", "clocks.mem", "memory.total")
    found = _said("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    return [dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in found.splitlines()]


def _commit(folder: str) -> str | None:
    """Return the commit that a folder is at, and whether it was changed; None in no clone. Git writes nothing there."""
    commit = _said("git", "-C", folder, "rev-parse", "--short", "HEAD")
    changed = _said("git", "--no-optional-locks", "-C", folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit or None


def _said(*command: str) -> str:
    """Return what a program writes; nothing where it is not there, or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def finished_run(
    kind: str, started: datetime, exports: Iterable[Facts], machine: Facts, rows: Iterable[Row], notes: Iterable[str]
) -> Run:
    """Return the run of `sam-bench KIND` that began at `started` and ends now."""
    here = str(Path(__file__).parent)
    titles = {backend.name: backend.title for backend in BACKENDS}
    return Run(
        kind=kind,
        command=("sam-bench", kind),
        started=started.isoformat(timespec="seconds"),
        seconds=round((datetime.now(UTC) - started).total_seconds(), 1),
        exports=tuple(exports),
        machine=machine,
        versions=versions(),
        # What its backend is called, because tables are made of a run's file alone
        rows=tuple(
            replace(row, identity=replace(row.identity, backend_title=titles.get(row.identity.backend))) for row in rows
        ),
        commit=_commit(here),
        notes=tuple(notes),
    )


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those of `packages` that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
