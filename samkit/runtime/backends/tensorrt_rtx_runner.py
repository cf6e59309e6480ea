"""Engines of TensorRT for RTX; kernels for a new shape are compiled while general ones do the work."""

from __future__ import annotations

from samkit.engine_libraries import RTX
from samkit.runtime.backends.tensorrt_runner import engine_backend

BACKEND = engine_backend(RTX, "runs engines of TensorRT for RTX, which sam-export builds on any machine")
