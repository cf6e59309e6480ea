"""How every command of samkit speaks and ends: progress on stderr, then one sentence and an exit code.

The library logs to `logging.getLogger(__name__)` and names options as data; here that becomes lines and flags.

Exit codes: 0 done, 1 a stage or parity failed, 2 usage, 3 input refused (errors.py has the table). Anything that is no
SamkitError is our bug and keeps its traceback.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

import click

from samkit.errors import OptionError, SamkitError
from samkit.extras import how_to_install


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
    imports when it runs: a package that is missing is a sentence, too.
    """
    try:
        command.main(prog_name=name, standalone_mode=False)
    except SamkitError as error:
        sentence = error.sentence(lambda option: _flag(command, option))
        _fail(name, f"{sentence}; see {name} --help" if isinstance(error, OptionError) else sentence, error.exit_code)
    except click.exceptions.Exit as finished:  # --help and --version
        sys.exit(finished.exit_code)
    except click.UsageError as error:
        _fail(name, f"{error.format_message().rstrip('.')}; see {name} --help", 2)
    except click.ClickException as error:
        _fail(name, error.format_message(), error.exit_code)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "samkit" or not extras:
            raise
        _fail(name, f"{package} is not installed, and this needs it; {how_to_install(*extras)}", 1)
    except (click.Abort, KeyboardInterrupt):
        _fail(name, "interrupted", 130)
    sys.exit(0)


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
    click.echo(f"{name}: {' '.join(sentence.split())}", err=True)
    sys.exit(exit_code)
