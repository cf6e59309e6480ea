"""Each graph is traced once in a run of the tests, whoever asks for it: torch's exporter takes 5 to 20 seconds a graph.

Kept are the exporter's own results, by all that they depend on: a network with its weights and formulation, example
inputs, dynamic axes, opset. What samkit does before and after is done every time. Workers share the folder.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import io
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import onnx
import torch
from filelock import FileLock

LARGEST = 100_000_000
"""Bytes of weights beyond which a trace is made every time: full-size networks have one test each."""


def traced_once(folder: Path):
    """Return a patch of `torch.onnx.export` under which each trace is made once and kept in `folder`."""
    anew = torch.onnx.export

    @functools.wraps(anew)
    def export(network, example, **options):
        if sum(tensor.nbytes for tensor in network.state_dict().values()) > LARGEST:
            return anew(network, example, **options)
        file = folder / f"{_key(network, example, options)}.onnx"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                made = file.with_suffix(".part")
                with _without_collection():
                    made.write_bytes(anew(network, example, **options).model_proto.SerializeToString())
                made.replace(file)
            return SimpleNamespace(model_proto=onnx.load(file))

    return mock.patch.object(torch.onnx, "export", export)


@contextlib.contextmanager
def _without_collection():
    """Keep Python from looking for garbage among the objects of a trace, 5 to 12 % of its time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _key(network, example, options) -> str:
    """Return a name for a trace; networks that were built and changed alike are pickled alike."""
    pickled = io.BytesIO()
    torch.save((network, example), pickled)
    return hashlib.sha256(pickled.getvalue() + repr(sorted(options.items())).encode()).hexdigest()
