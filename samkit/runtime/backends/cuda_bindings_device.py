"""One CUDA device through cuda-bindings, NVIDIA's own package: its memory, its stream, and what it is. The only file
that imports cuda.bindings. It was never run on a GPU: tests drive a stand-in, and hold its names to the real package.

Each function returns CUDA's error first, which `_done` looks at. The primary context is retained once and stays, as
pycuda's does: all runners of a process share it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from samkit.errors import MissingDependencyError, SamkitError
from samkit.runtime.backends.cuda_device import NON_BLOCKING, CudaLibrary, dotted, no_device, no_driver
from samkit.runtime.backends.runner import Closing

_NAME_BYTES = 256
"""Of a GPU's name, with the zero behind it."""


def _import_driver() -> Any:
    """Return the module, initialised; raises MissingDependencyError where it or a device is missing."""
    try:
        import cuda.bindings.driver as driver
    except ImportError as error:
        raise MissingDependencyError(
            f"cuda-bindings is installed and does not load ({error}); pip install --force-reinstall cuda-bindings"
        ) from error
    try:
        (started,) = driver.cuInit(0)
    except RuntimeError as missing:  # the package's own, where libcuda is not there
        raise no_driver(missing) from missing
    if started != driver.CUresult.CUDA_SUCCESS:
        raise no_driver(_reason(driver, started))
    if _done(driver, driver.cuDeviceGetCount()) == 0:
        raise no_device()
    return driver


def _reason(driver: Any, error: Any) -> str:
    """Return how CUDA calls one of its errors."""
    _, text = driver.cuGetErrorString(error)
    return f"{error.name}: {text.decode(errors='replace') if isinstance(text, bytes) else text}"


def _done(driver: Any, answer: tuple) -> Any:
    """Return what a function returns behind CUDA's error; raises SamkitError where there is one."""
    error, *values = answer
    if error != driver.CUresult.CUDA_SUCCESS:
        raise SamkitError(
            f"CUDA does not do what an engine's runner needs ({_reason(driver, error)}); free memory of the GPU, or "
            "see the driver's log"
        )
    return values[0] if values else None


def _describe() -> dict[str, str]:
    driver = _import_driver()
    device = _done(driver, driver.cuDeviceGet(0))
    kinds = driver.CUdevice_attribute
    capability = [
        _done(driver, driver.cuDeviceGetAttribute(kind, device))
        for kind in (
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    ]
    name: bytes = _done(driver, driver.cuDeviceGetName(_NAME_BYTES, device))
    return {
        "gpu": name.partition(b"\0")[0].decode(errors="replace"),
        "compute_capability": ".".join(str(part) for part in capability),
        "cuda": dotted(driver.CUDA_VERSION),
        "cuda_driver": dotted(_done(driver, driver.cuDriverGetVersion())),
    }


@cache
def _primary_context(driver: Any) -> Any:
    """Return the first device's primary context, the same object for as long as the process lives."""
    return _done(driver, driver.cuDevicePrimaryCtxRetain(_done(driver, driver.cuDeviceGet(0))))


class CudaBindingsDevice(Closing):
    """A CudaDevice."""

    def __init__(self) -> None:
        """Raise MissingDependencyError where cuda-bindings or a device is missing."""
        self._driver = _import_driver()
        self._context = _primary_context(self._driver)
        self._memory: list[int] = []
        self._pinned: list[int] = []
        self._stream: Any = None
        with self.active():
            self._stream = self._done(self._driver.cuStreamCreate(NON_BLOCKING))

    def _done(self, answer: tuple) -> Any:
        return _done(self._driver, answer)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make the device's context current in this thread, for as long as the block lasts."""
        self._done(self._driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            self._done(self._driver.cuCtxPopCurrent())

    @property
    def stream(self) -> int:
        """Return the stream's handle, as CUDA's C functions take it."""
        return int(self._stream)

    def allocate(self, count: int) -> int:
        """Return the address of `count` new bytes; raises SamkitError when there are none left."""
        address = int(self._done(self._driver.cuMemAlloc(max(count, 1))))
        self._memory.append(address)
        return address

    def pinned(self, count: int, dtype: np.dtype) -> np.ndarray:
        """Return `count` elements of page-locked host memory (count,), which copies on a stream need."""
        size = max(count, 1) * dtype.itemsize
        address = int(self._done(self._driver.cuMemAllocHost(size)))
        self._pinned.append(address)
        memory: Any = (ctypes.c_char * size).from_address(address)
        return np.frombuffer(memory, dtype)

    def send(self, address: int, source: np.ndarray) -> None:
        """Queue a copy of `source`, page-locked, to the device."""
        self._done(self._driver.cuMemcpyHtoDAsync(address, source.ctypes.data, source.nbytes, self._stream))

    def fetch(self, target: np.ndarray, address: int) -> None:
        """Queue a copy from the device into `target`, page-locked."""
        self._done(self._driver.cuMemcpyDtoHAsync(target.ctypes.data, address, target.nbytes, self._stream))

    def copy(self, target: int, source: int, count: int) -> None:
        """Queue a copy of `count` bytes from one address of the device to another."""
        self._done(self._driver.cuMemcpyDtoDAsync(target, source, count, self._stream))

    def fetch_now(self, target: np.ndarray, address: int) -> None:
        """Copy from the device into `target`, any array, and wait for it."""
        self._done(self._driver.cuMemcpyDtoH(target.ctypes.data, address, target.nbytes))

    def wait(self) -> None:
        """Wait until the stream has done all that was queued."""
        self._done(self._driver.cuStreamSynchronize(self._stream))

    def close(self) -> None:
        """Free all memory and the stream."""
        if self._stream is None:
            return
        with self.active():
            for address in self._pinned:
                self._done(self._driver.cuMemFreeHost(address))
            for address in self._memory:
                self._done(self._driver.cuMemFree(address))
            self._done(self._driver.cuStreamDestroy(self._stream))
        self._stream = None
        self._memory, self._pinned = [], []


LIBRARY = CudaLibrary(name="cuda-bindings", module="cuda.bindings", describe=_describe, open=CudaBindingsDevice)
