"""Guards `sam-bench`: its five commands are there, and its help needs neither torch nor what draws pictures."""

from __future__ import annotations

import subprocess
import sys

import pytest

from samkit.benchmarks.cli import COMMANDS

HEAVY = ("torch", "monai", "matplotlib", "onnxruntime")


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys; from click.testing import CliRunner; from samkit.benchmarks.cli import bench\n"
        f"result = CliRunner().invoke(bench, {[*words, '--help']!r})\n"
        f"print(result.exit_code, [name for name in {HEAVY!r} if name in sys.modules])"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "0 []"


def test_an_unknown_command_is_a_usage_error():
    found = subprocess.run([sys.executable, "-m", "samkit.benchmarks.cli", "speed"], capture_output=True, text=True)

    assert found.returncode == 2
    assert found.stderr.startswith("sam-bench: No such command 'speed'")
