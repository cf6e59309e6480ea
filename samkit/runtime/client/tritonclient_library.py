"""Triton's client library, as far as samkit uses it. The only file that imports tritonclient.

The modules load when they are asked for: a box that serves nothing needs none of them, and a client of one protocol
does not pay for the other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from samkit.errors import MissingDependencyError
from samkit.extras import how_to_install


def grpc() -> ModuleType:
    """Return the module `tritonclient.grpc`; raises MissingDependencyError where it is missing or does not load."""
    return _load("tritonclient.grpc")


def http() -> ModuleType:
    """Return the module `tritonclient.http`; raises MissingDependencyError where it is missing or does not load."""
    return _load("tritonclient.http", "http")


def model_config() -> ModuleType:
    """Return the protobuf messages of config.pbtxt, `tritonclient.grpc.model_config_pb2`.

    Raises MissingDependencyError where it is missing or does not load.
    """
    return _load("tritonclient.grpc.model_config_pb2")


def as_inputs(library: ModuleType, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """Return arrays as the InferInputs of `library`, which is what `grpc` or `http` returned; objects travel as BYTES.

    >>> [(tensor.name(), tensor.datatype()) for tensor in as_inputs(grpc(), {"affine": np.eye(4)})]
    [('affine', 'FP64')]
    """
    inputs = []
    for name, array in arrays.items():
        inputs.append(library.InferInput(name, list(array.shape), library.np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def _load(name: str, extra: str = "client") -> ModuleType:
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:  # tritonclient turns a missing part of its own into a RuntimeError
        raise MissingDependencyError(
            f"Triton's client library does not load ({error}), and models and servers are described with it; "
            f"{how_to_install(extra)}"
        ) from error
