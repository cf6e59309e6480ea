"""Engines of TensorRT for RTX; kernels for a new shape are compiled before its first run, which waits for them."""

from __future__ import annotations

from samkit.engine_libraries import RTX
from samkit.runtime.backends.tensorrt_library import EAGER
from samkit.runtime.backends.tensorrt_runner import engine_backend

BACKEND = engine_backend(
    RTX,
    "does so too, and compiles the kernels of a shape before it is first run",
    kernels=EAGER,
    in_benchmarks=False,  # the same engines, kernels and numbers, once they are compiled
)
