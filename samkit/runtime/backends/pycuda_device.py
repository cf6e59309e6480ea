"""One CUDA device through pycuda: its memory, its stream, and what it is. The only file that imports pycuda.

The device's primary context is used, because it is the one TensorRT works in. Contexts belong to threads, so every
call is made inside `with device.active():`, from whatever thread; nothing stays current in between.

It is retained once and never given back before the process ends: pycuda's `detach` of a context that is not current
makes it so and leaves it there, since releasing a primary context pops nothing, and in any other thread than the one
that retained it does nothing at all (pycuda src/cpp/cuda.hpp; CUDA driver API, cuDevicePrimaryCtxRelease).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install
from samkit.runtime.backends.runner import Closing

if TYPE_CHECKING:
    import pycuda.driver

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def import_pycuda() -> Any:
    """Return the module `pycuda.driver`, initialised; raises MissingDependencyError where it or a device is missing."""
    if find_spec("pycuda") is None:
        raise MissingDependencyError(
            "TensorRT engines need pycuda, which is not installed; it compiles from source and wants a C++ compiler "
            f"and the CUDA toolkit (nvcc on the PATH), with both there: {how_to_install('tensorrt')}"
        )
    try:
        import pycuda.driver
    except ImportError as error:
        raise MissingDependencyError(
            f"pycuda is installed and does not load ({error}); check that the NVIDIA driver is there, and compile "
            "it again with this machine's CUDA toolkit: pip install --force-reinstall --no-deps --no-cache-dir pycuda"
        ) from error
    try:
        pycuda.driver.init()
    except pycuda.driver.Error as error:
        raise MissingDependencyError(
            f"the CUDA driver does not start ({error}), and TensorRT engines need an NVIDIA GPU; check nvidia-smi, and "
            "--gpus of the container"
        ) from error
    if pycuda.driver.Device.count() == 0:
        raise MissingDependencyError(
            "CUDA finds no device, and TensorRT engines need an NVIDIA GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    return pycuda.driver


def describe_device() -> dict[str, str]:
    """Return what engines and timing caches are bound to: GPU, compute capability, CUDA and driver.

    `cuda` is the version that pycuda was compiled with, `cuda_driver` the newest that the driver knows, `driver` the
    NVIDIA driver's own version, or "unknown" where the system does not tell. Creates no context.
    """
    driver = import_pycuda()
    device: pycuda.driver.Device = driver.Device(0)
    name, capability = device.name(), device.compute_capability()
    newest = driver.get_driver_version()
    return {
        "gpu": str(name),
        "compute_capability": ".".join(str(part) for part in capability),
        "cuda": ".".join(str(part) for part in driver.get_version()[:2]),
        "cuda_driver": f"{newest // 1000}.{newest % 1000 // 10}",
        "driver": _kernel_driver(),
    }


def _kernel_driver() -> str:
    """Return the NVIDIA driver's version, from the line that begins "NVRM version:"."""
    try:
        text = _DRIVER_FILE.read_text()
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)", text)
    return found.group(1) if found else "unknown"


@cache
def _primary_context(driver: Any) -> pycuda.driver.Context:
    """Return the first device's primary context, the same object for as long as the process lives."""
    device: pycuda.driver.Device = driver.Device(0)
    return device.retain_primary_context()


class CudaDevice(Closing):
    """The first CUDA device that is visible, with one stream; everything that was allocated goes when it is closed."""

    def __init__(self) -> None:
        """Raise MissingDependencyError where pycuda or a device is missing."""
        self._driver = import_pycuda()
        self._context: pycuda.driver.Context = _primary_context(self._driver)
        self._memory: dict[int, pycuda.driver.DeviceAllocation] = {}
        self._pinned: list[np.ndarray] = []
        self._stream: pycuda.driver.Stream | None = None
        with self.active():
            self._stream = self._driver.Stream()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the device's context current in this thread, for as long as the block lasts."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    @property
    def stream(self) -> int:
        """Return the stream's handle, as CUDA's C functions take it."""
        stream: pycuda.driver.Stream = self._stream
        return int(stream.handle)

    def allocate(self, count: int) -> int:
        """Return the address of `count` new bytes; raises pycuda's MemoryError when there are none left."""
        allocation: pycuda.driver.DeviceAllocation = self._driver.mem_alloc(max(count, 1))
        address = int(allocation)
        self._memory[address] = allocation
        return address

    def pinned(self, count: int, dtype: np.dtype) -> np.ndarray:
        """Return `count` elements of page-locked host memory (count,), which copies on a stream need."""
        array: np.ndarray = self._driver.pagelocked_empty(max(count, 1), dtype)
        self._pinned.append(array)
        return array

    def send(self, address: int, source: np.ndarray) -> None:
        """Queue a copy of `source`, page-locked, to the device."""
        self._driver.memcpy_htod_async(address, source, self._stream)

    def fetch(self, target: np.ndarray, address: int) -> None:
        """Queue a copy from the device into `target`, page-locked."""
        self._driver.memcpy_dtoh_async(target, address, self._stream)

    def fetch_now(self, target: np.ndarray, address: int) -> None:
        """Copy from the device into `target`, any array, and wait for it."""
        self._driver.memcpy_dtoh(target, address)

    def wait(self) -> None:
        """Wait until the stream has done all that was queued."""
        stream: pycuda.driver.Stream = self._stream
        stream.synchronize()

    def close(self) -> None:
        """Free all memory and the stream."""
        if self._stream is None:
            return
        with self.active():
            for array in self._pinned:
                array.base.free()  # type: ignore[union-attr]  # pycuda's PagelockedHostAllocation
            for allocation in self._memory.values():
                allocation.free()
            self._stream = None  # destroyed here, where its context is current
        self._memory, self._pinned = {}, []
