"""The command: a table of hostile files and what came of them."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import click

from samkit.command import run_command
from samkit.errors import SamkitError
from tools.hostile.cases import cases, shown
from tools.hostile.doors import Goods


@click.command()
@click.option("--seed", type=int, default=0, show_default=True, help="Of what chance decides: cuts, bits.")
@click.option("--only", default="", metavar="TEXT", help="Only cases whose names hold this.")
@click.option("--exports", type=click.Path(path_type=Path), help="Folder of the good exports and run. Default: made.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for what was made, and is not removed.")
@click.option("--all", "shows_all", is_flag=True, help="Show what was said of every file.")
def hostile(seed: int, only: str, exports: Path | None, keep: Path | None, shows_all: bool) -> None:
    """Show hostile files to every command; fails where one is not answered as it should be."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) if keep is None else keep
        folder.mkdir(parents=True, exist_ok=True)
        goods = Goods.made(folder / "exports") if exports is None else Goods.of(exports)
        doors: Counter[str] = Counter()
        wrong: list[str] = []
        seconds, taken = 0.0, 0
        for case, found, problems in shown((case for case in cases(seed) if only in case.name), goods, folder):
            doors[case.door] += 1
            seconds, taken = seconds + found.seconds, max(taken, found.taken)
            wrong += [case.name] if problems else []
            if problems or shows_all:
                cost = f"{found.code} {1000 * found.seconds:.0f} ms {found.taken >> 20} MiB"
                click.echo(f"{'NO' if problems else 'ok'} {case.name}: {cost}")
                for line in (*problems, *(f"| {line:.400}" for line in found.lines[-30:])):
                    click.echo(f"     {line}")
        for door, count in doors.items():
            click.echo(f"{count:5} {door}")
        total = sum(doors.values())
        click.echo(f"{total:5} in all, {len(wrong)} not answered as they should be, {seconds:.1f} s, {taken >> 20} MiB")
    if wrong:
        raise SamkitError(f"{len(wrong)} of {total} did not hold; repeat one by --seed {seed} --only '{wrong[0]}'")


def main() -> None:
    """Run the command."""
    run_command(hostile, "hostile")


if __name__ == "__main__":
    main()
