"""The packages of Python that drive CUDA: pycuda where it is installed, which its user compiled, else NVIDIA's own."""

from __future__ import annotations

import re
from pathlib import Path

from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install
from samkit.runtime.backends import cuda_bindings_device, pycuda_device
from samkit.runtime.backends.cuda_device import CudaLibrary

LIBRARIES = (pycuda_device.LIBRARY, cuda_bindings_device.LIBRARY)
"""The first that is installed is taken, and never another in its place."""

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def cuda_library(extra: str) -> CudaLibrary:
    """Return the package that is taken here; raises MissingDependencyError that names `extra` where there is none."""
    for library in LIBRARIES:
        if library.is_installed:
            return library
    names = " and ".join(library.name for library in LIBRARIES)
    raise MissingDependencyError(
        f"engines need a package that drives CUDA, and of {names} none is installed; {how_to_install(extra)} "
        "brings NVIDIA's as a wheel"
    )


def describe_device(extra: str) -> dict[str, str]:
    """Return what engines, timing caches and runtime caches are bound to: GPU, compute capability, CUDA and driver.

    `driver` is the NVIDIA driver's own version, or "unknown" where the system does not tell; CudaLibrary says the
    others. Raises MissingDependencyError where no package, driver or device is there, which names `extra`.
    """
    return {**cuda_library(extra).describe(), "driver": _kernel_driver()}


def _kernel_driver() -> str:
    """Return the NVIDIA driver's version, from the line that begins "NVRM version:"."""
    try:
        text = _DRIVER_FILE.read_text()
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)", text)
    return found.group(1) if found else "unknown"
