"""The float16 files of an export: measured, converted, and gated by an emulation that rounds as a GPU does.

1. The float32 files run the parity procedure with a probe behind every tensor: `ranges`.
2. `precision` chooses the nodes that stay in float32, or a keep-list says them, and converts the others.
3. The procedure runs once more on the emulated float16 files, which must give PyTorch's masks: the gate. Where they
   don't, the next more careful level is tried; where none is left, the export fails and names the node to blame.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx

from samkit.errors import ExportError, ParityError
from samkit.export.emulation import EmulatedRunner, Offender, first_offender
from samkit.export.graphs import save_graph
from samkit.export.precision import LEVELS, Kept, Level, choose_kept, convert_to_fp16, count_products, notes_of
from samkit.export.ranges import RangeRunner, Ranges
from samkit.export.typed_graph import TypedGraph
from samkit.manifest import graph_file
from samkit.methods import GraphSpec
from samkit.runtime.runner import Runner

Say = Callable[[str], None]
Check = Callable[[Mapping[str, Runner], str], dict[str, dict[str, Any]]]
"""Runs the parity procedure on runners, in a precision; returns figures by graph, raises ParityError."""

LEAST_SHARE = 0.5
"""Share of the products below which float16 gains nothing."""

_GIVEN = Level("as the keep-list says", elementwise=True, softmax=True)


def write_float16(
    folder: Path,
    specs: Sequence[GraphSpec],
    check: Check,
    say: Say,
    keep_list: Mapping[str, Sequence[Kept]] | None = None,
) -> dict[str, Any]:
    """Write the float16 file of every graph in `folder` beside its float32 file; return notes by file name.

    `keep_list` holds, by graph, the nodes that stay in float32, instead of the measured ones. Raises ExportError where
    fewer than half of the products could run in float16, ParityError where the masks moved too far.
    """
    graphs = {spec.name: TypedGraph(onnx.load(folder / graph_file(spec.name, "fp32"))) for spec in specs}
    with tempfile.TemporaryDirectory(dir=folder) as made:
        ranges = {} if keep_list is not None else _measure(folder, Path(made), specs, check, say)
        levels = LEVELS if keep_list is None else (_GIVEN,)
        kept: dict[str, list[Kept]] = {}
        failed: ParityError | None = None
        for level in levels:
            before, asked_by = kept, str(failed or "")
            kept = {
                name: list(keep_list[name])
                if keep_list is not None
                else choose_kept(graph, ranges[name], level, asked_by)
                for name, graph in graphs.items()
            }
            if failed is not None and _names(kept) == _names(before):
                continue
            _check_gain(graphs, kept)
            _convert(folder, specs, graphs, kept)
            say(f"float16, {level.name}: emulated against PyTorch float32")
            try:
                figures = _gate(folder, Path(made), specs, check)
            except ParityError as error:
                say(f"float16, {level.name}: {error}")
                failed = error
                blamed = error
            else:
                return {
                    graph_file(name, "fp16"): {**notes_of(graphs[name], kept[name], level.name), "gate": figures[name]}
                    for name in graphs
                }
    raise blamed


def _names(kept: Mapping[str, Sequence[Kept]]) -> dict[str, list[str]]:
    return {graph: [entry.node for entry in entries] for graph, entries in kept.items()}


def _measure(folder: Path, made: Path, specs: Sequence[GraphSpec], check: Check, say: Say) -> dict[str, Ranges]:
    """Return what every tensor of the float32 graphs reached along the procedure."""
    say("float16: ranges of every tensor, along the float32 graphs")
    with ExitStack() as stack:
        runners = {
            spec.name: stack.enter_context(RangeRunner(folder / graph_file(spec.name, "fp32"), spec, made))
            for spec in specs
        }
        check(runners, "fp32")
        return {name: runner.ranges for name, runner in runners.items()}


def _check_gain(graphs: Mapping[str, TypedGraph], kept: Mapping[str, Sequence[Kept]]) -> None:
    counts = [count_products(graph, (entry.node for entry in kept[name])) for name, graph in graphs.items()]
    products, in_half = (sum(column) for column in zip(*counts, strict=True))
    if in_half < LEAST_SHARE * products:
        reasons = [entry.reason for name, graph in graphs.items() for entry in kept[name] if _is_product(graph, entry)]
        common = max(set(reasons), key=reasons.count)
        raise ExportError(
            f"float16 gains nothing here: {products - in_half} of {products} matrix products and convolutions have to "
            f"stay in float32 (most often: {common}); export without --fp16, or look at these weights"
        )


def _is_product(graph: TypedGraph, entry: Kept) -> bool:
    return count_products(graph, [entry.node])[1] < count_products(graph, [])[1]


def _convert(
    folder: Path, specs: Sequence[GraphSpec], graphs: Mapping[str, TypedGraph], kept: Mapping[str, Sequence[Kept]]
) -> None:
    for spec in specs:
        model = convert_to_fp16(graphs[spec.name], (entry.node for entry in kept[spec.name]))
        save_graph(model, folder / graph_file(spec.name, "fp16"), spec, folded=True)


def _gate(folder: Path, made: Path, specs: Sequence[GraphSpec], check: Check) -> dict[str, dict[str, Any]]:
    """Return the figures of the emulated float16 files; raises ParityError, with the node to blame."""
    with ExitStack() as stack:
        runners = {
            spec.name: stack.enter_context(EmulatedRunner(folder / graph_file(spec.name, "fp16"), spec, made))
            for spec in specs
        }
        try:
            return check(runners, "fp16")
        except ParityError as error:
            singles = {name: folder / graph_file(name, "fp32") for name in runners}
            blamed = [first_offender(singles[name], runner, made) for name, runner in runners.items() if runner.last]
            raise ParityError(f"{error}; {_worst(blamed)}") from error


def _worst(offenders: Sequence[Offender]) -> Offender:
    """Return the one to blame: the first that overflowed, else the first beyond its tolerance, else the worst."""
    serious = [one for one in offenders if one.is_overflow] or [one for one in offenders if one.is_beyond]
    return serious[0] if serious else max(offenders, key=lambda one: one.error)
