"""Every command ends with one sentence and its exit code; only our bugs show a traceback. Progress is the log's."""

from __future__ import annotations

import ast
import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import click
import pytest

import samkit
from samkit import errors
from samkit.command import THREADS, run_command, show_progress, typed_words
from samkit.runtime.backends import checked_threads


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


# --- What the system refuses, and what can't be decoded ---


def raised_by(call):
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def nested(depth=100_000):
    return json.loads("[" * depth)


@pytest.mark.parametrize(
    ("cause", "code", "says"),
    [
        (
            lambda: Path("no/such/file").read_text(),
            3,
            r"no/such/file can't be used \(No such file .*; check",
        ),
        (lambda: Path("/").read_text(), 3, r"/ can't be used \(Is a directory\)"),
        (lambda: Path("x" * 300).read_text(), 3, r"File name too long"),
        (lambda: os.open(b"no\xff", os.O_RDONLY), 3, r"No such file"),
        (
            lambda: Path("/dev/full").write_text("x" * 10**5),
            1,
            r"the system refused something \(No space left",
        ),
        (lambda: b"\xff".decode(), 3, r"can't be decoded \('utf-8' codec .*not what its name says"),
        (lambda: json.loads("{"), 3, r"can't be decoded \(Expecting"),
        (lambda: zlib.decompress(b"nothing"), 3, r"can't be decoded \(Error -3"),
        (lambda: bytearray(1 << 62), 1, r"there is not enough memory"),
        (nested, 3, r"nested too deep"),
    ],
)
def test_what_the_system_refuses_and_what_cannot_be_decoded_is_a_sentence(monkeypatch, capsys, cause, code, says):
    found, said = end(monkeypatch, capsys, raised_by(cause))

    assert found == code
    assert re.fullmatch(rf"sam-test: .*{says}.*\n", said)


def test_a_full_disk_is_a_stage_that_failed(monkeypatch, capsys):
    code, said = end(monkeypatch, capsys, OSError(errno.ENOSPC, "No space left on device", "/out/run.json"))

    assert (code, said) == (
        1, "sam-test: /out/run.json can't be written (No space left on device); make room, or write elsewhere\n"
    )  # fmt: skip


def test_a_function_of_ours_that_calls_itself_for_ever_is_a_bug(monkeypatch, capsys):
    def again():
        return again()

    with pytest.raises(RecursionError):
        end(monkeypatch, capsys, raised_by(again))


@pytest.mark.parametrize(("words", "setting"), [(["--debug"], "0"), ([], "1")])
def test_the_traceback_of_any_failure_can_be_seen(monkeypatch, capsys, words, setting):
    monkeypatch.setenv("SAMKIT_DEBUG", setting)
    code, said = end(monkeypatch, capsys, errors.ExportError("one; two"), words)

    assert code == 1
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.endswith("\nsamkit.errors.ExportError: one; two\nsam-test: one; two\n")


def test_every_command_can_show_tracebacks():
    commands = ["segment", "export", "training", "triton_models", "benchmarks"]
    below = {"triton_models": "write", "benchmarks": "compare"}
    for name in commands:
        words = [*([below[name]] if name in below else []), "--help"]
        program = f"import sys; sys.argv[1:] = {words!r}; from samkit.{name}.cli import main; main()"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "--debug" in ended.stdout, name


# --- Streams ---

SPEAKING = """
import sys, click
from samkit.command import run_command, show_progress
@click.command()
def command():
    show_progress(False)
    import logging
    logging.getLogger("samkit.x").info("progress")
    click.echo(sys.argv[0])
sys.argv[0] = "scan-\\udcff"
run_command(command, "sam-test")
"""


@pytest.mark.parametrize(
    ("place", "reason"), [("/dev/full", "No space left on device"), (None, "nobody reads it any more")]
)
def test_a_stdout_that_takes_nothing_is_one_sentence(place, reason):
    if place is None:
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(place, os.O_WRONLY)
    ended = subprocess.run(
        [sys.executable, "-c", SPEAKING], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)

    assert ended.returncode == 1
    progress, said = ended.stderr.splitlines()
    assert (progress, said.startswith(f"sam-test: stdout can't be written ({reason})")) == ("progress", True)


def test_a_stderr_that_takes_nothing_is_no_reason_to_fail_and_any_name_can_be_printed():
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([sys.executable, "-c", SPEAKING], stdout=subprocess.PIPE, stderr=full, check=False)

    assert (ended.returncode, ended.stdout) == (0, b"scan-\\udcff\n")


# --- Threads ---


@pytest.mark.parametrize("count", [0, 100_000])
def test_threads_are_from_one_to_four_times_the_cores(count, monkeypatch, capsys):
    most = 4 * os.cpu_count()
    command = click.command()(click.option("--threads", type=THREADS)(lambda threads: None))
    monkeypatch.setattr(sys, "argv", ["sam-test", "--threads", str(count)])
    with pytest.raises(SystemExit) as ended:
        run_command(command, "sam-test")

    assert ended.value.code == 2
    assert f"{count} is not in the range 1<=x<={most}; see sam-test --help" in capsys.readouterr().err


def test_python_counts_threads_as_commands_do():
    most = 4 * os.cpu_count()
    assert checked_threads(most) == most
    with pytest.raises(
        errors.OptionError, match=rf"threads is {most + 1}, needed is .* at most {most} \(four for each"
    ):
        checked_threads(most + 1)


# --- Signals ---

WAITING = """
import signal, sys, time, click
from pathlib import Path
from samkit.command import run_command
from samkit.files import replacing
@click.command()
def command():
    with replacing(Path(sys.argv[0]) / "mask.nii") as file:
        file.write(b"half")
        print("at work", flush=True)
        while True:
            time.sleep(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests may have these ignored, as nohup has
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = sys.argv.pop()
run_command(command, "sam-test")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_with_its_code_one_sentence_and_nothing_half_made(tmp_path, number):
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        said = process.stderr.read()

    assert process.returncode == 128 + number
    assert said == f"sam-test: stopped by {number.name}; nothing half-made is left; run it again\n"
    assert not list(tmp_path.iterdir())


def test_a_hangup_that_nohup_keeps_away_stays_away(monkeypatch, capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert during(monkeypatch, lambda: signal.raise_signal(signal.SIGHUP)) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_cleans_up_after_a_signal_is_not_hit_by_another(monkeypatch, capsys):
    cleaned = []

    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)
            cleaned.append(True)

    assert during(monkeypatch, work) == 128 + signal.SIGTERM
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def during(monkeypatch, work):
    """Return the exit code of a command that does `work`."""
    monkeypatch.setattr(sys, "argv", ["sam-test"])
    with pytest.raises(SystemExit) as ended:
        run_command(click.command()(lambda: work()), "sam-test")
    return ended.value.code


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


# --- What is handed on ---


@pytest.mark.parametrize(
    ("typed", "handed_on"),
    [
        (["one", "--data", "ward-7/Mueller", "-n", "3"], ["one", "--data", "DATA", "-n", "3"]),
        (["one", "--data=ward-7", "-n", "3", "-n=4"], ["one", "--data=DATA", "-n", "3", "-n=4"]),
        (["--log-file", "Mueller", "one", "-d", "--data"], ["--log-file", "LOG_FILE", "one", "-d", "D"]),
        (["one", "--data", "--data=a", "-n", "--data"], ["one", "--data", "DATA", "-n", "--data"]),
    ],
)
def test_typed_words_have_no_paths_unless_they_are_to_be_shown(typed, handed_on, monkeypatch, capsys):
    @click.group()
    @click.option("--log-file", type=click.Path())
    def group(log_file):
        pass

    @group.command()
    @click.option("--data", "-d", type=click.Path())
    @click.option("-n", multiple=True)
    def one(data, n):
        click.echo(json.dumps([typed_words(), typed_words(show_paths=True)]))

    monkeypatch.setattr(sys, "argv", ["sam-test", *typed])
    with pytest.raises(SystemExit):
        run_command(group, "sam-test")

    assert json.loads(capsys.readouterr().out) == [handed_on, typed]
