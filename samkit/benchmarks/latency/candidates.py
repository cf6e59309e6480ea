"""Who takes turns besides PyTorch: what an export holds for this device; and rows of what could not be timed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from samkit.benchmarks.latency.baselines import torch_precision
from samkit.benchmarks.latency.settings import AUTOCAST, COMPILE, EAGER, LatencySettings
from samkit.benchmarks.measure.machine import gpus
from samkit.benchmarks.record.rows import Absent, Identity, Row
from samkit.errors import MissingDependencyError
from samkit.manifest import Export
from samkit.precisions import BASE, get_precision
from samkit.runtime.backends import DEFAULT, Variant, bench_backends, get_backend, is_emulated

T = TypeVar("T")
NO_GPU = "no CUDA device here"
NOT_ASKED = "this run was on the CPU; sam-bench latency --device cuda measures it"


def candidates(export: Export, settings: LatencySettings) -> list[Variant]:
    """Return what is timed of an export on the device that is asked for, in all precisions that it was written in."""
    return [
        one
        for one in bench_backends().values()
        if not get_backend(one.backend).is_original and one.precision in export.plan.precisions
        and (one.device == settings.device or (settings.engines and "cpu" not in get_backend(one.backend).devices))
    ]  # fmt: skip


def needing_gpu() -> list[Variant]:
    """Return what takes turns where there is a CUDA device; of a backend that runs on one alone, what it prefers."""
    ours = [
        one
        for one in bench_backends().values()
        if one.device == "cuda"
        and ("cpu" in get_backend(one.backend).devices or "cuda" in get_precision(one.precision).preferred_on)
    ]
    return [*ours, *(Variant(name, torch_precision(name, "cuda"), "cuda") for name in (EAGER, AUTOCAST, COMPILE))]


def rows_of_gpu(rows: Iterable[Row]) -> Iterator[Absent]:
    """Yield, for the rows of a run on the CPU, those of all that needs CUDA."""
    why = NOT_ASKED if gpus() else NO_GPU
    for row in rows:
        if (row.identity.backend, row.identity.precision) == (DEFAULT.name, BASE.name):
            for one in needing_gpu():
                if row.identity.graph or one.backend not in (AUTOCAST, COMPILE):
                    identity = replace(row.identity, backend=one.backend, precision=one.precision, device=one.device)
                    yield Absent("latency", identity, why, is_failure=False)


def identity_of(export: Export, one: Variant, threads: int, **more: Any) -> Identity:
    """Return what tells the row of one from others; `more` as the fields of Identity."""
    where = (one.backend, one.precision, one.device)
    return Identity.of(export.plan, export.digest, *where, threads=threads, **more)


def lack_of(export: Export, one: Variant) -> str | None:
    """Return why one of the candidates can't take part, as far as the export says."""
    return get_backend(one.backend).missing(export, one.precision)


def note_on(one: Variant) -> str | None:
    """Return what users must be told of a time."""
    return get_precision(one.precision).emulated if is_emulated(one) else None


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
