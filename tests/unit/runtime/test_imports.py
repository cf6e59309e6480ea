"""An inference box has no torch: nothing of the runtime imports it, nor ONNX Runtime before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["torch", "monai", "lightning", "onnx", "onnxruntime"]


@pytest.mark.parametrize(
    "code",
    [
        "import samkit, samkit.runtime, samkit.methods",
        "import samkit; [samkit.get_method(name).graphs for name in samkit.list_methods()]",
        "import samkit.runtime.cli, samkit.runtime.onnxruntime_runner, samkit.runtime.torch_runner",
        "import sys; sys.argv = ['sam-segment', '--help']\n"
        "from samkit.runtime.cli import main\ntry:\n    main()\nexcept SystemExit as done:\n    assert done.code == 0",
    ],
)
def test_nothing_heavy_is_imported(code):
    check = f"\nimport sys\nassert not (found := set({HEAVY}) & set(sys.modules)), found"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
