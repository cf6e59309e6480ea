"""The command `sam-bench`: five commands, each in a module of its own that is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import click

from samkit.command import run_command, with_debug
from samkit.errors import SamkitError
from samkit.version import __version__

if TYPE_CHECKING:
    from samkit.benchmarks.record.run import Measured

COMMANDS: Mapping[str, tuple[str, str]] = {
    "accuracy": ("accuracy.command",
                 "How far exports are from PyTorch and from the truth, per case and click; a gate."),
    "latency": ("latency.command",
                "Cold start, encode, clicks, end to end: percentiles beside PyTorch's; shares of the machine's limit."),
    "load": ("load.command",
             "Readers on a Triton server: sessions, clicks per second, percentiles, memory, how cost grows."),
    "compare": ("report.compare", "What got better or worse between two runs, beyond the noise."),
    "report": ("report.command", "One HTML file of any runs, with tables and pictures."),
}  # fmt: skip
"""By name the module that has `command`, and what stands in the help, so that it needs none of their libraries."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = import_module(f"samkit.benchmarks.{COMMANDS[cmd_name][0]}").command
        self.add_command(with_debug(found), cmd_name)  # an error that names its options is spelled by it
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


@click.group(
    cls=_Commands, epilog="Exit codes: 0 done, 1 a gate failed or a figure got worse, 2 usage, 3 input refused."
)
@click.version_option(__version__, prog_name="sam-bench")
def bench() -> None:
    """Measure exports: accuracy against the PyTorch originals, latency, load. Each run is one JSON file."""


@bench.result_callback()
def finish(measured: Measured | None) -> None:
    """Write and show what a command measured, then fail with what broke; `compare` and `report` measured nothing."""
    if measured is None:
        return
    from samkit.benchmarks.report.tables import show

    measured.run.save(measured.out)
    show(measured.run)
    for sentence in measured.warnings:
        click.secho(sentence, err=True, fg="red", bold=True)
    for sentence in measured.failures[:-1]:
        click.echo(f"sam-bench: {sentence}", err=True)
    if measured.failures:
        raise SamkitError(measured.failures[-1])


def main() -> None:
    """Run `sam-bench`."""
    run_command(bench, "sam-bench", extras=("bench", "export", "cpu"))


if __name__ == "__main__":
    main()
