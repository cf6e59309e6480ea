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


def test_options_are_data_and_their_names_in_the_text():
    error = errors.OptionError("{fp16} is of {no_fold}'s kin, not of {this}", options=("fp16", "no_fold"))

    assert error.options == ("fp16", "no_fold")
    assert str(error) == "fp16 is of no_fold's kin, not of {this}"
    assert error.sentence({"fp16": "--fp16"}.get) == "--fp16 is of no_fold's kin, not of {this}"


def test_refusal_of_one_case_says_which_and_keeps_its_options():
    refusal = errors.InputRefused("no-label", "no {label} in it", "leave {label} out", options=("label",))
    of_case = refusal.about("case a")

    assert (refusal.reason, refusal.remedy) == ("no label in it", "leave label out")
    assert (of_case.code, of_case.options) == ("no-label", ("label",))
    assert of_case.sentence(lambda name: f"--{name}") == "case a: no --label in it; leave --label out"


@pytest.mark.parametrize("command", ["sam-export", "sam-segment", "sam-train"])
def test_unknown_option_is_usage(command):
    run = subprocess.run([BIN / command, "--no-such-option"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f"{command}: ")
    assert "Traceback" not in run.stderr
