"""Fixtures of unit tests: exports that segment what is bright, and a server in this process."""

from __future__ import annotations

import pytest

from samkit.errors import SamkitError
from samkit.manifest import Export
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.runner import add_substitutes
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.failure import error_text, read_error
from samkit.runtime.protocol.requests import read_request
from samkit.triton_models.limits import Limits
from samkit.triton_models.served import Served
from samkit.triton_models.session_host import SessionHost


@pytest.fixture
def serve():
    """Return a function that serves an export folder in this process, within limits, and gives the host."""
    opened = []

    def start(folder, **limits):
        export = Export.open(folder, verify=False)
        runners = {
            graph.name: OnnxRuntimeRunner(export.path(graph.name, "fp32"), graph, threads=1) for graph in export.specs
        }
        opened.extend(runners.values())
        add_substitutes(runners, export.graphs)
        served = Served("bright", "fp32", export.digest, export, Limits(**limits))
        return SessionHost(served, runners)

    yield start
    for runner in opened:
        runner.close()


@pytest.fixture
def wired():
    """The transport to such a host."""
    return Wire


class Wire:
    """A transport to a host in this process. Each entry of `plan` spoils one call: what is raised instead of an answer,
    before or after the host did the work.
    """

    def __init__(self, host):
        self.host = host
        self.plan = []
        self.asked = []
        self.timeouts = []
        self.is_open = True

    def call(self, inputs, timeout):
        request = wire.decode(inputs[wire.REQUEST], wire.REQUEST)
        self.asked.append(request["op"])
        self.timeouts.append(timeout)
        spoilt, when = self.plan.pop(0) if self.plan else (None, "")
        if when == "before":
            raise spoilt
        token = inputs[wire.TOKEN][0].decode() if wire.TOKEN in inputs else None
        tensors = {name: inputs.get(name) for name in (*wire.VOLUMES, wire.AFFINE)}
        try:
            answer, changed = self.host.answer(read_request(request), token, tensors)
        except SamkitError as error:
            raise read_error(f"in model: {error_text(error)}") from None
        if spoilt is not None:
            raise spoilt
        return {wire.ANSWER: wire.encode(answer.to_json()), wire.CHANGED: changed}

    def close(self):
        self.is_open = False

    def spoil(self, error, when):
        self.plan.append((error, when))
