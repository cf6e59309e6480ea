"""Time every exported graph against `--no-fold`'s in ONNX Runtime, in one process, and hold the ratios to their goals.

    python -m tools.rewrites [--case NAME ...] [--rounds 7] [--threads 2] [--eager] [--json FILE]

Both graphs come from the same seeded random weights, none of them zero, and must give the same outputs. Runs take
turns, because a shared machine is never twice the same: the ratio is one of medians, and the median of the ratios
within each round stands beside it. Peak memory is measured in a process of its own. `rewrite_goals.py` has the cases
and their goals. Exit code 1 when one is missed, each miss a sentence.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from samkit.benchmarks.latency.candidates import torch_run
from samkit.benchmarks.measure.graph_work import count_flops
from samkit.benchmarks.measure.machine import PRODUCT_GFLOP, load, matrix_product, processor
from samkit.benchmarks.measure.processes import measure_memory
from samkit.benchmarks.measure.turns import several, take_turns
from samkit.command import THREADS, run_command
from samkit.errors import SamkitError
from samkit.export.parity import output_error
from samkit.methods import get_method
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from tools.rewrite_goals import CASES, FORMULATIONS, SIZES, RewriteCase

EQUAL = 1e-5
"""Largest relative difference of an output between the two formulations."""
TURN_SECONDS = 0.4
"""About how long one formulation runs before the next one's turn."""


@click.command()
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)), help="One case; all when left out.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(min=1), help="Turns of each formulation.")
@click.option("--threads", default=2, show_default=True, type=THREADS)
@click.option("--size", type=click.Choice(SIZES), default="full", show_default=True, help="tiny shows that it works.")
@click.option("--eager", is_flag=True, help="Time PyTorch eager of the official formulation, too.")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write records with all samples.")
def rewrites(names: tuple[str, ...], rounds: int, threads: int, size: str, eager: bool, out: Path | None) -> None:
    """Print one row per case; exit code 1 when a goal is missed."""
    records = []
    for name in names or CASES:
        click.echo(f"{name} ...", err=True)
        records.append(measure(CASES[name].at(size), rounds=rounds, threads=threads, size=size, eager=eager))
        if out is not None:
            out.write_text(json.dumps(records, indent=1) + "\n")
    _print(records)
    misses = [sentence for record in records for sentence in record["misses"]]
    for sentence in misses:
        click.echo(sentence, err=True)
    if misses:
        raise SamkitError(f"{len(misses)} goals were missed, named above; run again on an idle machine, or profile")


def measure(case: RewriteCase, *, rounds: int, threads: int, size: str = "full", eager: bool = False) -> dict[str, Any]:
    """Return the record of one case: figures, samples, machine, and a sentence for each goal missed."""
    busy = load()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        _write_graphs(case, folder)
        inputs = {"official": case.inputs()}
        inputs["folded"] = _folded_inputs(case, folder, inputs["official"], threads)
        runners = {
            form: stack.enter_context(OnnxRuntimeRunner(_file(folder, form), case.graph(form), threads=threads))
            for form in FORMULATIONS
        }
        errors = _differences(runners, inputs)
        product = stack.enter_context(matrix_product(threads))
        runs: dict[str, Callable[[], object]] = {
            "product": product,
            "folded": lambda: runners["folded"].run(inputs["folded"]),
            "official": lambda: runners["official"].run(inputs["official"]),
        }
        if eager:
            runs["eager"] = _eager_run(case, inputs["official"], threads)
        turns = take_turns({name: several(run, TURN_SECONDS) for name, run in runs.items()}, rounds)
        samples = {name: [float(np.median(turn)) for turn in turns[name]] for name in runs}
        memory = {form: measure_memory(_file(folder, form), inputs[form], threads) for form in FORMULATIONS}
    record: dict[str, Any] = {"case": case.name, "size": size, "rounds": rounds}
    record |= _figures(case, samples, errors, memory)
    record["machine"] = {
        "processor": processor(),
        "threads": threads,
        "gemm_gflops": round(PRODUCT_GFLOP / record["seconds"]["product"], 1),
        "load_before": busy,
    }
    return record | {"misses": find_misses(case, record)}


def find_misses(case: RewriteCase, record: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each goal of `case` that `record` misses, and for each output that differs."""
    found = [goal.miss(record[goal.figure]) for goal in case.goals]
    found += [
        f"gives another {name} than --no-fold, by {error:.1e}, right is at most {EQUAL:.0e}"
        for name, error in record["relative_error"].items()
        if not error <= EQUAL  # `not <=`, because nan must fail
    ]
    return [f"{case.name} {sentence}" for sentence in found if sentence is not None]


def _figures(
    case: RewriteCase, samples: Mapping[str, list[float]], errors: Mapping[str, float], memory: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what follows from the samples [s], the differences and the memory [MB]."""
    median = {name: float(np.median(values)) for name, values in samples.items()}
    method = get_method(case.method)
    gflop = {form: count_flops(method, case.config, case.graph(form), folded=form == "folded") for form in FORMULATIONS}
    rate = PRODUCT_GFLOP / median["product"]
    figures: dict[str, Any] = {
        "ratio": round(median["official"] / median["folded"], 3),
        "paired_ratio": _paired(samples["official"], samples["folded"]),
        "share": round(gflop["folded"] / median["folded"] / rate, 3),
        "share_official": round(gflop["official"] / median["official"] / rate, 3),
        "above_session_mb": memory["folded"]["above_session_mb"],
        "peak_of_official": round(memory["folded"]["peak_mb"] / memory["official"]["peak_mb"], 3),
        "relative_error": dict(errors),
        "seconds": {name: round(value, 5) for name, value in median.items()},
        "gflop": {name: float(f"{value:.5g}") for name, value in gflop.items()},
        "memory": dict(memory),
        "samples": {name: [round(value, 6) for value in values] for name, values in samples.items()},
    }
    if "eager" in samples:
        figures["ratio_eager"] = round(median["eager"] / median["folded"], 2)
    return figures


def _paired(slow: list[float], fast: list[float]) -> float:
    """Return the median of the ratios within each round."""
    return round(float(np.median(np.divide(slow, fast))), 3)


# --- Graphs and inputs ---


def _write_graphs(case: RewriteCase, folder: Path) -> None:
    """Write both formulations, and what runs before the folded one, from one network with random weights."""
    from samkit.export.graphs import write_graph
    from samkit.export.loading import random_network
    from samkit.export.plan import OPSET

    network = random_network(get_method(case.method), case.config)
    network.set_folded(False)
    write_graph(network, case.graph("official"), _file(folder, "official"), opset=OPSET, folded=False)
    network.merge_lora()
    network.set_folded(True)
    network.freeze()
    write_graph(network, case.graph("folded"), _file(folder, "folded"), opset=OPSET, folded=True)
    if case.before is not None:
        write_graph(network, case.find(case.before), _file(folder, "before"), opset=OPSET, folded=True)
    del network
    gc.collect()  # the exporter's programs hold the network in cycles


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.onnx"


def _folded_inputs(
    case: RewriteCase, folder: Path, given: Mapping[str, np.ndarray], threads: int
) -> dict[str, np.ndarray]:
    """Return what the folded graph takes: of the official one's inputs those it has, and what runs before it."""
    known = dict(given)
    if case.before is not None:
        spec = case.find(case.before)
        with OnnxRuntimeRunner(_file(folder, "before"), spec, threads=threads) as runner:
            known |= runner.run({tensor.name: known[tensor.name] for tensor in spec.inputs})
    return {tensor.name: known[tensor.name] for tensor in case.graph("folded").inputs}


def _differences(
    runners: Mapping[str, OnnxRuntimeRunner], inputs: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Return of each output how far the folded graph is from the official one, norm over norm."""
    folded, official = (runners[form].run(inputs[form]) for form in FORMULATIONS)
    return {name: output_error(name, folded[name], official[name]) for name in official}


def _eager_run(case: RewriteCase, inputs: Mapping[str, np.ndarray], threads: int) -> Callable[[], object]:
    """Return a run of the official formulation in PyTorch, LoRA apart, on as many threads."""
    import torch

    from samkit.export.loading import random_network

    torch.set_num_threads(threads)
    network = random_network(get_method(case.method), case.config)
    network.set_folded(False)
    return torch_run(network, case.graph("official"), inputs)


# --- Table ---


def _print(records: list[dict[str, Any]]) -> None:
    """Print one row per case, and under them what they were measured on."""
    table = Table(
        "case", "ms", "--no-fold ms", "ratio", "paired", "eager ratio", "GFLOP", "share", "above session MB", "peak",
        "difference", "gemm GF/s", "load",
    )  # fmt: skip
    for record in records:
        seconds = record["seconds"]
        table.add_row(
            record["case"],
            f"{1e3 * seconds['folded']:.1f}",
            f"{1e3 * seconds['official']:.1f}",
            _with_goal(record, "ratio"),
            f"{record['paired_ratio']}",
            f"{record.get('ratio_eager', '')}",
            f"{record['gflop']['folded']:.4g} / {record['gflop']['official']:.4g}",
            _with_goal(record, "share"),
            _with_goal(record, "above_session_mb"),
            _with_goal(record, "peak_of_official"),
            f"{max(record['relative_error'].values()):.0e}",
            f"{record['machine']['gemm_gflops']}",
            f"{record['machine']['load_before']}",
        )
    console = Console(width=230)
    console.print(table)
    machine = records[0]["machine"]
    console.print(f"{machine['processor']}; {machine['threads']} threads; medians of {records[0]['rounds']} turns")


def _with_goal(record: Mapping[str, Any], figure: str) -> str:
    """Return a figure, with its bound and its aim where the case has a goal for it."""
    goals = CASES[record["case"]].at(record["size"]).goals
    goal = next((goal for goal in goals if goal.figure == figure), None)
    if goal is None:
        return f"{record[figure]}"
    return f"{record[figure]} ({goal.bound}{'' if goal.aim is None else f', aim {goal.aim:g}'})"


def main() -> None:
    """Run the command."""
    run_command(rewrites, "rewrites")


if __name__ == "__main__":
    main()
