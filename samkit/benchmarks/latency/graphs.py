"""Rows of `sam-bench latency` about graphs: each file of an export beside its baselines, by turns, in one process.

Before anything is timed, its outputs are compared with PyTorch eager's on the same inputs: the time of something that
computes another thing is an error, and no figure. The inputs are seeded, and the embedding is the export's own. On a
CUDA device the engines of the export take turns, too, with embeddings of their own encoder.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np

from samkit.benchmarks.latency.candidates import (
    BFLOAT16,
    STAYING,
    Run,
    as_arrays,
    attempt,
    baseline,
    candidates,
    finished,
    note_on,
    torch_run,
)
from samkit.benchmarks.latency.settings import BASELINES, EAGER, NO_FOLD, LatencySettings
from samkit.benchmarks.measure.graph_work import count_flops, seeded_inputs
from samkit.benchmarks.measure.machine import PRODUCT_GFLOP, Machine
from samkit.benchmarks.measure.originals import original_network
from samkit.benchmarks.measure.processes import measure_memory
from samkit.benchmarks.measure.turns import several, take_turns
from samkit.benchmarks.record.rows import Absent, Identity, LatencyRow, Times
from samkit.benchmarks.record.statistics import significant
from samkit.errors import MissingDependencyError
from samkit.export.parity import output_error
from samkit.files import working_folder
from samkit.manifest import Export
from samkit.methods import GraphSpec
from samkit.precisions import BASE, PRECISIONS
from samkit.runtime.backends import DEFAULT, Variant, get_backend, open_runners
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.runner import Runner
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
    """One graph at one size, and the graph of upstream's formulation that does the same, which baselines run."""

    identity: Identity
    """Of the export's float32 file."""
    graph: GraphSpec
    official: GraphSpec
    inputs: Mapping[str, Tensor]
    """Of both graphs; embeddings lie where the export's own runners keep them."""

    def by(self, one: Variant) -> Identity:
        """Return the identity of the work, done by one."""
        return replace(self.identity, **asdict(one))

    def of(self, one: Variant) -> GraphSpec:
        """Return the graph that one runs."""
        return self.official if one.backend in BASELINES else self.graph

    def on_host(self, graph: GraphSpec) -> dict[str, np.ndarray]:
        """Return what one of the two graphs is given."""
        return {tensor.name: on_host(self.inputs[tensor.name]) for tensor in graph.inputs}


class GraphTimer:
    """The graphs of one export, with their baselines."""

    def __init__(self, export: Export, machine: Machine, settings: LatencySettings, held: ExitStack) -> None:
        """Open the export's float32 files and its original, on `machine`'s device with its threads, until `held` ends.

        Raises ManifestError, and MissingDependencyError without PyTorch or the device.
        """
        self._export, self._machine, self._settings, self._held = export, machine, settings, held
        self._warnings: dict[str, tuple[str, ...]] = {}  # by backend
        self._encoded: dict[tuple[Variant, int], dict[str, Tensor]] = {}
        self._graphs = {graph.name: graph for graph in export.graphs}
        self._gflop = cache(self._count)
        self._scratch = held.enter_context(working_folder())
        self._network = original_network(export.plan, device=machine.device, threads=machine.threads)
        threads = machine.threads if machine.device == "cpu" else None
        self._open = partial(OnnxRuntimeRunner, device=machine.device, threads=threads)
        self._ours = Variant(DEFAULT.name, BASE.name, machine.device)
        self._runners: dict[Variant, dict[str, Runner]] = {self._ours: {}}  # of whole exports, for the embeddings
        for spec in export.specs:
            runner = self._open(export.path(spec.name, BASE.name), spec)
            self._runners[self._ours][spec.name] = held.enter_context(runner)

    def rows(self) -> Iterator[LatencyRow | Absent]:
        """Yield the rows of the graphs that are asked for, for each number of rows and points."""
        ours = Identity.of(self._export.plan, self._export.digest, **asdict(self._ours), threads=self._machine.threads)
        for spec in self._export.specs:
            if self._settings.graphs and spec.name not in self._settings.graphs:
                continue
            axes = {axis.name: axis for tensor in spec.inputs for axis in tensor.axes}
            counts = self._settings.points if "points" in axes else (None,)
            for rows, points in product(self._settings.batches, counts):
                identity = replace(ours, graph=spec.name, batch=rows, points=points)
                sizes = {"batch": rows, "points": points}
                refused = [axes[name] for name, size in sizes.items() if size and not axes[name].takes(size)]
                if refused:
                    yield Absent("latency", identity, f"the graph takes {refused[0].to_text()}", is_failure=False)
                else:
                    yield from self._measure(self._work(identity, spec, rows, points))

    def _measure(self, work: GraphWork) -> Iterator[LatencyRow | Absent]:
        import torch

        expected = as_arrays(self._torch_run(work, EAGER)())
        with ExitStack() as opened:
            held = {
                one: attempt(work.by(one), partial(self._held_to, expected, work, one, opened))
                for one in self._variants
            }
            turns = {one: several(each[0], TURN_SECONDS) for one, each in held.items() if not isinstance(each, Absent)}
            first = len(self._machine.products)
            seconds = take_turns(turns, self._settings.rounds, before=self._machine.sample)
            rate = PRODUCT_GFLOP / float(np.median(self._machine.products[first:]))
            rows = [
                each if isinstance(each, Absent) else self._row(work, one, each[1], seconds[one], rate)
                for one, each in held.items()
            ]
        yield from sorted(rows, key=lambda row: isinstance(row, Absent) and not row.is_failure)
        # What torch.compile made goes: it keeps few forms of one function, and then quietly compiles no more
        torch.compiler.reset()
        gc.collect()

    # --- The work and who does it ---

    def _work(self, identity: Identity, spec: GraphSpec, rows: int, points: int | None) -> GraphWork:
        official = self._graphs[spec.official]
        inputs: dict[str, Tensor] = {}
        for graph in (official, spec):
            has_mask = spec.official == spec.name  # what does another's work stands for an answer without a mask
            inputs |= seeded_inputs(graph, self._export.config, rows=rows, points=points or 1, has_mask=has_mask)
        return GraphWork(identity, spec, official, inputs | self._embeddings(self._ours, inputs))

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

    @property
    def _variants(self) -> list[Variant]:
        """Return who takes turns, or says why not: what was exported, what was not, and the baselines."""
        device, plan = self._machine.device, self._export.plan
        lacking = [one.name for one in PRECISIONS if one.name not in plan.precisions]
        return [
            *candidates(self._export, self._settings),
            *(Variant(DEFAULT.name, precision, device) for precision in lacking),
            *(baseline(name, device) for name in BASELINES if name in self._settings.baselines),
        ]

    # --- Runs ---

    def _held_to(
        self, expected: Mapping[str, np.ndarray], work: GraphWork, one: Variant, opened: ExitStack
    ) -> tuple[Run, float] | Absent:
        """Return the run of one that computes `expected`, and how far it is from that; else the row that says so."""
        run = finished(self._open_run(work, one, opened), self._machine.device)
        found = expected if one.backend == EAGER else as_arrays(run())
        errors = {name: output_error(name, found[name], expected[name]) for name in expected}
        most = LARGEST_ERROR[one.precision]
        for name, error in errors.items():
            if not error <= most:  # `not <=`, because nan must fail
                fault = (
                    f"it computes something else: {name} is {error:.1e} from PyTorch eager's, and rounding is at most "
                    f"{most:g}; find out why with sam-bench accuracy"
                )
                return Absent("latency", work.by(one), fault, is_failure=True)
        return run, max(errors.values())

    def _open_run(self, work: GraphWork, one: Variant, opened: ExitStack) -> Run:
        """Return a run of the work by one; `opened` closes what is opened for it alone.

        Raises whatever its backend does, and MissingDependencyError with what the export lacks.
        """
        if one.backend in BASELINES and one.backend != NO_FOLD:
            return self._torch_run(work, one.backend)
        if one.backend == NO_FOLD and work.official.is_rewrite:
            raise MissingDependencyError(f"--no-fold has no {work.graph.name}: its mask_decoder does that work")
        if one.backend != NO_FOLD and (lack := get_backend(one.backend).missing(self._export, one.precision)):
            raise MissingDependencyError(lack)
        path = self._file(work, one)
        if path is not None and one != self._ours:
            return _run(opened.enter_context(self._open(path, work.of(one))), work.inputs)
        if one not in self._runners:
            self._runners[one], self._warnings[one.backend] = open_runners(self._export, one)
            for runner in self._runners[one].values():
                self._held.callback(runner.close)
        embeddings = self._embeddings(one, work.inputs)  # in its own memory
        return _run(self._runners[one][work.graph.name], {**work.inputs, **embeddings})

    def _torch_run(self, work: GraphWork, name: str) -> Run:
        return torch_run(self._network, work.official, work.on_host(work.official), name, self._machine.device)

    def _file(self, work: GraphWork, one: Variant) -> Path | None:
        """Return the ONNX file that one runs, if it runs any; what `--no-fold` would export is written first."""
        if one.backend != NO_FOLD:
            return self._export.path(work.graph.name, one.precision) if one.backend == DEFAULT.name else None
        from samkit.export.graphs import write_graph
        from samkit.export.plan import OPSET

        path = self._scratch / f"{work.official.name}.onnx"
        if not path.exists():
            write_graph(self._network, work.official, path, opset=OPSET, folded=False)
            gc.collect()  # the exporter's programs hold the network in cycles
        return path

    # --- Rows ---

    def _row(
        self, work: GraphWork, one: Variant, error: float, turns: Sequence[Sequence[float]], rate: float
    ) -> LatencyRow:
        """Return the row of one that was timed; `rate` is the matrix product's [GFLOP/s]."""
        identity, graph, path = work.by(one), work.of(one), self._file(work, one)
        times = Times.of(chain.from_iterable(turns))
        gflop = self._gflop(graph.name, one.backend in BASELINES, identity.batch, identity.points or 1)
        memory: dict[str, Any] = {}
        if "memory" in self._settings.parts and path is not None and self._machine.device == "cpu":
            memory = measure_memory(path, work.on_host(graph), self._machine.threads)
        return LatencyRow(
            identity,
            times,
            relative_error=significant(error, 3),
            official=None if graph.name == work.graph.name else graph.name,
            turns=len(turns),
            gflop=significant(gflop),
            limit_share=significant(1e3 * gflop / times.p50_ms / rate, 4),
            limit=LIMIT,
            note="; ".join(self._warnings.get(one.backend, ())) or note_on(one),
            **memory,
        )

    def _count(self, graph: str, is_official: bool, rows: int, points: int) -> float:
        export, folded = self._export, self._export.plan.folded and not is_official
        return count_flops(export.method, export.config, self._graphs[graph], folded=folded, rows=rows, points=points)


def _run(runner: Runner, inputs: Mapping[str, Tensor]) -> Run:
    """Return a run of one file or engine on those of `inputs` that it takes."""
    own = {tensor.name: inputs[tensor.name] for tensor in runner.graph.inputs}
    stay = [tensor.name for tensor in runner.graph.outputs if tensor.name in STAYING]
    return partial(runner.run_keeping, own, stay)
