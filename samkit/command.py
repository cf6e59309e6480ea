"""How every command of samkit ends: one sentence and an exit code.

Exit codes: 0 done, 1 a stage or parity failed, 2 usage, 3 input refused (errors.py has the table). Anything that is
no SamkitError is our bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from samkit.errors import SamkitError


def run_command(command: click.Command, name: str) -> NoReturn:
    """Run `command` on sys.argv under the name of its entry point and exit; failures are one line on stderr.

    An entry point's `main` is this one call, so all commands fail alike.
    """
    try:
        command.main(prog_name=name, standalone_mode=False)
    except SamkitError as error:
        _fail(name, str(error), error.exit_code)
    except click.exceptions.Exit as finished:  # --help and --version
        sys.exit(finished.exit_code)
    except click.UsageError as error:
        _fail(name, f"{error.format_message().rstrip('.')}; see {name} --help", 2)
    except click.ClickException as error:
        _fail(name, error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail(name, "interrupted", 130)
    sys.exit(0)


def _fail(name: str, sentence: str, exit_code: int) -> NoReturn:
    click.echo(f"{name}: {' '.join(sentence.split())}", err=True)
    sys.exit(exit_code)
