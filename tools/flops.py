"""The GFLOP of every full-size graph: one image, or one row of prompts with one point.

python -m tools.flops
"""

from __future__ import annotations

import click

from samkit.benchmarks.measure.graph_work import count_flops
from samkit.command import run_command
from samkit.methods import get_method, list_methods


@click.command()
def flops() -> None:
    """Print a table of all methods' graphs, as an export has them and as --no-fold does."""
    click.echo("| method | graph | folded | --no-fold |\n|---|---|---|---|")
    for name in list_methods():
        method = get_method(name)
        config = method.sizes["full"]
        for graph in method.graphs(config):
            folded = count_flops(method, config, graph, folded=True)
            official = "" if graph.is_rewrite else f"{count_flops(method, config, graph, folded=False):.4g}"
            click.echo(f"| {name} | {graph.name} | {folded:.4g} | {official} |")


def main() -> None:
    """Run the command."""
    run_command(flops, "flops")


if __name__ == "__main__":
    main()
