"""How every command of samkit speaks and ends: progress on stderr, then one sentence and an exit code.

The library logs to `logging.getLogger(__name__)` and names options as data; here that becomes lines and flags.

Exit codes: 0 done, 1 a stage or parity failed, 2 usage, 3 input refused (errors.py has the table), 128 + N stopped by
signal N. What the system refuses and what can't be decoded becomes a sentence here, for all commands alike; where the
code that reads a file knows more, it says more. Anything else is our bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from samkit.cores import MOST_THREADS
from samkit.errors import OptionError, SamkitError, Stopped
from samkit.extras import how_to_install
from samkit.files import reason_of
from samkit.telemetry import own_caches

THREADS = click.IntRange(1, MOST_THREADS)
"""The type of an option that counts threads of one operator."""

_debugging: ContextVar[bool] = ContextVar("_debugging", default=False)


class _Lines(logging.Handler):
    """Writes each record as one line to stderr, whatever that is when it comes; an error in it has its flags."""

    def __init__(self, name: str, timed: bool, spell: Callable[[str], str | None]) -> None:
        super().__init__()
        self._name, self._timed, self._spell, self._began = name, timed, spell, time.time()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        for given in record.args if isinstance(record.args, tuple) else ():
            if isinstance(given, SamkitError):
                line = line.replace(str(given), given.sentence(self._spell))
        if record.levelno >= logging.WARNING:
            line = f"{self._name}: {line}" if self._name else line
        elif self._timed:
            line = f"[{record.created - self._began:6.1f} s] {line}"
        with suppress(OSError):  # a terminal that went away, a full disk: no reason to throw the work away
            click.echo(line, err=True)


def show_progress(quiet: bool, *, name: str = "", timed: bool = False) -> None:
    """Show what the library logs on stderr: all of it from INFO on, or warnings alone where it is to be quiet.

    A warning begins with `name`, as a failure does, where one is given. `timed` puts before all other lines the seconds
    since this call.
    """
    logger = logging.getLogger("samkit")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _Lines)]:
        logger.removeHandler(handler)  # of a command before this one, in the same process
    context = click.get_current_context(silent=True)
    spell = partial(_flag, context.find_root().command) if context is not None else lambda option: None
    logger.addHandler(_Lines(name, timed, spell))
    logger.propagate = False  # a library beside ours may have set up the root's, and each line would come twice
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def run_command(command: click.Command, name: str, extras: Sequence[str] = ()) -> NoReturn:
    """Run `command` on sys.argv under the name of its entry point and exit; failures are one line on stderr.

    An entry point's `main` is this one call, so all commands fail alike. `extras` of samkit install what the command
    imports when it runs: a package that is missing is a sentence, too. `--debug`, or SAMKIT_DEBUG in the environment,
    shows the traceback of whatever ended it before that line.
    """
    _debugging.set(os.environ.get("SAMKIT_DEBUG", "") not in ("", "0"))
    with_debug(command)
    _print_any_name()
    if f"_{name}_complete".replace("-", "_").upper() in os.environ:  # a shell asks what may follow; click knows
        command.main(prog_name=name)
    try:
        with own_caches(), _signals_heard():
            # Not `command.main`, which ends without a word where stdout is closed
            with command.make_context(name, sys.argv[1:]) as context:
                command.invoke(context)
            _flush_stdout()
    except click.exceptions.Exit as finished:  # --help and --version
        sys.exit(finished.exit_code)
    except (Exception, KeyboardInterrupt, Stopped) as error:
        ended = _ended(command, name, extras, error)
        if ended is None:
            raise
        if _debugging.get():
            traceback.print_exception(error)
        _fail(name, *ended)
    sys.exit(0)


def with_debug(command: click.Command) -> click.Command:
    """Give a command, and those below that it knows already, the flag that shows tracebacks; return it."""
    if not any("--debug" in parameter.opts for parameter in command.params):
        flag = click.Option(
            ["--debug"], is_flag=True, is_eager=True, expose_value=False, callback=_switch_debugging,
            help="Show the traceback of what ends it; so does SAMKIT_DEBUG=1.",
        )  # fmt: skip
        command.params.append(flag)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        with_debug(below)
    return command


def _switch_debugging(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        _debugging.set(True)


def typed_words(*, show_paths: bool = False) -> list[str]:
    """Return what was typed behind the program's name, as it may be handed on: `--data DATA`, whatever folder it is.

    A path may name a patient or a place.
    """
    words = sys.argv[1:]
    context = click.get_current_context(silent=True)
    if show_paths or context is None:
        return words
    flags = {flag for one in _with_parents(context) for flag in _path_flags(one.command)}
    shown, is_path_of = [], ""
    for word in words:
        flag, found, _ = word.partition("=")
        shown.append(_placeholder(is_path_of) if is_path_of else word)
        if not is_path_of and found and flag in flags:
            shown[-1] = f"{flag}={_placeholder(flag)}"
        is_path_of = word if not is_path_of and word in flags else ""
    return shown


def _with_parents(context: click.Context) -> Iterator[click.Context]:
    yield context
    if context.parent is not None:
        yield from _with_parents(context.parent)


def _path_flags(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and isinstance(parameter.type, click.Path):
            yield from parameter.opts


def _placeholder(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_").upper()


# --- What ends a command ---

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""What only who writes is told; whatever else the system says of a file that has a name, it says of an input."""
_DECODERS = ("json", "pickle", "ast", "xml", "csv")
"""Modules of Python that call themselves as deep as an input is nested."""
_NOT_AS_NAMED = "it is damaged, or not what its name says"


def _ended(command: click.Command, name: str, extras: Sequence[str], error: BaseException) -> tuple[str, int] | None:
    """Return the sentence and the code that a command ends with; None for what only a bug of ours can be."""
    spell = partial(_flag, command)
    match error:
        case SamkitError():
            sentence = error.sentence(spell)
            return f"{sentence}; see {name} --help" if isinstance(error, OptionError) else sentence, error.exit_code
        case Stopped():
            return error.error.sentence(spell), error.exit_code
        case click.UsageError():
            return f"{error.format_message().rstrip('.')}; see {name} --help", 2
        case click.ClickException():
            return error.format_message(), error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return _ended(command, name, extras, Stopped(signal.SIGINT))
        case ModuleNotFoundError():
            package = str(error.name).partition(".")[0]
            if package == "samkit" or not extras:
                return None
            return f"{package} is not installed, and this needs it; {how_to_install(*extras)}", 1
        case OSError():
            return _refused_by_system(name, error)
        case MemoryError():
            return f"there is not enough memory ({error or 'none is left'}); take a smaller input, or more memory", 1
        case UnicodeError() | json.JSONDecodeError() | EOFError() | zlib.error():
            return f"an input can't be decoded ({error}); {_NOT_AS_NAMED}, and {name} --debug shows where", 3
        case RecursionError() if _is_of_decoder(error):
            return f"an input is nested too deep to be read; {_NOT_AS_NAMED}, and {name} --debug shows where", 3
    return None


def _refused_by_system(name: str, error: OSError) -> tuple[str, int]:
    """Return the sentence and the code for what the system would not do."""
    if _is_of_stdout(error):
        reason = "nobody reads it any more" if isinstance(error, BrokenPipeError) else reason_of(error)
        return f"stdout can't be written ({reason}); files are as they should be, what stdout was to say is lost", 1
    if error.filename is None:
        return f"the system refused something ({reason_of(error)}); {name} --debug shows what", 1
    reason, path = reason_of(error), _shown(error.filename)
    if error.errno in _FULL:
        return f"{path} can't be written ({reason}); make room, or write elsewhere", 1
    return f"{path} can't be used ({reason}); check its path, and who may read it", 3


def _shown(path: object) -> str:
    """Return a path as text of a bearable length."""
    text = os.fsdecode(path) if isinstance(path, str | bytes) else str(path)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def _is_of_decoder(error: RecursionError) -> bool:
    trace, modules = error.__traceback__, set()
    while trace is not None:
        modules.add(str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0])
        trace = trace.tb_next
    return not modules.isdisjoint(_DECODERS)


# --- Signals ---


@contextmanager
def _signals_heard() -> Iterator[None]:
    """Raise Stopped for the signals that ask a command to end, so that it cleans up, and says so.

    A signal that was ignored (nohup) stays so, and whoever listens to one already goes on to.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():  # no other may set them
        unheard = (signal.SIG_DFL, signal.default_int_handler)
        before = {one: now for one in _STOPS if (now := signal.getsignal(one)) in unheard}
    try:
        for number in before:
            signal.signal(number, _stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise Stopped, once: where it is on its way already, what cleans up is not hit again, unless by Ctrl-C."""
    error = sys.exception()
    while error is not None and number != signal.SIGINT:
        if isinstance(error, Stopped):
            return
        error = error.__context__
    raise Stopped(number)


# --- Streams ---


def _print_any_name() -> None:
    """Let names that the streams' encoding does not have be printed: escaped, where they ended a command before."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush_stdout() -> None:
    if sys.stdout is not None:  # it may be closed from the start
        sys.stdout.flush()


_WRITERS = ("echo", "_flush_stdout", "_write_buffer")
"""The functions that write to stdout: click's, the one above, Rich's."""


def _is_of_stdout(error: OSError) -> bool:
    """Return whether stdout could not be written; what it still holds is forgotten then, for Python would try again."""
    frames = traceback.extract_tb(error.__traceback__)
    if error.filename is not None or not frames or frames[-1].name not in _WRITERS:
        return False
    with suppress(OSError):
        sys.stdout.close()
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # until the process ends
    return True


def _flag(command: click.Command, option: str) -> str | None:
    """Return how `command`, or one below it, spells an option: the longest flag of that name, or of that parameter.

    A flag may fill a parameter of another name, as --method does `method_name`.
    """
    own = f"--{option.replace('_', '-')}"
    below = command.commands.values() if isinstance(command, click.Group) else ()
    for parameter in command.params:
        if isinstance(parameter, click.Option) and (parameter.name == option or own in parameter.opts):
            return max((*parameter.opts, *parameter.secondary_opts), key=len)
    return next((flag for one in below if (flag := _flag(one, option)) is not None), None)


def _fail(name: str, sentence: str, exit_code: int) -> NoReturn:
    with suppress(OSError):  # nobody may be there to read it; the exit code says it, too
        click.echo(f"{name}: {' '.join(sentence.split())}", err=True)
    sys.exit(exit_code)
