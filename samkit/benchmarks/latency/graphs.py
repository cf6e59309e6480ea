"""Rows of `sam-bench latency` about graphs: each file of an export beside its rivals, by turns, in one process.

Before anything is timed, its outputs are compared with PyTorch eager's on the same inputs: the time of something that
computes another thing is an error, and no figure. The inputs are seeded, and the embedding is the export's own. On a
CUDA device the TensorRT engines of the export take turns, too, with embeddings of their own encoder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samkit.benchmarks.latency.baselines import (
    EAGER,
    NO_FOLD,
    RIVALS,
    STAYING,
    Run,
    as_arrays,
    finished,
    forget_compiled,
    missing_engine,
    torch_precision,
    torch_run,
    write_official,
)
from samkit.benchmarks.measure.flops import count_flops
from samkit.benchmarks.measure.machine import Machine, MatrixProduct
from samkit.benchmarks.measure.memory import measure_memory
from samkit.benchmarks.measure.originals import original_network
from samkit.benchmarks.measure.seeded_inputs import seeded_inputs
from samkit.benchmarks.measure.turns import several, take_turns
from samkit.benchmarks.record.run import Row
from samkit.benchmarks.record.statistics import percentiles, significant
from samkit.errors import MissingDependencyError
from samkit.export.parity import output_error
from samkit.manifest import Export, Manifest
from samkit.methods import GraphSpec
from samkit.precisions import PRECISIONS
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.runner import Closing, Runner
from samkit.runtime.loops.refinement import encode_image
from samkit.runtime.session.volume_session import TENSORRT, open_runners
from samkit.tensors import Tensor, on_host

TURN_SECONDS = 0.15
"""About how long one backend runs before the next one's turn."""
LARGEST_ERROR = {"bf16": 0.3} | {precision.name: precision.rounding for precision in PRECISIONS}
"""Relative difference of an output from PyTorch eager's, norm over norm, up to which it is rounding. It is no judgement
of accuracy, for which there is `sam-bench accuracy`: whoever feeds or computes something else is off by about 1."""
LIMIT = "float32 matrix product"
"""What `limit_share` is a share of, whatever a backend computes in: half precision on a GPU may pass it."""
OURS = ("onnxruntime", "fp32")
CPU_FLOAT16 = "a CPU computes float16 through float32; a GPU does not"


@dataclass(frozen=True)
class _Entrant:
    """One that takes turns."""

    backend: str
    precision: str
    graph: GraphSpec
    """What it runs: the export's graph, or the official one that does the same work."""
    prepare: Callable[[], Run]
    """Opens it."""
    path: Path | None = None
    """Its ONNX file, if it has one; it may not be there before `prepare`."""

    @property
    def key(self) -> str:
        return f"{self.backend} {self.precision}"


class GraphTimer(Closing):
    """The graphs of one export, with their rivals."""

    def __init__(
        self,
        folder: Path,
        *,
        rounds: int,
        machine: Machine,
        rivals: Collection[str] = RIVALS,
        memory: bool = True,
        binds: bool | None = None,
        engines: bool | None = None,
    ) -> None:
        """Open the export's float32 files, checked against the manifest, and its original, on `machine`'s device with
        its threads; `binds` as OnnxRuntimeRunner has it. `engines` says whether TensorRT's take part: by default
        where the device is CUDA. Raises ManifestError, and MissingDependencyError without PyTorch or the device.
        """
        self.manifest = Manifest.load(folder)
        self.manifest.verify(folder, engines=False)
        self._folder, self._rounds, self._machine = folder, rounds, machine
        self._rivals, self._memory, self._binds = rivals, memory, binds
        self._device, self._threads = machine.device, machine.threads
        self._engines = machine.device == "cuda" if engines is None else engines
        export = Export.of(folder, self.manifest)
        self._method, self._config = export.method, export.config
        self._encoded: dict[tuple[str, str, int], dict[str, Tensor]] = {}
        self._warnings: list[str] = []  # of TensorRT
        self._operations: dict[tuple[str, bool, int, int], float] = {}
        with ExitStack() as stack:
            self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._network = original_network(self.manifest.plan, device=self._device, threads=self._threads)
            self._runners: dict[tuple[str, str], dict[str, Runner]] = {
                OURS: {
                    spec.name: self._open(self.manifest.path(folder, spec.name, "fp32"), spec, stack)
                    for spec in self.manifest.plan.specs
                }
            }
            """Whole exports by backend and precision, for the embeddings."""
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Let go of runners and scratch files."""
        self._stack.close()

    def rows(
        self, graphs: Collection[str] | None, batches: Sequence[int] = (1,), points: Sequence[int] = (1,)
    ) -> Iterator[Row]:
        """Yield the rows of those of `graphs` that the export has (None: all), for each batch and number of points."""
        for spec in self.manifest.plan.specs:
            if graphs is not None and spec.name not in graphs:
                continue
            axes = {axis.name: axis for tensor in spec.inputs for axis in tensor.axes}
            for batch in batches:
                for count in points if "points" in axes else (None,):
                    asked = {"batch": batch, "points": count}
                    refused = [axes[name] for name, size in asked.items() if size and not axes[name].takes(size)]
                    if refused:
                        row = self._base(spec, batch, count) | _named(*OURS, self._device)
                        yield row | {"not_run": f"the graph takes {refused[0].to_text()}"}
                    else:
                        yield from self._measure(spec, batch, count)

    def _measure(self, spec: GraphSpec, batch: int, points: int | None) -> Iterator[Row]:
        feed = self._feed(spec, batch, points)
        with ExitStack() as opened:
            official = self._official(spec)
            eager = _torch_inputs(official, feed)
            expected = as_arrays(torch_run(self._network, official, eager, EAGER, self._device)())
            entrants = list(self._entrants(spec, feed, opened))
            runs, errors, absent = _held_to(expected, entrants)
            turns = {name: several(run, TURN_SECONDS) for name, run in runs.items()}
            first = len(self._machine.products)
            samples = take_turns(turns, self._rounds, before=self._machine.sample)
            rate = MatrixProduct.GFLOP / float(np.median(self._machine.products[first:]))
            for entrant in entrants:
                row = self._row(spec, entrant, batch, points)
                if entrant.key in absent:
                    yield row | absent[entrant.key]
                    continue
                row["relative_error"] = significant(errors[entrant.key], 3)
                row |= self._figures(entrant, samples[entrant.key], rate, batch, points or 1)
                if self._memory and entrant.path is not None and self._device == "cpu":
                    arrays = {tensor.name: on_host(feed[tensor.name]) for tensor in entrant.graph.inputs}
                    row |= measure_memory(entrant.path, arrays, self._threads)
                yield row
            for rival, why in self._missing(spec):
                yield self._base(spec, batch, points) | _named(*rival, self._device) | {"not_run": why}
        forget_compiled()

    # --- Inputs and entrants ---

    def _feed(self, spec: GraphSpec, batch: int, points: int | None) -> dict[str, Tensor]:
        """Return inputs for `spec` and for the official graph, embeddings where the export's own runners keep them."""
        has_mask = self._official(spec).name == spec.name  # mask_decoder_no_mask stands for an answer without one
        sizes = {"rows": batch, "points": points or 1}
        feed: dict[str, Tensor] = {}
        for graph in (self._official(spec), spec):
            feed |= seeded_inputs(graph, self._config, has_mask=has_mask, **sizes)
        return feed | self._embeddings(OURS, feed)

    def _embeddings(self, name: tuple[str, str], feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of `feed` that an encoder makes, for as many images, by the runners called `name`."""
        if not STAYING & feed.keys():
            return {}
        images = int(feed["image_embeddings"].shape[0])
        if (*name, images) not in self._encoded:
            runners = self._runners[name]
            image = seeded_inputs(runners["image_encoder"].graph, self._config, rows=images)["image"]
            self._encoded[*name, images] = encode_image(runners, image)
        return {tensor: value for tensor, value in self._encoded[*name, images].items() if tensor in feed}

    def _entrants(self, spec: GraphSpec, feed: Mapping[str, Tensor], opened: ExitStack) -> Iterator[_Entrant]:
        """Yield all that take part; `opened` closes what is opened for this graph alone."""
        official = self._official(spec)
        given = _torch_inputs(official, feed)

        def in_onnxruntime(path: Path, graph: GraphSpec) -> Run:
            return _graph_run(self._open(path, graph, opened), feed, self._device)

        def without_folding(path: Path) -> Run:
            if not path.exists():
                write_official(self._network, official, path)
            return in_onnxruntime(path, official)

        def in_torch(rival: str) -> Run:
            return torch_run(self._network, official, given, rival, self._device)

        for precision in self.manifest.plan.precisions:
            path = self.manifest.path(self._folder, spec.name, precision)
            opens = partial(in_onnxruntime, path, spec)
            if ("onnxruntime", precision) == OURS:
                opens = partial(_graph_run, self._runners[OURS][spec.name], feed, self._device)
            yield _Entrant("onnxruntime", precision, spec, opens, path)
        if NO_FOLD in self._rivals and not official.is_rewrite:
            path = self._scratch / f"{official.name}.onnx"
            yield _Entrant(NO_FOLD, "fp32", official, partial(without_folding, path), path)
        for rival in RIVALS:
            if rival in self._rivals and rival != NO_FOLD:
                yield _Entrant(rival, torch_precision(rival, self._device), official, partial(in_torch, rival))
        for precision in self.manifest.plan.precisions if self._engines else ():
            if missing_engine(self.manifest, precision) is None:
                yield _Entrant(TENSORRT, precision, spec, partial(self._on_engine, spec, feed, precision))

    def _on_engine(self, spec: GraphSpec, feed: Mapping[str, Tensor], precision: str) -> Run:
        """Return a run of an engine, on embeddings in its own memory."""
        name = (TENSORRT, precision)
        if name not in self._runners:
            self._runners[name], self._warnings = open_runners(
                self._folder, self.manifest, TENSORRT, "cuda", precision, None
            )
            for runner in self._runners[name].values():
                self._stack.callback(runner.close)
        return _graph_run(self._runners[name][spec.name], {**feed, **self._embeddings(name, feed)}, self._device)

    def _missing(self, spec: GraphSpec) -> Iterator[tuple[tuple[str, str], str]]:
        """Yield backend and precision of what can't take part, and why."""
        if self.manifest.plan.precision != "fp16":
            yield ("onnxruntime", "fp16"), "the export has no float16 files; export with --fp16"
        for precision in self.manifest.plan.precisions if self._engines else ():
            if (why := missing_engine(self.manifest, precision)) is not None:
                yield (TENSORRT, precision), why
        if NO_FOLD in self._rivals and self._official(spec).is_rewrite:
            yield (NO_FOLD, "fp32"), f"--no-fold has no {spec.name}: its mask_decoder does that work"

    def _official(self, spec: GraphSpec) -> GraphSpec:
        graphs = {graph.name: graph for graph in self._method.graphs(self._config)}
        return graphs[spec.official]

    def _open(self, path: Path, spec: GraphSpec, stack: ExitStack) -> OnnxRuntimeRunner:
        threads = self._threads if self._device == "cpu" else None
        runner = OnnxRuntimeRunner(path, spec, device=self._device, threads=threads, binds=self._binds)
        return stack.enter_context(runner)

    # --- Rows ---

    def _base(self, spec: GraphSpec, batch: int, points: int | None) -> Row:
        plan = self.manifest.plan
        return {
            "kind": "latency",
            "method": plan.method,
            "size": plan.size,
            "weights": plan.weights.kind,
            "manifest": self.manifest.digest,
            "graph": spec.name,
            "threads": self._threads,
            "batch": batch,
            "points": points,
            "identity": ["threads", "batch", "points"],
        }

    def _row(self, spec: GraphSpec, entrant: _Entrant, batch: int, points: int | None) -> Row:
        row = self._base(spec, batch, points) | _named(entrant.backend, entrant.precision, self._device)
        if entrant.graph.name != spec.name:
            row["official"] = entrant.graph.name
        if (entrant.backend, entrant.precision, self._device) == ("onnxruntime", "fp16", "cpu"):
            row["note"] = CPU_FLOAT16
        if entrant.backend == TENSORRT and self._warnings:
            row["note"] = "; ".join(self._warnings)
        return row

    def _figures(
        self, entrant: _Entrant, samples: Sequence[Sequence[float]], rate: float, batch: int, points: int
    ) -> dict[str, Any]:
        """Return what follows from the seconds of each turn's runs; `rate` [GFLOP/s] is the matrix product's."""
        milliseconds = [1e3 * second for turn in samples for second in turn]
        figures: dict[str, Any] = {
            "samples_ms": [significant(value) for value in milliseconds],
            "turns": len(samples),
            **percentiles(milliseconds),
        }
        folded = self.manifest.plan.folded and entrant.backend in ("onnxruntime", TENSORRT)
        gflop = self._count(entrant.graph, folded, batch, points)
        share = 1e3 * gflop / figures["p50_ms"] / rate
        return figures | {"gflop": significant(gflop), "limit_share": significant(share, 4), "limit": LIMIT}

    def _count(self, graph: GraphSpec, folded: bool, batch: int, points: int) -> float:
        """Return the GFLOP of one run; rivals share what was counted."""
        key = (graph.name, folded, batch, points)
        if key not in self._operations:
            counted = count_flops(self._method, self._config, graph, folded=folded, rows=batch, points=points)
            self._operations[key] = counted
        return self._operations[key]


def first_line(error: Exception) -> str:
    """Return what kind of error it is, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"


def _named(backend: str, precision: str, device: str) -> Row:
    return {"backend": backend, "precision": precision, "device": "cuda" if backend == TENSORRT else device}


def _held_to(
    expected: Mapping[str, np.ndarray], entrants: Sequence[_Entrant]
) -> tuple[dict[str, Run], dict[str, float], dict[str, dict[str, str]]]:
    """Return, by key, the run of each entrant that computes `expected`, how far it is from that, and for the others the
    row's `not_run` or `error`.
    """
    runs: dict[str, Run] = {}
    errors: dict[str, float] = {}
    absent: dict[str, dict[str, str]] = {}
    for entrant in entrants:
        try:
            run = entrant.prepare()
            found = expected if entrant.backend == EAGER else as_arrays(run())
        except MissingDependencyError as error:
            absent[entrant.key] = {"not_run": str(error)}
            continue
        except Exception as error:  # PyTorch's compiler, ONNX Runtime and TensorRT share no other base
            absent[entrant.key] = {"error": first_line(error)}
            continue
        differences = {name: output_error(name, found[name], expected[name]) for name in expected}
        if (fault := find_difference(differences, entrant.precision)) is not None:
            absent[entrant.key] = {"error": fault}
            continue
        runs[entrant.key], errors[entrant.key] = run, max(differences.values())
    return runs, errors, absent


def find_difference(errors: Mapping[str, float], precision: str) -> str | None:
    """Return a sentence where an output differs from PyTorch eager's by more than rounding; None where none does."""
    for name, error in errors.items():
        if not error <= LARGEST_ERROR[precision]:  # `not <=`, because nan must fail
            return (
                f"it computes something else: {name} is {error:.1e} from PyTorch eager's, and rounding is at most "
                f"{LARGEST_ERROR[precision]:g}; find out why with sam-bench accuracy"
            )
    return None


def _graph_run(runner: Runner, feed: Mapping[str, Tensor], device: str) -> Run:
    """Return a run of one file or engine on those of `feed` that it takes."""
    own = {tensor.name: feed[tensor.name] for tensor in runner.graph.inputs}
    stay = [tensor.name for tensor in runner.graph.outputs if tensor.name in STAYING]
    return finished(lambda: dict(runner.run_keeping(own, stay)), device)


def _torch_inputs(official: GraphSpec, feed: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {tensor.name: on_host(feed[tensor.name]) for tensor in official.inputs}
