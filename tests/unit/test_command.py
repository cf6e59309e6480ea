"""Every command ends with one sentence and its exit code; only our bugs show a traceback. Progress is the log's."""

from __future__ import annotations

import ast
import logging
import re
import sys
from pathlib import Path

import click
import pytest

import samkit
from samkit import errors
from samkit.command import run_command, show_progress


def end(monkeypatch, capsys, raised=None, arguments=(), extras=()):
    @click.command()
    @click.option("--number", type=int)
    def command(number):
        if raised is not None:
            raise raised

    monkeypatch.setattr(sys, "argv", ["sam-test", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_command(command, "sam-test", extras=extras)
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


def test_a_package_that_is_missing_is_a_sentence_that_says_how_to_install_it(monkeypatch, capsys):
    missing = ModuleNotFoundError("No module named 'scipy.ndimage'", name="scipy.ndimage")

    code, said = end(monkeypatch, capsys, missing, extras=("bench", "cpu"))

    assert code == 1
    assert said.startswith("sam-test: scipy is not installed, and this needs it; pip install ")
    assert "[bench,cpu]'" in said


def test_a_missing_module_of_our_own_is_a_bug(monkeypatch, capsys):
    with pytest.raises(ModuleNotFoundError):
        end(monkeypatch, capsys, ModuleNotFoundError("gone", name="samkit.gone"), extras=("cpu",))


def test_bug_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sam-test"])

    @click.command()
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(command, "sam-test")


def imports_click(tree):
    froms = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return "click" in froms or any(
        alias.name == "click" for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    )


def holds_a_command(tree):
    decorators = [one for node in tree.body if isinstance(node, ast.FunctionDef) for one in node.decorator_list]
    return any(ast.unparse(one).startswith(("click.command(", "click.group(")) for one in decorators)


def test_click_is_imported_where_a_command_is_alone():
    """Everybody else raises errors of samkit/errors.py, whose options are data, and logs."""
    root = Path(samkit.__file__).parent
    trees = {path.relative_to(root).as_posix(): ast.parse(path.read_text()) for path in root.rglob("*.py")}
    users = {name for name, tree in trees.items() if imports_click(tree)}

    assert "export/cli.py" in users
    assert {name for name in users if not holds_a_command(trees[name])} == {"command.py"}


# --- Options, spelled as flags ---


@click.command()
@click.option("--method", "method_name")
@click.option("--keep-list")
@click.option("-q", "--silent", "quiet", is_flag=True)
@click.option("--fold/--no-fold", "folded", default=True)
def one(**options):
    raise errors.OptionError(
        "{method}, {method_name}, {keep_list}, {quiet}, {folded}, {elsewhere}",
        options=("method", "method_name", "keep_list", "quiet", "folded", "elsewhere"),
    )


@click.group()
def many():
    pass


many.add_command(one)


@pytest.mark.parametrize(("command", "words"), [(one, []), (many, ["one"])])
def test_options_are_spelled_as_the_flags_of_the_command(command, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sam-test", *words])
    with pytest.raises(SystemExit) as stopped:
        run_command(command, "sam-test")

    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "sam-test: --method, --method, --keep-list, --silent, --no-fold, elsewhere; see sam-test --help\n"
    )


# --- The log ---


def log_in_a_command(monkeypatch, **shown):
    """Run a command whose library logs one line of progress, one beneath it, and a warning about an error."""

    @click.command()
    @click.option("--label", type=int)
    def command(label):
        show_progress(**shown)
        log = logging.getLogger("samkit.somewhere")
        log.debug("too much")
        log.info("%d of %d", 1, 2)
        log.warning("%s skipped: %s", "b", errors.InputRefused("no", "none", "give {label}", options=("label",)))

    monkeypatch.setattr(sys, "argv", ["sam-test"])
    with pytest.raises(SystemExit):
        run_command(command, "sam-test")


def test_progress_is_shown_unless_it_is_to_be_quiet_and_warnings_always(monkeypatch, capsys):
    log_in_a_command(monkeypatch, quiet=False)
    assert capsys.readouterr() == ("", "1 of 2\nb skipped: none; give --label\n")

    log_in_a_command(monkeypatch, quiet=True)
    assert capsys.readouterr() == ("", "b skipped: none; give --label\n")


def test_progress_may_have_its_seconds_and_warnings_the_commands_name(monkeypatch, capsys):
    log_in_a_command(monkeypatch, quiet=False, name="sam-test", timed=True)
    progress, warning = capsys.readouterr().err.splitlines()

    assert re.fullmatch(r"\[ +\d+\.\d s\] 1 of 2", progress)
    assert warning == "sam-test: b skipped: none; give --label"


def test_other_libraries_say_nothing_through_it(monkeypatch, capsys):
    log_in_a_command(monkeypatch, quiet=False)
    capsys.readouterr()
    logging.getLogger("elsewhere").info("noise")

    assert capsys.readouterr().err == ""
