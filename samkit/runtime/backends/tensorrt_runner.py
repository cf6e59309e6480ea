"""Engines of NVIDIA's libraries behind the Runner interface, on the first CUDA device that is visible.

An engine is native code, and whoever can write one can run code here. So only a file that the manifest lists is ever
loaded, with the SHA-256, the version, and the GPU or the target it was built with (EngineLibrary says which).

Buffers are allocated once, for the largest shapes of the graph. A tensor that is kept lies in memory of its own, which
is used again once nobody holds the tensor. Where the library captures CUDA graphs, every run reads and writes the same
buffers, and what is kept or was kept is copied: a captured graph may hold the addresses that it was captured with.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from math import prod
from threading import Lock
from typing import Any

import numpy as np

from samkit.engine_libraries import TENSORRT, EngineLibrary
from samkit.errors import ManifestError, SamkitError, TensorMismatchError
from samkit.manifest import Export
from samkit.methods.method import GraphSpec, VolumeMethod
from samkit.prompts import ABSENT
from samkit.runtime.backends.backend import Backend, open_each
from samkit.runtime.backends.cuda_device import CudaDevice
from samkit.runtime.backends.cuda_libraries import cuda_library, describe_device
from samkit.runtime.backends.runner import Closing, Runner, check_inputs, kept_names, still_open
from samkit.runtime.backends.runtime_cache import RuntimeCache
from samkit.runtime.backends.tensorrt_library import (
    LAZY,
    Compilation,
    Engine,
    tensorrt_version,
    untested_warning,
)
from samkit.tensors import Tensor, TensorSpec

POINTS = "points"
"""Name of the axis that may be empty: TensorRT's profiles begin at one point, an ABSENT one, which changes nothing."""

PLACE = "TensorRT on cuda:0"


class EngineTensor:
    """An output that stayed in the memory of the CUDA device; a `DeviceTensor`."""

    def __init__(self, device: CudaDevice, address: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """Hold memory that nobody else writes to."""
        self.shape = shape
        self.dtype = dtype
        self.nbytes = prod(shape) * dtype.itemsize
        self.place = PLACE
        self.address = address
        self._device: CudaDevice | None = device

    @property
    def is_open(self) -> bool:
        """Return whether the runner that made it is still open."""
        return self._device is not None

    def numpy(self) -> np.ndarray:
        """Return a copy on the host; raises SamkitError once the runner that made it is closed."""
        if self._device is None:
            raise SamkitError("the tensor was kept by a runner that is closed; open the session again")
        copy = np.empty(self.shape, self.dtype)
        with self._device.active():
            self._device.fetch_now(copy, self.address)
        return copy

    def free(self) -> None:
        """Let go of the device, whose memory is freed by the runner."""
        self._device = None


class TensorRTRunner(Closing):
    """One engine of an export."""

    def __init__(
        self,
        export: Export,
        graph: GraphSpec,
        precision: str,
        library: EngineLibrary = TENSORRT,
        *,
        kernels: str = LAZY,
    ) -> None:
        """Load a library's engine of `graph` in `precision` from the folder of `export`, whose manifest lists it.

        `kernels` is when they are compiled, where the library does that here: LAZY or EAGER. Raises ManifestError where
        there is no engine, where it was built for another GPU or version, or changed since, and MissingDependencyError
        where the library, a package that drives CUDA, or a GPU is missing.
        """
        self.graph = graph
        version = tensorrt_version(library)
        self.providers: tuple[str, ...] = (f"{library.title} {version}",)
        here = describe_here(library)
        plan = _trusted_engine(export, graph, precision, library, here)
        self._name = library.engine_file(graph.name, precision)
        self._captures = library.has_runtime_cache and shapes_stay(export, graph)
        self._cache = RuntimeCache(plan, version, here) if library.has_runtime_cache else None
        self._lock = Lock()
        self._kept: weakref.WeakSet[EngineTensor] = weakref.WeakSet()
        self._spare: dict[int, list[int]] = {}
        self._engine: Engine | None = None
        with ExitStack() as opened:
            self._device: CudaDevice = cuda_library(library.extra).open()
            opened.callback(self._device.close)
            with self._device.active():
                known = b"" if self._cache is None else self._cache.read()
                engine = Engine(plan, self._name, library, Compilation(kernels, self._captures, known))
                opened.callback(engine.close)
                self._check_tensors(engine)
                self._memory = {
                    spec.name: self._device.allocate(_largest(spec) * np.dtype(spec.dtype).itemsize)
                    for spec in (*graph.inputs, *graph.outputs)
                }
                self._host = {
                    spec.name: self._device.pinned(_largest(spec), np.dtype(spec.dtype))
                    for spec in (*graph.inputs, *graph.outputs)
                }
            self._engine = engine
            opened.pop_all()  # `close` does it from here on

    def _check_tensors(self, engine: Engine) -> None:
        inputs, outputs = engine.tensors()
        for kind, found, specs in (("inputs", inputs, self.graph.inputs), ("outputs", outputs, self.graph.outputs)):
            wanted = {spec.name: spec.dtype for spec in specs}
            if found != wanted:
                raise ManifestError(
                    f"{self._name} has the {kind} {found}, the method's {self.graph.name} has {wanted}; export and "
                    "build it again with this samkit"
                )

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name, on the host.

        Raises TensorMismatchError for inputs that don't fit or lie elsewhere, SamkitError once closed.
        """
        return {name: array for name, array in self.run_keeping(inputs, ()).items() if isinstance(array, np.ndarray)}

    def run_keeping(self, inputs: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
        """Return the outputs by name, those named in `kept` on the device; raises as `run` does."""
        still_open(self._engine, self.graph)
        check_inputs(self.graph, inputs, PLACE)
        stay = kept_names(self.graph, kept)
        with self._lock, self._device.active():  # one execution context, one set of buffers
            return self._run(still_open(self._engine, self.graph), fill_points(self.graph, inputs), stay)

    def _run(self, engine: Engine, inputs: Mapping[str, Tensor], stay: Collection[str]) -> dict[str, Tensor]:
        for name, tensor in inputs.items():
            if isinstance(tensor, EngineTensor):
                address = self._at_hand(name, tensor)
            elif isinstance(tensor, np.ndarray):
                address = self._send(name, tensor)
            else:
                raise TensorMismatchError(f"tensor '{name}' is no array and no tensor of {PLACE}; pass its numpy()")
            engine.feed(name, tensor.shape, address)
        shapes = engine.output_shapes([spec.name for spec in self.graph.outputs])
        dtypes = {spec.name: np.dtype(spec.dtype) for spec in self.graph.outputs}
        for spec in self.graph.outputs:
            if prod(shapes[spec.name]) > _largest(spec):
                raise SamkitError(
                    f"{self._name} wants to write '{spec.name}' as {shapes[spec.name]}, larger than the graph allows; "
                    "build it again: sam-export --build-engines"
                )
        where = {
            name: self._own_memory(prod(shape) * dtypes[name].itemsize) if name in stay else self._memory[name]
            for name, shape in shapes.items()
        }
        for name in shapes:
            engine.place_output(name, self._memory[name] if self._captures else where[name])
        engine.queue(self._device.stream)
        for name in stay if self._captures else ():
            self._device.copy(where[name], self._memory[name], prod(shapes[name]) * dtypes[name].itemsize)
        arrived = {name: self._host[name][: prod(shape)] for name, shape in shapes.items() if name not in stay}
        for name, array in arrived.items():
            self._device.fetch(array, where[name])
        self._device.wait()
        outputs: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            if name in stay:
                outputs[name] = self._keep(where[name], shape, dtypes[name])
            else:
                outputs[name] = arrived[name].reshape(shape).copy()
        return outputs

    def _send(self, name: str, array: np.ndarray) -> int:
        """Queue an input's way to its buffer and return the buffer's address."""
        source = self._host[name][: array.size]
        source[:] = array.ravel()
        if array.size:
            self._device.send(self._memory[name], source)
        return self._memory[name]

    def _at_hand(self, name: str, tensor: EngineTensor) -> int:
        """Return where a kept tensor is read: where it lies, or in the input's buffer, to which its copy is queued."""
        if not self._captures:
            return tensor.address
        self._device.copy(self._memory[name], tensor.address, tensor.nbytes)
        return self._memory[name]

    def _own_memory(self, count: int) -> int:
        """Return the address of `count` bytes that no tensor holds."""
        spare = self._spare.setdefault(count, [])
        return spare.pop() if spare else self._device.allocate(count)

    def _keep(self, address: int, shape: tuple[int, ...], dtype: np.dtype) -> EngineTensor:
        tensor = EngineTensor(self._device, address, shape, dtype)
        self._kept.add(tensor)
        weakref.finalize(tensor, self._spare[tensor.nbytes].append, address).atexit = False
        return tensor

    def close(self) -> None:
        """Free the engine and all memory of the device, kept tensors included."""
        if self._engine is None:
            return
        with self._lock:
            for tensor in list(self._kept):
                tensor.free()
            with self._device.active():
                compiled = b"" if self._cache is None else self._engine.kernels()
                self._engine.close()
            self._engine = None
            self._memory, self._host, self._spare = {}, {}, {}
            self._device.close()
        if self._cache is not None and compiled:
            self._cache.write(compiled)


def fill_points(graph: GraphSpec, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `inputs` with one ABSENT point where there is none; the graph promises that it changes nothing."""
    filled = dict(inputs)
    for spec in graph.inputs:
        names = [axis.name for axis in spec.axes]
        if POINTS in names and inputs[spec.name].shape[names.index(POINTS)] == 0:
            shape = [1 if name == POINTS else n for name, n in zip(names, inputs[spec.name].shape, strict=True)]
            value = float(ABSENT) if spec.name == "point_labels" else 0.0
            filled[spec.name] = np.full(shape, value, np.dtype(spec.dtype))
    return filled


def _largest(spec: TensorSpec) -> int:
    """Return how many elements the largest shape of `spec` has."""
    return prod(axis.max for axis in spec.axes)


def shapes_stay(export: Export, graph: GraphSpec) -> bool:
    """Return whether one click of a session has the shapes of the next: of a volume, each is a point by itself.

    An encoder's shapes stay, too, and its kernels take so long that nobody notices how they are started.
    """
    is_decoder = any(axis.name == POINTS for spec in graph.inputs for axis in spec.axes)
    return is_decoder and isinstance(export.method, VolumeMethod)


def describe_machine(library: EngineLibrary) -> dict[str, str]:
    """Return what engines are built with, as manifests have it: the library's version and, where engines are built on
    the GPU they will run on, that GPU, its compute capability, CUDA and the driver.
    """
    return describe_here(library) if library.needs_gpu else {library.version_fact: tensorrt_version(library)}


def describe_here(library: EngineLibrary) -> dict[str, str]:
    """Return what engines run with on this machine: the library's version, and what `describe_device` says."""
    return {library.version_fact: tensorrt_version(library), **describe_device(library.extra)}


def _trusted_engine(
    export: Export, graph: GraphSpec, precision: str, library: EngineLibrary, here: Mapping[str, str]
) -> bytes:
    """Return the serialised engine; raises ManifestError unless it is what was built, for what is `here`."""
    folder, manifest = export.folder, export.manifest
    name = library.engine_file(graph.name, precision)
    listed = {artifact.file: artifact.sha256 for artifact in manifest.artifacts}
    facts: dict[str, Any] | None = manifest.engines.get(name)
    again = f"sam-export --build-engines {folder}"
    if facts is None or name not in listed:
        there = ", ".join(sorted(manifest.engines)) or "none"
        raise ManifestError(
            f"the manifest of {folder.name} lists no engine {name} (it lists {there}), and no other file is ever "
            f"loaded; build it here: {again}"
        )
    if (misfit := library.misfit(facts, here)) is not None:
        raise ManifestError(f"{name} {misfit}; {library.advice} here: {again}")
    path = folder / name
    if not path.is_file():
        raise ManifestError(f"{name} is missing though the manifest lists it; {again}")
    plan = path.read_bytes()
    found = hashlib.sha256(plan).hexdigest()  # of the very bytes that are loaded
    if found != listed[name]:
        raise ManifestError(
            f"{name} changed since it was built: its SHA-256 is {found[:12]}..., the manifest has "
            f"{listed[name][:12]}...; build it again: {again}"
        )
    return plan


def engine_backend(library: EngineLibrary, summary: str, *, kernels: str = LAZY, in_benchmarks: bool = True) -> Backend:
    """Return the backend that runs a library's engines; EAGER kernels are named behind it."""

    def open_runners(export: Export, device: str, precision: str, threads: int | None) -> dict[str, Runner]:
        return open_each(export.specs, lambda graph: TensorRTRunner(export, graph, precision, library, kernels=kernels))

    def missing(export: Export, precision: str) -> str | None:
        names = [library.engine_file(graph, precision) for graph in export.plan.graphs]
        lacking = [name for name in names if name not in export.manifest.engines]
        return f"the export has no {library.title} engine {lacking[0]}; sam-export --build-engines" if lacking else None

    def warnings() -> tuple[str, ...]:
        here = describe_here(library)
        told = (untested_warning(here[library.version_fact], library), library.untried(here))
        return tuple(sentence for sentence in told if sentence is not None)

    return Backend(
        name=library.backend if kernels == LAZY else f"{library.backend}-{kernels}",
        title=library.title if kernels == LAZY else f"{library.title}, {kernels}",
        summary=summary,
        devices=("cuda",),
        extras={"cuda": library.extra},
        open_runners=open_runners,
        checks_bytes=True,
        missing=missing,
        warnings=warnings,
        in_benchmarks=in_benchmarks,
    )


BACKEND = engine_backend(TENSORRT, "runs engines that sam-export built for this GPU")
