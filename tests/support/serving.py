"""The embedded server, as tests from file to file use it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from samkit.errors import MissingDependencyError
from samkit.triton_models.server_files import find_server

GATED = """
import json
import time
from pathlib import Path

from samkit.triton_models.onnxruntime_backend import OnnxRuntimeModel

class TritonPythonModel(OnnxRuntimeModel):
    def initialize(self, args):
        config = json.loads(args["model_config"]) | {"default_model_filename": "model.onnx"}
        super().initialize({**args, "model_config": json.dumps(config)})

    def execute(self, requests):
        Path(__file__).with_name("came").touch()
        while Path(__file__).with_name("shut").exists():
            time.sleep(0.01)
        return super().execute(requests)
"""


def need_server():
    """Skip a test where the embedded server can't run."""
    try:
        find_server()
    except MissingDependencyError as missing:
        pytest.skip(f"the embedded server can't run here: {missing}")


def gate(repository, model):
    """Have a graph's model wait while its gate is shut; it leaves the file `came` where a request came."""
    folder = repository / model
    config = (folder / "config.pbtxt").read_text().replace('backend: "onnxruntime"', 'backend: "python"')
    (folder / "config.pbtxt").write_text(config.replace('default_model_filename: "model.onnx"', ""))
    (folder / "1" / "model.py").write_text(GATED)


@contextmanager
def shut_gate(repository, model):
    """Keep a gated model from running; opens the gate at the end, and when what is yielded is called."""
    file = repository / model / "1" / "shut"
    file.touch()
    try:
        yield lambda: file.unlink(missing_ok=True)
    finally:
        file.unlink(missing_ok=True)
