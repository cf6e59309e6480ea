"""Rows of `sam-bench latency` about graphs: each file of an export beside its rivals, by turns, in one process.

Before anything is timed, its outputs are compared with PyTorch eager's on the same inputs: the time of something that
computes another thing is an error, and no figure. The inputs are seeded, and the embedding is the export's own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samkit.benchmarks.feeds import seeded_inputs
from samkit.benchmarks.flops import count_flops
from samkit.benchmarks.machine import Machine, MatrixProduct
from samkit.benchmarks.memory import measure_memory
from samkit.benchmarks.originals import original_network
from samkit.benchmarks.rivals import (
    COMPILE,
    EAGER,
    NO_FOLD,
    OFFICIAL,
    RIVALS,
    STAYING,
    Run,
    as_arrays,
    finished,
    forget_compiled,
    torch_precision,
    torch_run,
    write_official,
)
from samkit.benchmarks.run_file import Row
from samkit.benchmarks.statistics import percentiles, significant
from samkit.benchmarks.turns import Turns
from samkit.export.parity import output_error
from samkit.manifest import Manifest
from samkit.methods import GraphSpec, get_method
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.refinement import encode_image
from samkit.runtime.runner import Closing, Runner
from samkit.tensors import Tensor, on_host

TURN_SECONDS = 0.15
"""About how long one backend runs before the next one's turn."""
LARGEST_ERROR = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.3}
"""Relative difference of an output from PyTorch eager's, norm over norm, up to which it is rounding. It is no judgement
of accuracy, for which there is `sam-bench accuracy`: whoever feeds or computes something else is off by about 1."""
CPU_FLOAT16 = "a CPU computes float16 through float32; a GPU does not"


@dataclass(frozen=True)
class _Entrant:
    """One that takes turns."""

    backend: str
    precision: str
    graph: GraphSpec
    """What it runs: the export's graph, or the official one that does the same work."""
    run: Run
    path: Path | None = None
    """Its ONNX file."""

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
    ) -> None:
        """Open the export's float32 files, checked against the manifest, and its original, on `machine`'s device with
        its threads; `binds` as OnnxRuntimeRunner has it. Raises ManifestError, and MissingDependencyError without
        PyTorch or the device.
        """
        self.manifest = Manifest.load(folder)
        self.manifest.verify(folder, engines=False)
        self._folder, self._rounds, self._machine = folder, rounds, machine
        self._rivals, self._memory, self._binds = rivals, memory, binds
        self._device, self._threads = machine.device, machine.threads
        with ExitStack() as stack:
            self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self._network = original_network(self.manifest.plan, device=self._device, threads=self._threads)
            self._runners: dict[str, Runner] = {
                spec.name: self._open(self.manifest.path(folder, spec.name, "fp32"), spec, stack)
                for spec in self.manifest.plan.specs
            }
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
                        row = self._base(spec, batch, count) | {"backend": "onnxruntime", "precision": "fp32"}
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
            errors: dict[str, dict[str, float]] = {}
            faults: dict[str, str] = {}
            for entrant in entrants:
                try:
                    found = expected if entrant.backend == EAGER else as_arrays(entrant.run())
                except RuntimeError as error:  # torch.compile's own errors, and those of the compiler that it calls
                    if entrant.backend != COMPILE:
                        raise
                    faults[entrant.key] = (
                        f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"
                    )
                    continue
                errors[entrant.key] = {name: output_error(name, found[name], expected[name]) for name in expected}
                if (fault := find_difference(errors[entrant.key], entrant.precision)) is not None:
                    faults[entrant.key] = fault
            turns = Turns({e.key: e.run for e in entrants if e.key not in faults}, TURN_SECONDS)
            first = len(self._machine.products)
            for _ in range(self._rounds):
                self._machine.sample()
                turns.take()
            rate = MatrixProduct.GFLOP / float(np.median(self._machine.products[first:]))
            for entrant in entrants:
                row = self._row(spec, entrant, batch, points)
                if entrant.key in faults:
                    yield row | {"error": faults[entrant.key]}
                    continue
                row["relative_error"] = significant(max(errors[entrant.key].values()), 3)
                row |= self._figures(entrant, turns.samples[entrant.key], rate, batch, points or 1)
                if self._memory and entrant.path is not None and self._device == "cpu":
                    arrays = {tensor.name: on_host(feed[tensor.name]) for tensor in entrant.graph.inputs}
                    row |= measure_memory(entrant.path, arrays, self._threads)
                yield row
            for rival, why in self._missing(spec):
                yield self._base(spec, batch, points) | {"backend": rival[0], "precision": rival[1], "not_run": why}
        forget_compiled()

    # --- Inputs and entrants ---

    def _feed(self, spec: GraphSpec, batch: int, points: int | None) -> dict[str, Tensor]:
        """Return inputs for `spec` and for the official graph, embeddings where the export's own runners keep them."""
        plan = self.manifest.plan
        has_mask = self._official(spec).name == spec.name  # mask_decoder_no_mask stands for an answer without one
        sizes = {"rows": batch, "points": points or 1}
        feed: dict[str, Tensor] = {}
        for graph in (self._official(spec), spec):
            feed |= seeded_inputs(graph, plan.config, has_mask=has_mask, **sizes)
        if STAYING & feed.keys():
            images = int(feed["image_embeddings"].shape[0])
            image = seeded_inputs(self._runners["image_encoder"].graph, plan.config, rows=images)["image"]
            kept = encode_image(self._runners, image)
            feed |= {name: kept[name] for name in kept if name in feed}
        return feed

    def _entrants(self, spec: GraphSpec, feed: Mapping[str, Tensor], opened: ExitStack) -> Iterator[_Entrant]:
        plan = self.manifest.plan
        runners = {"fp32": self._runners[spec.name]}
        if plan.precision == "fp16":
            path = self.manifest.path(self._folder, spec.name, "fp16")
            runners["fp16"] = self._open(path, spec, opened)
        for precision, runner in runners.items():
            path = self.manifest.path(self._folder, spec.name, precision)
            yield _Entrant("onnxruntime", precision, spec, _onnx_run(runner, feed, self._device), path)
        official = self._official(spec)
        if NO_FOLD in self._rivals and not official.is_rewrite:
            path = self._no_fold_file(official)
            runner = self._open(path, official, opened)
            yield _Entrant(NO_FOLD, "fp32", official, _onnx_run(runner, feed, self._device), path)
        for rival in RIVALS:
            if rival in self._rivals and rival != NO_FOLD:
                run = torch_run(self._network, official, _torch_inputs(official, feed), rival, self._device)
                yield _Entrant(rival, torch_precision(rival, self._device), official, run)

    def _missing(self, spec: GraphSpec) -> Iterator[tuple[tuple[str, str], str]]:
        """Yield backend and precision of what can't take part, and why."""
        if self.manifest.plan.precision != "fp16":
            yield ("onnxruntime", "fp16"), "the export has no float16 files; export with --fp16"
        if NO_FOLD in self._rivals and self._official(spec).is_rewrite:
            yield (NO_FOLD, "fp32"), f"--no-fold has no {spec.name}: its mask_decoder does that work"

    def _official(self, spec: GraphSpec) -> GraphSpec:
        plan = self.manifest.plan
        graphs = {graph.name: graph for graph in get_method(plan.method).graphs(plan.config)}
        return graphs[OFFICIAL.get(spec.name, spec.name)]

    def _no_fold_file(self, official: GraphSpec) -> Path:
        path = self._scratch / f"{official.name}.onnx"
        if not path.exists():
            write_official(self._network, official, path)
        return path

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
            "device": self._device,
            "threads": self._threads,
            "batch": batch,
            "points": points,
            "identity": ["threads", "batch", "points"],
        }

    def _row(self, spec: GraphSpec, entrant: _Entrant, batch: int, points: int | None) -> Row:
        row = self._base(spec, batch, points) | {"backend": entrant.backend, "precision": entrant.precision}
        if entrant.graph.name != spec.name:
            row["official"] = entrant.graph.name
        if (entrant.backend, entrant.precision, self._device) == ("onnxruntime", "fp16", "cpu"):
            row["note"] = CPU_FLOAT16
        return row

    def _figures(
        self, entrant: _Entrant, samples: Sequence[Sequence[float]], rate: float, batch: int, points: int
    ) -> dict[str, Any]:
        """Return what follows from the seconds of each turn's runs; `rate` [GFLOP/s] is the matrix product's."""
        plan = self.manifest.plan
        if plan.config is None:
            return {}
        milliseconds = [1e3 * second for turn in samples for second in turn]
        figures: dict[str, Any] = {
            "samples_ms": [significant(value) for value in milliseconds],
            "turns": len(samples),
            **percentiles(milliseconds),
        }
        folded = entrant.backend == "onnxruntime" and plan.folded
        gflop = count_flops(
            get_method(plan.method), plan.config, entrant.graph, folded=folded, rows=batch, points=points
        )
        share = 1e3 * gflop / figures["p50_ms"] / rate
        return figures | {
            "gflop": significant(gflop), "limit_share": significant(share, 4), "limit": "matrix product"
        }  # fmt: skip


def find_difference(errors: Mapping[str, float], precision: str) -> str | None:
    """Return a sentence where an output differs from PyTorch eager's by more than rounding; None where none does."""
    for name, error in errors.items():
        if not error <= LARGEST_ERROR[precision]:  # `not <=`, because nan must fail
            return (
                f"it computes something else: {name} is {error:.1e} from PyTorch eager's, and rounding is at most "
                f"{LARGEST_ERROR[precision]:g}; find out why with sam-bench accuracy"
            )
    return None


def _onnx_run(runner: Runner, feed: Mapping[str, Tensor], device: str) -> Run:
    """Return a run of one file on those of `feed` that it takes."""
    own = {tensor.name: feed[tensor.name] for tensor in runner.graph.inputs}
    stay = [tensor.name for tensor in runner.graph.outputs if tensor.name in STAYING]
    return finished(lambda: dict(runner.run_keeping(own, stay)), device)


def _torch_inputs(official: GraphSpec, feed: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {tensor.name: on_host(feed[tensor.name]) for tensor in official.inputs}
