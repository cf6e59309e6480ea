"""Rows of `sam-bench latency` about graphs: each file of an export beside its baselines, by turns, in one process.

Before anything is timed, its outputs are compared with PyTorch eager's on the same inputs: the time of something that
computes another thing is an error, and no figure. The inputs are seeded, and the embedding is the export's own. On a
CUDA device the TensorRT engines of the export take turns, too, with embeddings of their own encoder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from samkit.benchmarks.latency.baselines import (
    BFLOAT16,
    STAYING,
    Run,
    as_arrays,
    finished,
    forget_compiled,
    torch_precision,
    torch_run,
    write_official,
)
from samkit.benchmarks.latency.candidates import attempt, candidates, identity_of, lack_of, note_on
from samkit.benchmarks.latency.settings import BASELINES, EAGER, NO_FOLD, LatencySettings
from samkit.benchmarks.measure.graph_work import count_flops, seeded_inputs
from samkit.benchmarks.measure.machine import PRODUCT_GFLOP, Machine
from samkit.benchmarks.measure.originals import original_network
from samkit.benchmarks.measure.processes import measure_memory
from samkit.benchmarks.measure.turns import several, take_turns
from samkit.benchmarks.record.rows import Absent, Identity, LatencyRow, Times
from samkit.benchmarks.record.statistics import significant
from samkit.export.parity import output_error
from samkit.manifest import Export
from samkit.methods import GraphSpec
from samkit.precisions import BASE, PRECISIONS
from samkit.runtime.backends import DEFAULT, Variant, open_runners
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.runner import Closing, Runner
from samkit.runtime.loops.refinement import encode_image
from samkit.tensors import Tensor, on_host

TURN_SECONDS = 0.15
"""About how long one backend runs before the next one's turn."""
LARGEST_ERROR = {BFLOAT16: 0.3} | {precision.name: precision.rounding for precision in PRECISIONS}
"""Relative difference of an output from PyTorch eager's, norm over norm, up to which it is rounding. It is no judgement
of accuracy, for which there is `sam-bench accuracy`: whoever computes something else is off by about 1."""
LIMIT = "float32 matrix product"
"""What `limit_share` is a share of, whatever a backend computes in: half precision on a GPU may pass it."""


@dataclass(frozen=True)
class GraphWork:
    """One graph at one size, and the graph of upstream's formulation that does the same."""

    graph: GraphSpec
    official: GraphSpec
    rows: int
    points: int | None
    """Of each row; None where the graph takes none."""
    inputs: Mapping[str, Tensor]
    """Of both graphs; embeddings lie where the export's own runners keep them."""

    @property
    def official_inputs(self) -> dict[str, np.ndarray]:
        """Return what upstream's graph is given, on the host."""
        return {tensor.name: on_host(self.inputs[tensor.name]) for tensor in self.official.inputs}


@dataclass(frozen=True)
class TimedGraph:
    """One that takes turns: a candidate or a baseline."""

    identity: Identity
    graph: GraphSpec
    """What it runs: the export's graph, or the official one."""
    open: Callable[[], Run]
    is_folded: bool
    path: Path | None = None
    """Its ONNX file, if it has one; it may not be there before it is opened."""
    note: str | None = None


class GraphTimer(Closing):
    """The graphs of one export, with their baselines."""

    def __init__(
        self, export: Export, machine: Machine, settings: LatencySettings, *, binds: bool | None = None
    ) -> None:
        """Open the export's float32 files and its original, on `machine`'s device with its threads; `binds` as
        OnnxRuntimeRunner has it. Raises ManifestError, and MissingDependencyError without PyTorch or the device.
        """
        self._export, self._machine, self._settings, self._binds = export, machine, settings, binds
        self._warnings: dict[str, tuple[str, ...]] = {}  # by backend
        self._encoded: dict[tuple[Variant, int], dict[str, Tensor]] = {}
        self._graphs = {graph.name: graph for graph in export.graphs}
        self._gflop = cache(self._count)
        self._ours = Variant(DEFAULT.name, BASE.name, machine.device)
        with ExitStack() as stack:
            self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._network = original_network(export.plan, device=machine.device, threads=machine.threads)
            self._runners: dict[Variant, Mapping[str, Runner]] = {
                self._ours: {s.name: self._open(export.path(s.name, BASE.name), s, stack) for s in export.specs}
            }
            """Whole exports, for the embeddings."""
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Let go of runners and scratch files."""
        self._stack.close()

    def rows(self) -> Iterator[LatencyRow | Absent]:
        """Yield the rows of the graphs that are asked for, for each number of rows and points."""
        for spec in self._export.specs:
            if self._settings.graphs and spec.name not in self._settings.graphs:
                continue
            axes = {axis.name: axis for tensor in spec.inputs for axis in tensor.axes}
            for rows in self._settings.batches:
                for points in self._settings.points if "points" in axes else (None,):
                    asked = {"batch": rows, "points": points}
                    refused = [axes[name] for name, size in asked.items() if size and not axes[name].takes(size)]
                    if refused:
                        identity = self._identity(self._ours, GraphWork(spec, spec, rows, points, {}))
                        yield Absent("latency", identity, f"the graph takes {refused[0].to_text()}", is_failure=False)
                    else:
                        yield from self._measure(self._work(spec, rows, points))

    def _measure(self, work: GraphWork) -> Iterator[LatencyRow | Absent]:
        eager = torch_run(self._network, work.official, work.official_inputs, device=self._machine.device)
        expected = as_arrays(eager())
        with ExitStack() as opened:
            found = [*self._candidates(work, opened), *self._baselines(work, opened)]
            entries = [entry for entry in found if isinstance(entry, TimedGraph)]
            held = {entry.identity: attempt(entry.identity, partial(_held_to, expected, entry)) for entry in entries}
            runs = {identity: each[0] for identity, each in held.items() if not isinstance(each, Absent)}
            first = len(self._machine.products)
            turns = {identity: several(run, TURN_SECONDS) for identity, run in runs.items()}
            seconds = take_turns(turns, self._settings.rounds, before=self._machine.sample)
            rate = PRODUCT_GFLOP / float(np.median(self._machine.products[first:]))
            for entry in entries:
                each = held[entry.identity]
                if isinstance(each, Absent):
                    yield each
                else:
                    yield self._row(work, entry, each[1], seconds[entry.identity], rate)
            yield from (row for row in found if isinstance(row, Absent))
        forget_compiled()

    # --- The work and who does it ---

    def _work(self, spec: GraphSpec, rows: int, points: int | None) -> GraphWork:
        official = self._graphs[spec.official]
        inputs: dict[str, Tensor] = {}
        for graph in (official, spec):
            has_mask = spec.official == spec.name  # what does another's work stands for an answer without a mask
            inputs |= seeded_inputs(graph, self._export.config, rows=rows, points=points or 1, has_mask=has_mask)
        return GraphWork(spec, official, rows, points, inputs | self._embeddings(self._ours, inputs))

    def _embeddings(self, one: Variant, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of `inputs` that an encoder makes, for as many images, by the runners of one."""
        if not STAYING & inputs.keys():
            return {}
        images = int(inputs["image_embeddings"].shape[0])
        if (one, images) not in self._encoded:
            runners = self._runners[one]
            image = seeded_inputs(runners["image_encoder"].graph, self._export.config, rows=images)["image"]
            self._encoded[one, images] = encode_image(runners, image)
        return {tensor: value for tensor, value in self._encoded[one, images].items() if tensor in inputs}

    def _candidates(self, work: GraphWork, opened: ExitStack) -> Iterator[TimedGraph | Absent]:
        """Yield what was exported of the graph; `opened` closes what is opened for it alone."""
        for one in candidates(self._export, self._settings):
            identity = self._identity(one, work)
            if (lack := lack_of(self._export, one)) is not None:
                yield Absent("latency", identity, lack, is_failure=False)
                continue
            path = self._export.path(work.graph.name, one.precision) if one.backend == DEFAULT.name else None
            opens = partial(self._on_backend, work, one)
            if path is not None and one not in self._runners:  # what gives the embeddings is open
                opens = partial(self._on_file, work.graph, path, work, opened)
            yield TimedGraph(identity, work.graph, opens, self._export.plan.folded, path, note_on(one))
        for precision in PRECISIONS:
            one = replace(self._ours, precision=precision.name)
            if precision.name not in self._export.plan.precisions:
                yield Absent("latency", self._identity(one, work), str(lack_of(self._export, one)), is_failure=False)

    def _baselines(self, work: GraphWork, opened: ExitStack) -> Iterator[TimedGraph | Absent]:
        """Yield what runs upstream's formulation; `opened` closes what is opened for this graph alone."""
        device = self._machine.device
        for name in (name for name in BASELINES if name in self._settings.baselines):
            identity = self._identity(Variant(name, torch_precision(name, device), device), work)
            if name != NO_FOLD:
                opens = partial(torch_run, self._network, work.official, work.official_inputs, name, device)
                yield TimedGraph(identity, work.official, opens, is_folded=False)
            elif work.official.is_rewrite:
                lack = f"--no-fold has no {work.graph.name}: its mask_decoder does that work"
                yield Absent("latency", identity, lack, is_failure=False)
            else:
                path = self._scratch / f"{work.official.name}.onnx"
                opens = partial(self._on_file, work.official, path, work, opened)
                yield TimedGraph(identity, work.official, opens, is_folded=False, path=path)

    def _identity(self, one: Variant, work: GraphWork) -> Identity:
        size = {"batch": work.rows, "points": work.points}
        return identity_of(self._export, one, self._machine.threads, graph=work.graph.name, **size)

    # --- Runs ---

    def _on_file(self, graph: GraphSpec, path: Path, work: GraphWork, opened: ExitStack) -> Run:
        """Return a run of a file in ONNX Runtime; what `--no-fold` would export is written first."""
        if not path.exists():
            write_official(self._network, graph, path)
        return _run(self._open(path, graph, opened), work.inputs, self._machine.device)

    def _on_backend(self, work: GraphWork, one: Variant) -> Run:
        """Return a run on a backend that has opened the whole export, on embeddings in its own memory."""
        if one not in self._runners:
            self._runners[one], self._warnings[one.backend] = open_runners(self._export, one)
            for runner in self._runners[one].values():
                self._stack.callback(runner.close)
        inputs = {**work.inputs, **self._embeddings(one, work.inputs)}
        return _run(self._runners[one][work.graph.name], inputs, self._machine.device)

    def _open(self, path: Path, spec: GraphSpec, stack: ExitStack) -> OnnxRuntimeRunner:
        device = self._machine.device
        threads = self._machine.threads if device == "cpu" else None
        return stack.enter_context(OnnxRuntimeRunner(path, spec, device=device, threads=threads, binds=self._binds))

    # --- Rows ---

    def _row(
        self, work: GraphWork, entry: TimedGraph, error: float, turns: Sequence[Sequence[float]], rate: float
    ) -> LatencyRow:
        """Return the row of one that was timed; `rate` is the matrix product's [GFLOP/s]."""
        times = Times.of(chain.from_iterable(turns))
        gflop = self._gflop(entry.graph.name, entry.is_folded, work.rows, work.points or 1)
        memory: dict[str, Any] = {}
        if "memory" in self._settings.parts and entry.path is not None and self._machine.device == "cpu":
            inputs = {tensor.name: on_host(work.inputs[tensor.name]) for tensor in entry.graph.inputs}
            memory = measure_memory(entry.path, inputs, self._machine.threads)
        return LatencyRow(
            entry.identity,
            times,
            relative_error=significant(error, 3),
            official=None if entry.graph.name == work.graph.name else entry.graph.name,
            turns=len(turns),
            gflop=significant(gflop),
            limit_share=significant(1e3 * gflop / times.p50_ms / rate, 4),
            limit=LIMIT,
            note="; ".join(self._warnings.get(entry.identity.backend, ())) or entry.note,
            **memory,
        )

    def _count(self, graph: str, folded: bool, rows: int, points: int) -> float:
        export = self._export
        return count_flops(export.method, export.config, self._graphs[graph], folded=folded, rows=rows, points=points)


def _held_to(expected: Mapping[str, np.ndarray], entry: TimedGraph) -> tuple[Run, float] | Absent:
    """Return the run of one that computes `expected`, and how far it is from that; else the row that says so."""
    run = entry.open()
    found = expected if entry.identity.backend == EAGER else as_arrays(run())
    errors = {name: output_error(name, found[name], expected[name]) for name in expected}
    most = LARGEST_ERROR[entry.identity.precision]
    for name, error in errors.items():
        if not error <= most:  # `not <=`, because nan must fail
            fault = (
                f"it computes something else: {name} is {error:.1e} from PyTorch eager's, and rounding is at most "
                f"{most:g}; find out why with sam-bench accuracy"
            )
            return Absent("latency", entry.identity, fault, is_failure=True)
    return run, max(errors.values())


def _run(runner: Runner, inputs: Mapping[str, Tensor], device: str) -> Run:
    """Return a run of one file or engine on those of `inputs` that it takes."""
    own = {tensor.name: inputs[tensor.name] for tensor in runner.graph.inputs}
    stay = [tensor.name for tensor in runner.graph.outputs if tensor.name in STAYING]
    return finished(lambda: dict(runner.run_keeping(own, stay)), device)
