"""Who takes turns besides PyTorch: what an export holds for this device; and rows of what could not be timed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from samkit.benchmarks.latency.settings import AUTOCAST, COMPILE, EAGER, Settings
from samkit.benchmarks.measure.machine import gpus
from samkit.benchmarks.record.rows import Absent, Identity, Row
from samkit.errors import MissingDependencyError
from samkit.manifest import Export, engine_file
from samkit.runtime.session.volume_session import TENSORRT

T = TypeVar("T")
ONNXRUNTIME = "onnxruntime"
ON_GPU = ((ONNXRUNTIME, "fp32"), (ONNXRUNTIME, "fp16"), (EAGER, "fp32"), (AUTOCAST, "fp16"), (COMPILE, "fp32"))
"""Backend and precision of the rows that a run on a CUDA device has of each graph."""
ON_GPU_IN_STAGES = ON_GPU[:3]
ENGINES = (TENSORRT, "fp16")
NO_GPU = "no CUDA device here"
NOT_ASKED = "this run was on the CPU; sam-bench latency --device cuda measures it"


@dataclass(frozen=True)
class Candidate:
    """A backend in one precision, of an export."""

    backend: str
    precision: str
    device: str
    lack: str | None = None
    """Why it can't take part, as far as the export says."""
    note: str | None = None

    def identity(self, export: Export, **more: Any) -> Identity:
        """Return what tells its row from others; `more` as the fields of Identity."""
        return Identity.of(export.plan, export.digest, self.backend, self.precision, self.device, **more)


def candidates(export: Export, settings: Settings) -> list[Candidate]:
    """Return what was exported and is timed on the device that is asked for."""
    found = [
        Candidate(ONNXRUNTIME, precision, settings.device, note=_note(precision, settings.device))
        for precision in export.plan.precisions
    ]
    if settings.takes_engines:
        lacks = {precision: _missing_engine(export, precision) for precision in export.plan.precisions}
        found += [Candidate(TENSORRT, precision, "cuda", lack) for precision, lack in lacks.items()]
    return found


def _note(precision: str, device: str) -> str | None:
    is_slow = (precision, device) == ("fp16", "cpu")
    return "a CPU computes float16 through float32; a GPU does not" if is_slow else None


def _missing_engine(export: Export, precision: str) -> str | None:
    """Return why TensorRT can't take part, None where all engines are there."""
    names = [engine_file(graph, precision) for graph in export.plan.graphs]
    missing = [name for name in names if name not in export.manifest.engines]
    return f"the export has no TensorRT engine {missing[0]}; sam-export --build-engines" if missing else None


def attempt(identity: Identity, act: Callable[[], T]) -> T | Absent:
    """Return what `act` returns, or the row that says why it can't be timed; PyTorch's own failures are raised."""
    try:
        return act()
    except MissingDependencyError as error:
        return Absent("latency", identity, str(error), is_failure=False)
    except Exception as error:  # PyTorch's compiler, ONNX Runtime and TensorRT share no other base
        if identity.backend == EAGER:
            raise
        first_line = (str(error).strip() or "no reason").splitlines()[0]
        return Absent("latency", identity, f"{type(error).__name__}: {first_line}", is_failure=True)


def rows_of_gpu(rows: Iterable[Row]) -> Iterator[Absent]:
    """Yield, for the rows of a run on the CPU, those of all that needs CUDA."""
    why = NOT_ASKED if gpus() else NO_GPU
    for row in rows:
        if (row.identity.backend, row.identity.precision) == (ONNXRUNTIME, "fp32"):
            for backend, precision in (*(ON_GPU if row.identity.graph else ON_GPU_IN_STAGES), ENGINES):
                identity = replace(row.identity, backend=backend, precision=precision, device="cuda")
                yield Absent("latency", identity, why, is_failure=False)
