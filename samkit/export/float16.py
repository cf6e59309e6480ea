"""The float16 files of an export: measured, converted, and gated by an emulation that rounds as a GPU does.

1. The float32 files run the parity procedure with a probe behind every tensor: `ranges`.
2. `precision` chooses the nodes that stay in float32, or a keep-list says them, and converts the others.
3. The procedure runs once more on the emulated float16 files, which must give PyTorch's masks: the gate. Where they
   don't, more stays: the levels of `precision`, then the products that `sensitivity` finds to matter most, nearly half
   of them at last. Where nothing is left to try, the export fails and names the node to blame.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx

from samkit.errors import ExportError, ParityError
from samkit.export.emulation import EmulatedRunner, Offender, first_offender
from samkit.export.graphs import save_graph
from samkit.export.precision import (
    LEVELS,
    Kept,
    choose_kept,
    convert_to_fp16,
    count_products,
    notes_of,
    read_keep_list,
)
from samkit.export.ranges import RangeRunner, Ranges
from samkit.export.sensitivity import measure_effects
from samkit.export.typed_graph import PRODUCTS, TypedGraph
from samkit.json_files import read_json
from samkit.manifest import ExportPlan, graph_file
from samkit.methods import GraphSpec
from samkit.precisions import BASE
from samkit.precisions.fp16 import PRECISION as FP16
from samkit.runtime.backends.runner import Runner
from samkit.tensors import Tensor

Check = Callable[[Mapping[str, Runner], str], dict[str, dict[str, Any]]]
"""Runs the parity procedure on runners, in a precision; returns figures by graph, raises ParityError."""
KeptByGraph = Mapping[str, Sequence[Kept]]

_log = logging.getLogger(__name__)

LEAST_SHARE = 0.5
"""Share of the products below which float16 gains nothing."""
SENSITIVE_SHARES = (0.125, 0.25, 0.45)
"""Shares of the products that stay because their rounding matters most, where the levels were not enough."""


def write_float16(
    folder: Path, specs: Sequence[GraphSpec], check: Check, keep_list: KeptByGraph | None = None
) -> dict[str, Any]:
    """Write the float16 file of every graph in `folder` beside its float32 file; return notes by file name.

    `keep_list` holds, by graph, the nodes that stay in float32, instead of the measured ones. Raises ExportError where
    fewer than half of the products could run in float16, ParityError where the masks moved too far.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        conversion = _Conversion(folder, Path(made), specs, check)
        if keep_list is not None:
            notes = conversion.attempt("as the keep-list says", conversion.completed(keep_list))
        else:
            notes = conversion.search()
        if notes is None:
            raise conversion.failure()
        return notes


def write_files(folder: Path, plan: ExportPlan, check: Check) -> dict[str, Any]:
    """Write the float16 files of `plan` as `write_float16` does, by its keep-list if it has one."""
    keep_list = None
    if plan.keep_list is not None and plan.keep_list.path is not None:
        try:
            data = read_json(Path(plan.keep_list.path))
        except ValueError as error:
            raise ExportError(
                f"the keep-list is no JSON ({error}); give the manifest.json of a float16 export"
            ) from error
        keep_list = read_keep_list(data, {graph: FP16.graph_file(graph) for graph in plan.graphs})
    return write_float16(folder, plan.specs, check, keep_list)


class _Conversion:
    """The graphs of one export on their way to float16, and why the last attempt failed."""

    def __init__(self, folder: Path, made: Path, specs: Sequence[GraphSpec], check: Check) -> None:
        self.folder, self.made, self.specs, self.check = folder, made, specs, check
        self.graphs = {spec.name: TypedGraph(onnx.load(folder / graph_file(spec.name, BASE.name))) for spec in specs}
        self.failed: ParityError | None = None
        self._first: dict[str, Mapping[str, Tensor]] = {}
        """The inputs of each graph's first run."""
        self._last: dict[str, Mapping[str, Tensor]] = {}
        """The inputs of the last run, where the gate failed, of each graph that it reached."""
        self._tried: list[dict[str, list[str]]] = []

    def search(self) -> dict[str, Any] | None:
        """Return the notes of the first attempt that passes, from fast to careful; None where none does."""
        ranges = self._measure()
        kept: KeptByGraph = {}
        for level in LEVELS:
            kept = {name: choose_kept(graph, ranges[name], level, self._found()) for name, graph in self.graphs.items()}
            if (notes := self.attempt(level.name, kept)) is not None:
                return notes
        effects = self._effects(kept)
        for share in SENSITIVE_SHARES:
            more = self._with_sensitive(kept, effects, share)
            notes = self.attempt(f"products alone, without the {share:.1%} that matter most", more)
            if notes is not None:
                return notes
        return None

    def completed(self, keep_list: KeptByGraph) -> KeptByGraph:
        """Return a given list with the nodes that stay by their kind, whatever it says."""
        full = {}
        for name, graph in self.graphs.items():
            given = {entry.node for entry in keep_list[name]}
            by_kind = [one for one in choose_kept(graph) if one.range is None and one.node not in given]
            full[name] = [*keep_list[name], *by_kind]
        return full

    def attempt(self, name: str, kept: KeptByGraph) -> dict[str, Any] | None:
        """Convert, and return the notes by file; None where the gate stayed shut, or was tried for this before."""
        nodes = {graph: sorted(entry.node for entry in entries) for graph, entries in kept.items()}
        if nodes in self._tried:
            return None
        self._tried.append(nodes)
        self._check_gain(kept)
        for spec in self.specs:
            model = convert_to_fp16(self.graphs[spec.name], nodes[spec.name])
            save_graph(model, self._file(spec, FP16.name), spec, folded=True)
        _log.info("float16, %s: emulated against PyTorch float32", name)
        try:
            figures = self._gate()
        except ParityError as error:
            _log.info("float16, %s: %s", name, error)
            self.failed = error
            return None
        return {
            graph_file(graph, FP16.name): {**notes_of(self.graphs[graph], list(entries), name), "gate": figures[graph]}
            for graph, entries in kept.items()
        }

    def failure(self) -> ParityError:
        """Return the last attempt's error, with the node to blame."""
        found = [
            first_offender(
                self._file(spec, BASE.name), self._file(spec, FP16.name), spec, self._last[spec.name], self.made
            )
            for spec in self.specs
            if spec.name in self._last
        ]
        blamed = [offender for offender in found if offender is not None]
        return ParityError(f"{self.failed}; {_worst(blamed)}" if blamed else str(self.failed))

    def _file(self, spec: GraphSpec, precision: str) -> Path:
        return self.folder / graph_file(spec.name, precision)

    def _found(self) -> str:
        """Return what the last gate found, without what was needed and what to do."""
        return str(self.failed or "").split(", needed")[0].split("; ")[0]

    def _measure(self) -> dict[str, Ranges]:
        """Return what every tensor of the float32 graphs reached along the procedure."""
        _log.info("float16: ranges of every tensor, along the float32 graphs")
        with ExitStack() as stack:
            runners = {
                spec.name: stack.enter_context(RangeRunner(self._file(spec, BASE.name), spec, self.made))
                for spec in self.specs
            }
            self.check(runners, BASE.name)
            self._first = {name: runner.first for name, runner in runners.items()}
            return {name: runner.ranges for name, runner in runners.items()}

    def _gate(self) -> dict[str, dict[str, Any]]:
        """Return the figures of the emulated float16 files; raises ParityError, and keeps the inputs of that moment."""
        with ExitStack() as stack:
            runners = {
                spec.name: stack.enter_context(EmulatedRunner(self._file(spec, FP16.name), spec, self.made))
                for spec in self.specs
            }
            try:
                return self.check(runners, FP16.name)
            except ParityError:
                self._last = {name: runner.last for name, runner in runners.items() if runner.last is not None}
                raise

    def _effects(self, kept: KeptByGraph) -> dict[str, dict[str, float]]:
        """Return, by graph, how far rounding each product that is not `kept` moves the outputs."""
        _log.info("float16: which products' rounding matters most")
        effects = {}
        for spec in self.specs:
            stays = {entry.node for entry in kept[spec.name]}
            products = [n.name for n in self.graphs[spec.name].nodes if n.op_type in PRODUCTS and n.name not in stays]
            inputs = self._last.get(spec.name, self._first[spec.name])
            effects[spec.name] = measure_effects(self._file(spec, BASE.name), spec, products, inputs, self.made)
        return effects

    def _with_sensitive(self, kept: KeptByGraph, effects: dict[str, dict[str, float]], share: float) -> KeptByGraph:
        """Return `kept` and, of each graph, that share of its products whose effect is largest."""
        more = {}
        for name, graph in self.graphs.items():
            ranked = sorted(effects[name].items(), key=lambda one: -one[1])
            count = int(share * count_products(graph, [])[0])
            ops = {node.name: node.op_type for node in graph.nodes}
            reason = f"the gate: among the products whose rounding moves the output most; {self._found()}"
            more[name] = [*kept[name], *(Kept(node, ops[node], reason) for node, _ in ranked[:count])]
        return more

    def _check_gain(self, kept: KeptByGraph) -> None:
        counts = [count_products(graph, (entry.node for entry in kept[name])) for name, graph in self.graphs.items()]
        products, in_half = (sum(column) for column in zip(*counts, strict=True))
        if in_half < LEAST_SHARE * products:
            reasons = [entry.reason for entries in kept.values() for entry in entries if entry.op in PRODUCTS]
            common = max(set(reasons), key=reasons.count)
            raise ExportError(
                f"float16 gains nothing here: {products - in_half} of {products} matrix products and convolutions have "
                f"to stay in float32 (most often: {common}); export without {{{FP16.name}}}, or look at these weights",
                options=(FP16.name,),
            )


def _worst(offenders: Sequence[Offender]) -> Offender:
    """Return the one to blame: the first that overflowed, else the first beyond its tolerance, else the worst."""
    serious = [one for one in offenders if one.is_overflow] or [one for one in offenders if one.is_beyond]
    return serious[0] if serious else max(offenders, key=lambda one: one.error)
