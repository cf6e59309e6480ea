"""One CUDA device through pycuda: its memory, its stream, and what it is. The only file that imports pycuda.

The primary context is retained once and never given back before the process ends: pycuda's `detach` of a context that
is not current makes it so and leaves it there, since releasing a primary context pops nothing, and in any other thread
than the one that retained it does nothing at all (pycuda src/cpp/cuda.hpp; CUDA driver API, cuDevicePrimaryCtxRelease).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.errors import MissingDependencyError
from samkit.runtime.backends.cuda_device import NON_BLOCKING, CudaLibrary, dotted, no_device, no_driver
from samkit.runtime.backends.runner import Closing

if TYPE_CHECKING:
    import pycuda.driver


def _import_driver() -> Any:
    """Return the module `pycuda.driver`, initialised; raises MissingDependencyError where it or a device is missing."""
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
        raise no_driver(error) from error
    if pycuda.driver.Device.count() == 0:
        raise no_device()
    return pycuda.driver


def _describe() -> dict[str, str]:
    driver = _import_driver()
    device: pycuda.driver.Device = driver.Device(0)
    return {
        "gpu": str(device.name()),
        "compute_capability": ".".join(str(part) for part in device.compute_capability()),
        "cuda": ".".join(str(part) for part in driver.get_version()[:2]),
        "cuda_driver": dotted(driver.get_driver_version()),
    }


@cache
def _primary_context(driver: Any) -> pycuda.driver.Context:
    """Return the first device's primary context, the same object for as long as the process lives."""
    device: pycuda.driver.Device = driver.Device(0)
    return device.retain_primary_context()


class PycudaDevice(Closing):
    """A CudaDevice."""

    def __init__(self) -> None:
        """Raise MissingDependencyError where pycuda or a device is missing."""
        self._driver = _import_driver()
        self._context: pycuda.driver.Context = _primary_context(self._driver)
        self._memory: dict[int, pycuda.driver.DeviceAllocation] = {}
        self._pinned: list[np.ndarray] = []
        self._stream: pycuda.driver.Stream | None = None
        with self.active():
            self._stream = self._driver.Stream(NON_BLOCKING)

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

    def copy(self, target: int, source: int, count: int) -> None:
        """Queue a copy of `count` bytes from one address of the device to another."""
        self._driver.memcpy_dtod_async(target, source, count, self._stream)

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


LIBRARY = CudaLibrary(name="pycuda", module="pycuda", describe=_describe, open=PycudaDevice)
