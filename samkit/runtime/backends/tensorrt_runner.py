"""TensorRT engines behind the Runner interface, on the first CUDA device that is visible.

An engine is native code for one GPU and one TensorRT version, and whoever can write one can run code here. So only a
file that the manifest lists is ever loaded, with the SHA-256, the GPU and the version it was built with.

Buffers are allocated once, for the largest shapes of the graph. A tensor that is kept lies in memory of its own, which
is used again once nobody holds the tensor.
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
from samkit.methods.method import GraphSpec
from samkit.prompts import ABSENT
from samkit.runtime.backends.backend import Backend, open_each
from samkit.runtime.backends.pycuda_device import CudaDevice, describe_device
from samkit.runtime.backends.runner import Closing, Runner, check_inputs, kept_names, still_open
from samkit.runtime.backends.tensorrt_library import Engine, tensorrt_version, untested_warning
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

    def __init__(self, export: Export, graph: GraphSpec, precision: str) -> None:
        """Load the engine of `graph` in `precision` from the folder of `export`, whose manifest lists it.

        Raises ManifestError where there is none, where it was built for another GPU or TensorRT, or changed since, and
        MissingDependencyError where TensorRT, pycuda or a GPU is missing.
        """
        self.graph = graph
        self.providers: tuple[str, ...] = (f"TensorRT {tensorrt_version()}",)
        plan = _trusted_engine(export, graph, precision)
        self._name = TENSORRT.engine_file(graph.name, precision)
        self._lock = Lock()
        self._kept: weakref.WeakSet[EngineTensor] = weakref.WeakSet()
        self._spare: dict[int, list[int]] = {}
        self._engine: Engine | None = None
        with ExitStack() as opened:
            self._device = opened.enter_context(CudaDevice())
            with self._device.active():
                engine = Engine(plan, self._name)
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
                address = tensor.address
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
        for name, address in where.items():
            engine.place_output(name, address)
        engine.queue(self._device.stream)
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
                self._engine.close()
            self._engine = None
            self._memory, self._host, self._spare = {}, {}, {}
            self._device.close()


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


def describe_machine(library: EngineLibrary) -> dict[str, str]:
    """Return what engines are built and run with, as manifests have it: the library's version and, where engines are
    bound to one, the GPU, its compute capability, CUDA and the driver.
    """
    device = describe_device() if library.needs_gpu else {}
    return {library.version_fact: tensorrt_version(library), **device}


def _trusted_engine(export: Export, graph: GraphSpec, precision: str) -> bytes:
    """Return the serialised engine; raises ManifestError unless it is what was built, for this GPU and TensorRT."""
    folder, manifest = export.folder, export.manifest
    name = TENSORRT.engine_file(graph.name, precision)
    listed = {artifact.file: artifact.sha256 for artifact in manifest.artifacts}
    facts: dict[str, Any] | None = manifest.engines.get(name)
    if facts is None or name not in listed:
        there = ", ".join(sorted(manifest.engines)) or "none"
        raise ManifestError(
            f"the manifest of {folder.name} lists no engine {name} (it lists {there}), and no other file is ever "
            f"loaded; build it here: sam-export --build-engines {folder}"
        )
    here = describe_machine(TENSORRT)
    for fact, meaning in TENSORRT.bound_to:
        if facts.get(fact) != here[fact]:
            raise ManifestError(
                f"{name} was built for {meaning} {facts.get(fact)}, and here is {here[fact]}; an engine runs where it "
                f"was built, so build it here: sam-export --build-engines {folder}"
            )
    path = folder / name
    if not path.is_file():
        raise ManifestError(f"{name} is missing though the manifest lists it; sam-export --build-engines {folder}")
    plan = path.read_bytes()
    found = hashlib.sha256(plan).hexdigest()  # of the very bytes that are loaded
    if found != listed[name]:
        raise ManifestError(
            f"{name} changed since it was built: its SHA-256 is {found[:12]}..., the manifest has "
            f"{listed[name][:12]}...; build it again: sam-export --build-engines {folder}"
        )
    return plan


def missing_engine(export: Export, precision: str) -> str | None:
    """Return which engine an export lacks to run in `precision`; None where all are there."""
    names = [TENSORRT.engine_file(graph, precision) for graph in export.plan.graphs]
    missing = [name for name in names if name not in export.manifest.engines]
    return f"the export has no TensorRT engine {missing[0]}; sam-export --build-engines" if missing else None


def _open_runners(export: Export, device: str, precision: str, threads: int | None) -> dict[str, Runner]:
    return open_each(export.specs, lambda graph: TensorRTRunner(export, graph, precision))


def _warnings() -> tuple[str, ...]:
    untested = untested_warning(tensorrt_version())
    return () if untested is None else (untested,)


BACKEND = Backend(
    name="tensorrt",
    title="TensorRT",
    summary="runs engines that sam-export built for this GPU",
    devices=("cuda",),
    extras={"cuda": "tensorrt"},
    open_runners=_open_runners,
    checks_bytes=True,
    missing=missing_engine,
    warnings=_warnings,
)
