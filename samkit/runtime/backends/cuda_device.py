"""What an engine's runner asks of a CUDA device, whichever package of Python drives it: one record for each package.

The device's primary context is used, because it is the one TensorRT works in. Contexts belong to threads, so every
call is made inside `with device.active():`, from whatever thread; nothing stays current in between.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from samkit.errors import MissingDependencyError

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream waits for no other work of the process, which would spoil a capture of it."""


class CudaDevice(Protocol):
    """The first CUDA device that is visible, with one stream; everything that was allocated goes when it is closed."""

    def active(self) -> AbstractContextManager[None]:
        """Make the device's context current in this thread, for as long as the block lasts."""

    @property
    def stream(self) -> int:
        """Return the stream's handle, as CUDA's C functions take it."""

    def allocate(self, count: int) -> int:
        """Return the address of `count` new bytes; raises the package's own error when there are none left."""

    def pinned(self, count: int, dtype: np.dtype) -> np.ndarray:
        """Return `count` elements of page-locked host memory (count,), which copies on a stream need."""

    def send(self, address: int, source: np.ndarray) -> None:
        """Queue a copy of `source`, page-locked, to the device."""

    def fetch(self, target: np.ndarray, address: int) -> None:
        """Queue a copy from the device into `target`, page-locked."""

    def copy(self, target: int, source: int, count: int) -> None:
        """Queue a copy of `count` bytes from one address of the device to another."""

    def fetch_now(self, target: np.ndarray, address: int) -> None:
        """Copy from the device into `target`, any array, and wait for it."""

    def wait(self) -> None:
        """Wait until the stream has done all that was queued."""

    def close(self) -> None:
        """Free all memory and the stream."""


@dataclass(frozen=True)
class CudaLibrary:
    """One package of Python that drives CUDA."""

    name: str
    """As pip calls it."""
    module: str
    """As it is imported, in one file alone."""
    describe: Callable[[], dict[str, str]]
    """Gives `gpu`, `compute_capability`, `cuda` (the version that the package was made for) and `cuda_driver` (the
    newest that the driver knows), without a context. Raises MissingDependencyError where it or a device is missing."""
    open: Callable[[], CudaDevice]
    """Raises as `describe` does."""

    @property
    def is_installed(self) -> bool:
        """Return whether it is there, which does not say that it loads."""
        try:
            return find_spec(self.module) is not None
        except ModuleNotFoundError:  # a package above it is missing
            return False


def dotted(version: int) -> str:
    """Return a version as people write it.

    >>> dotted(13040)
    '13.4'
    """
    return f"{version // 1000}.{version % 1000 // 10}"


def no_driver(reason: object) -> MissingDependencyError:
    """Return the error where CUDA's driver does not start."""
    return MissingDependencyError(
        f"the CUDA driver does not start ({reason}), and engines need an NVIDIA GPU; check nvidia-smi, and --gpus of "
        "the container"
    )


def no_device() -> MissingDependencyError:
    """Return the error where CUDA's driver has no device."""
    return MissingDependencyError(
        "CUDA finds no device, and engines need an NVIDIA GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    )
