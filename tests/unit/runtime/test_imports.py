"""An inference box has no torch, a client of a server not even SciPy: nothing is imported that may be missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["torch", "monai", "lightning", "onnx", "onnxruntime"]
MISSING_IN_A_CLIENT = ["scipy", "PIL", "click", "rich", "safetensors", *HEAVY]
"""A client has numpy, nibabel, tritonclient and what these need."""

CONVERSATION = """
import json
import numpy as np
from samkit.geometry import Volume
from samkit.prompts import Box, Point
from samkit.runtime import RemoteSession
from samkit.runtime.protocol import wire
from samkit.runtime.client.triton_transport import Address

class Fake:
    turn = 0

    def call(self, inputs, timeout):
        request = wire.decode(inputs[wire.REQUEST], wire.REQUEST)
        answer, changed = getattr(self, "do_" + request["op"], self.do_change)(request), np.zeros((0, 0, 0), np.uint8)
        if request["op"] in ("click", "redo"):
            answer["region"], changed = [[1, 2], [2, 4], [0, 1]], np.ones((1, 2, 1), np.uint8)
        return {wire.ANSWER: wire.encode(answer), wire.CHANGED: changed}

    def do_describe(self, request):
        return {
            "protocol": 2, "samkit": "0", "method": "m-sam", "kind": "volume", "precision": "fp32", "digest": "d",
            "plan": {}, "structures": [], "sequences": [], "is_automatic": False, "plane": None,
            "warnings": [], "providers": {"mask_decoder": ["triton"]}, "limits": {"max_voxels": 1000},
        }

    def do_open(self, request):
        return {"token": "t", "turn": 0, "shape": [4, 5, 6], "plane": None, "spacing": [1.0, 1.0, 1.0]}

    def do_check(self, request):
        return {}

    do_close = do_check

    def do_change(self, request):
        self.turn += 1
        step = {
            "number": 1, "voxels": 2, "volume_ml": 2.0, "seconds": {}, "crops": 1, "followed": 0,
            "limit_reached": False, "slices": [], "boxes": 0, "iou": [],
        }
        return {
            "turn": self.turn, "step": step if request["op"] == "click" else None, "region": [[0, 0]] * 3,
            "volume_ml": 2.0, "iou": [], "prompted": [], "origins": [[0, 0, 0]],
        }

    def close(self):
        pass

with RemoteSession(Fake(), Address.parse("triton://localhost:8001/m-sam")) as session:
    session.set_image(Volume(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4)))
    session.check(Point((1, 2, 0), 1))
    assert session.click((1, 2, 0)).mask.sum() == 2
    assert session.click((1.0, 2.0, 0.0), world=True).changed == (slice(1, 2), slice(2, 4), slice(0, 1))
    session.undo(), session.redo(), session.reset(), session.mask(), session.labels()
    assert session.method.name == "m-sam"
    assert session.warnings
"""
UNREACHABLE = """
import socket
from samkit.errors import ServerUnreachable
from samkit.runtime import open_session

with socket.socket() as bound:
    bound.bind(("127.0.0.1", 0))
    port = bound.getsockname()[1]
for scheme in ("triton", "triton+http"):
    try:
        open_session(f"{scheme}://127.0.0.1:{port}/m-sam", timeout=0.3)
    except ServerUnreachable as error:
        assert "sam-serve start" in str(error)
    else:
        raise SystemExit("nothing was raised")
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import samkit, samkit.runtime, samkit.methods",
        "import samkit; [samkit.get_method(name).graphs for name in samkit.list_methods()]",
        "from samkit.runtime import *",
        "import samkit.segment.cli, samkit.runtime.backends.onnxruntime_runner, samkit.runtime.backends.torch_runner",
        "import sys; sys.argv = ['sam-segment', '--help']\n"
        "from samkit.segment.cli import main\ntry:\n    main()\nexcept SystemExit as done:\n    assert done.code == 0",
    ],
)
def test_nothing_heavy_is_imported(code):
    run(f"{code}\nimport sys\nassert not (found := set({HEAVY}) & set(sys.modules)), found")


@pytest.mark.parametrize("code", [CONVERSATION, UNREACHABLE], ids=["conversation", "unreachable"])
def test_a_client_needs_numpy_nibabel_and_tritonclient_alone(code):
    run(f"import sys; sys.modules.update(dict.fromkeys({MISSING_IN_A_CLIENT}))\n{code}")


def test_the_runtime_package_has_what_it_lists_and_no_more():
    run(
        "import samkit.runtime as runtime\n"
        "assert all(callable(getattr(runtime, name)) for name in runtime.__all__)\n"
        "assert not hasattr(runtime, 'no_such_name')"
    )
