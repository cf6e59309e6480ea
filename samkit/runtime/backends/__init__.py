"""Backends, which run the graphs of exports: one file with a `BACKEND` each, and its name in the list here.

Commands, sessions and benchmarks know those of this list and no other; docs/how-to/add-a-backend.md adds one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from numbers import Integral

from samkit.cores import MOST_THREADS
from samkit.errors import OptionError
from samkit.manifest import Export
from samkit.precisions import BASE, PRECISIONS, get_precision
from samkit.runtime.backends.backend import Backend, Variant
from samkit.runtime.backends.runner import Runner, add_substitutes

__all__ = [
    "BACKENDS",
    "DEFAULT",
    "Backend",
    "Variant",
    "bench_backends",
    "checked_threads",
    "default_precision",
    "device_names",
    "find_backend",
    "find_emulator",
    "get_backend",
    "is_emulated",
    "open_runners",
]

_FILES = (
    "onnxruntime_runner",
    "onnxruntime_tensorrt",
    "tensorrt_runner",
    "tensorrt_rtx_runner",
    "tensorrt_rtx_eager",
    "torch_runner",
)
BACKENDS: tuple[Backend, ...] = tuple(import_module(f"{__name__}.{file}").BACKEND for file in _FILES)
"""All of them, in the order of help and tables."""
DEFAULT = BACKENDS[0]
"""What runs when nobody asks."""

_PLACES = {"cpu": "the CPU", "cuda": "a CUDA device"}


def get_backend(name: str) -> Backend:
    """Return the record of the backend called `name`; raises OptionError with the names there are."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise OptionError(f"backend '{name}' is not known; backends are {', '.join(backend.name for backend in BACKENDS)}")


def device_names() -> tuple[str, ...]:
    """Return the devices of all backends."""
    return tuple(dict.fromkeys(device for backend in BACKENDS for device in backend.devices))


def find_backend(name: str, device: str | None, precision: str | None) -> tuple[Backend, str]:
    """Return a backend's record and where it runs, by default on its own device.

    Raises OptionError for a backend, device or precision that there is not, or that the backend lacks.
    """
    backend = get_backend(name)
    device = backend.devices[0] if device is None else device
    if device not in device_names():
        raise OptionError(f"device '{device}' is not known; devices are {', '.join(device_names())}")
    if device not in backend.devices:
        places = " and ".join(_PLACES.get(place, place) for place in backend.devices)
        raise OptionError(
            f"{backend.title} runs on {places} and not on {device}; leave {{device}} out", options=("device",)
        )
    if precision is not None:
        get_precision(precision)
    if precision is not None and backend.precisions is not None and precision not in backend.precisions:
        titles = " and ".join(one.title for one in PRECISIONS if one.name in backend.precisions)
        raise OptionError(
            f"the {name} backend runs {titles}, not {precision}; leave {{precision}} out", options=("precision",)
        )
    return backend, device


def checked_threads(threads: object) -> int | None:
    """Return a number of threads, None for all cores; raises OptionError for what is none."""
    if threads is None:
        return None
    if isinstance(threads, Integral) and not isinstance(threads, bool) and 1 <= int(threads) <= MOST_THREADS:
        return int(threads)
    raise OptionError(
        f"{{threads}} is {threads!r:.80}, needed is a whole number above 0, at most {MOST_THREADS} (four for each "
        "core of this machine), and without it all cores are used; e.g. {threads 2}",
        options=("threads", "threads 2"),
    )


def default_precision(export: Export, backend: Backend, device: str) -> str:
    """Return what runs when nobody asks: what the device prefers, where backend and export have it, else float32."""
    preferred = [
        precision.name
        for precision in PRECISIONS
        if backend.takes_preferred
        and device in precision.preferred_on
        and precision.name in export.plan.precisions
        and (backend.precisions is None or precision.name in backend.precisions)
    ]
    return preferred[0] if preferred else BASE.name


def open_runners(
    export: Export, variant: Variant, threads: int | None = None
) -> tuple[dict[str, Runner], tuple[str, ...]]:
    """Return a runner of each graph of the method, by name, and what users must be told of the backend.

    A graph that the export has no file of is run by the one it works for. Files are not hashed here, save by backends
    that check their bytes. Raises as `Backend.open_runners` does, and then leaves nothing open.
    """
    backend = get_backend(variant.backend)
    warnings = tuple(backend.warnings())
    runners = backend.open_runners(export, variant.device, variant.precision, threads)
    add_substitutes(runners, export.graphs)
    return runners, warnings


# --- What benchmarks call them ---


def bench_backends() -> dict[str, Variant]:
    """Return what `sam-bench` can run, by name: `onnxruntime`, `onnxruntime-cuda-fp16`.

    The device is named where it is not the backend's own, the precision where it is not float32. The originals come
    first, on one device: a run has them on the device that it is told.
    """
    found: dict[str, Variant] = {}
    for backend in sorted(BACKENDS, key=lambda backend: not backend.is_original):
        if not backend.in_benchmarks:
            continue
        for device in backend.devices[:1] if backend.is_original else backend.devices:
            for precision in (one.name for one in PRECISIONS):
                if backend.precisions is None or precision in backend.precisions:
                    place = "" if device == backend.devices[0] else f"-{device}"
                    kind = "" if precision == BASE.name else f"-{precision}"
                    found[f"{backend.name}{place}{kind}"] = Variant(backend.name, precision, device)
    return found


def find_emulator(variant: Variant) -> Callable[..., Runner] | None:
    """Return the runner of files that accuracy is judged by, where the backend would hide what a device does; None
    where it would not.
    """
    emulator = get_precision(variant.precision).emulator
    if emulator is None or not is_emulated(variant):
        return None
    module, name = emulator.split(":")
    found: Callable[..., Runner] = getattr(import_module(module), name)
    return found


def is_emulated(variant: Variant) -> bool:
    """Return whether a backend computes otherwise than the precision says on a device."""
    backend = next((one for one in BACKENDS if one.name == variant.backend), None)
    return (
        backend is not None
        and variant.device in backend.emulated_on
        and get_precision(variant.precision).emulator is not None
    )
