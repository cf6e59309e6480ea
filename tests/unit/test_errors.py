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


@pytest.mark.parametrize(
    ("option", "flag", "call"),
    [
        ("points 60,70,30,+", "--point 60,70,30,+", "click((60, 70, 30))"),
        ("points x,y,-", "--point x,y,-", "click((x, y), positive=False)"),
        ("points", "--point", "click()"),
        ("boxes 1,2,3,4", "--box 1,2,3,4", "box((1, 2), (3, 4))"),
        ("boxes", "--box", "box()"),
        ("inputs t1c=FILE", "--input t1c=FILE", 'set_image({"t1c": FILE, ...})'),
        ("world", "--world", "world=True"),
        ("propagate", "--propagate", "propagate()"),
        ("volume N", "--volume N", "volume=N"),
        ("threads 2", "--threads 2", "threads=2"),
        ("spacing 1.5,1,1", "--spacing 1.5,1,1", "spacing=(1.5, 1, 1)"),
        ("spacing", "--spacing", "spacing"),
        ("keep_list FILE", "--keep-list FILE", "keep_list FILE"),
    ],
)
def test_an_option_is_a_flag_to_a_command_and_a_call_to_python(option, flag, call):
    flags = {"points": "--point", "boxes": "--box", "inputs": "--input"}
    error = errors.PromptError(f"no; e.g. {{{option}}}.", options=(option,))

    assert str(error) == f"no; e.g. {call}."
    assert error.sentence(lambda name: flags.get(name, f"--{name.replace('_', '-')}")) == f"no; e.g. {flag}."


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
