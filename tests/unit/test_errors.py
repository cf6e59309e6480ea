"""Guards the error tree: one root, an exit code each, and commands that end with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from samkit import errors

BIN = Path(sys.executable).parent


def all_errors(root=errors.SamkitError):
    return [root, *(child for sub in root.__subclasses__() for child in all_errors(sub))]


def test_every_error_is_drawn_with_its_exit_code():
    for error in all_errors()[1:]:
        lines = [line for line in errors.__doc__.splitlines() if f" {error.__name__} " in line]
        assert len(lines) == 1, error
        assert f" {error.exit_code}  " in lines[0], error


def test_refusal_keeps_its_parts():
    refusal = errors.InputRefused("nan", "the scan holds NaN", "repair it")
    assert (refusal.code, str(refusal)) == ("nan", "the scan holds NaN; repair it")


@pytest.mark.parametrize("command", ["sam-export", "sam-segment", "sam-train"])
def test_unknown_option_is_usage(command):
    run = subprocess.run([BIN / command, "--no-such-option"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f"{command}: ")
    assert "Traceback" not in run.stderr
