"""Every command ends with one sentence and its exit code; only our bugs show a traceback."""

from __future__ import annotations

import sys

import click
import pytest

from samkit import errors
from samkit.command import run_command


def end(monkeypatch, capsys, raised=None, arguments=()):
    @click.command()
    @click.option("--number", type=int)
    def command(number):
        if raised is not None:
            raise raised

    monkeypatch.setattr(sys, "argv", ["sam-test", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_command(command, "sam-test")
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (errors.ExportError("one;\n  two"), 1),
        (errors.UnknownMethodError("one; two"), 2),
        (errors.InputRefused("code", "one", "two"), 3),
        (errors.ManifestError("one; two"), 3),
    ],
)
def test_failure_is_one_line_and_its_code(monkeypatch, capsys, raised, code):
    assert end(monkeypatch, capsys, raised) == (code, "sam-test: one; two\n")


def test_success_is_silent(monkeypatch, capsys):
    assert end(monkeypatch, capsys) == (0, "")


@pytest.mark.parametrize("arguments", [["--number", "x"], ["--nope"], ["extra"]])
def test_usage_errors_point_to_the_help(monkeypatch, capsys, arguments):
    code, text = end(monkeypatch, capsys, arguments=arguments)

    assert code == 2
    assert text.startswith("sam-test: ")
    assert text.endswith("; see sam-test --help\n")


def test_help_is_no_failure(monkeypatch, capsys):
    assert end(monkeypatch, capsys, arguments=["--help"])[0] == 0


def test_bug_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sam-test"])

    @click.command()
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(command, "sam-test")
