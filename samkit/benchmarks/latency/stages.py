"""Rows of `sam-bench latency` about what a reader waits for, by backend, on a phantom that lies on disk as a scan does.

`load` opens an export; `encode` is the image encoder's part of the first click; `click` is a later one, until the whole
mask is there; `undo` takes one back; `end_to_end` opens, reads the scan, clicks and writes the mask, in a process that
has imported everything; `cold_start` is a new process until the first mask. Backends take turns, and the sessions that
are clicked in are warm. A method that looks by itself decides on the whole scan in `end_to_end`, whoever clicks.

The backends must come to the same mask; where one does not, or fails, its times are an error. On a CUDA device the
TensorRT engines of the export take turns, too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.cases.phantom_scans import phantom_cases
from samkit.benchmarks.cases.simulated_user import CENTRE, SimulatedUser, recipe_of, set_case
from samkit.benchmarks.latency.baselines import missing_engine
from samkit.benchmarks.latency.cold_start import ORIGINAL, measure_cold_start, open_reader
from samkit.benchmarks.latency.graphs import CPU_FLOAT16, first_line
from samkit.benchmarks.measure.machine import Machine
from samkit.benchmarks.measure.turns import seconds_of, take_turns
from samkit.benchmarks.record.run import Row
from samkit.benchmarks.record.statistics import percentiles, significant
from samkit.errors import MissingDependencyError, SamkitError
from samkit.geometry import Volume
from samkit.imageio.study import read_study
from samkit.imageio.writing import write_mask, write_volume
from samkit.manifest import ExportPlan, Manifest
from samkit.masks import dice
from samkit.methods import Method, SliceMethod, get_method
from samkit.prompts import FOREGROUND, Point
from samkit.runtime.session.base import Session
from samkit.runtime.session.volume_session import TENSORRT
from samkit.segment.segmenting import segment_study

Name: TypeAlias = tuple[str, str]
"""Backend and precision."""
STAGES = ("cold_start", "load", "encode", "click", "undo", "end_to_end")
CLICKS = 4
ALL = "all"
"""Stands for every stage."""
LEAST_DICE = 0.9
"""Of a mask with PyTorch's: less is another mask, and not rounding."""


@dataclass(frozen=True)
class Reading:
    """A phantom, where its files lie, and where a reader clicks: always on the same places, whatever the answer."""

    case: Case
    files: Mapping[str, Path]
    clicks: tuple[Point, ...]

    @classmethod
    def make(cls, plan: ExportPlan, folder: Path) -> Reading:
        """Write a phantom for the method of an export into `folder`."""
        method = get_method(plan.method)
        case = next(phantom_cases(method, plan.config, 1))
        files = {}
        for name, volume in case.volumes.items():
            files[name] = folder / f"{name or 'scan'}.nii.gz"
            write_volume(files[name], Volume(np.asarray(volume.array, np.float32), volume.affine))
        return cls(case, files, _clicks(case, method, plan))


def _clicks(case: Case, method: Method, plan: ExportPlan) -> tuple[Point, ...]:
    """Return CLICKS points in the target, spread over it evenly; none where the method takes none."""
    if isinstance(method, SliceMethod) and not method.prompts:
        return ()
    user = SimulatedUser.of(case, CENTRE, method, plan.config, recipe_of(method, plan.size))
    inside = np.argwhere(user.target)
    picked = inside[np.linspace(0, len(inside) - 1, CLICKS + 2).round().astype(int)[1:-1]]
    if user.slice is None:
        return tuple(Point((float(i), float(j), float(k)), FOREGROUND) for i, j, k in picked)
    return tuple(Point(user.slice.voxel(float(x), float(y)), FOREGROUND, user.structure) for y, x in picked)


@dataclass
class _Contender:
    """One backend, and what was measured of it."""

    name: Name
    folder: Path
    options: Mapping[str, Any]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """By stage."""
    peaks_mb: list[float] = field(default_factory=list)
    """Of each cold start's process."""
    absent: dict[str, dict[str, str]] = field(default_factory=dict)
    """By stage, the row's `not_run` or `error` where there are no times; ALL for every stage."""
    mask: np.ndarray | None = None
    session: Session | None = None

    def open(self) -> Session:
        return open_reader(self.folder, *self.name, **self.options)

    def warm(self, reading: Reading, opened: ExitStack) -> None:
        """Open a session, which `opened` closes, and click in it; notes what fails, and raises only for PyTorch."""
        try:
            session = self.open()
            opened.callback(session.close)
            self.mask = _visit(session, reading)[1]
        except MissingDependencyError as error:
            self.absent[ALL] = {"not_run": str(error)}
        except Exception as error:  # ONNX Runtime's and TensorRT's own share no other base
            if self.name[0] == ORIGINAL:
                raise
            self.absent[ALL] = {"error": first_line(error)}
        else:
            self.session = session

    def add(self, stages: Mapping[str, Sequence[float]]) -> None:
        for stage, seconds in stages.items():
            self.seconds.setdefault(stage, []).extend(seconds)

    def visit(self, reading: Reading, scratch: Path) -> None:
        if self.session is not None:
            self.add(_visit(self.session, reading)[0])
            self.add(_once(self.open, reading, scratch))

    def start_cold(self, reading: Reading) -> None:
        if "cold_start" in self.absent:
            return
        try:
            spent, peak = measure_cold_start(self.folder, reading.files, reading.clicks[:1], *self.name, **self.options)
        except SamkitError as error:
            self.absent["cold_start"] = {"error": str(error)}
            return
        self.add({"cold_start": [spent]})
        self.peaks_mb.append(peak)


def time_stages(
    folder: Path, *, rounds: int, machine: Machine, cold_starts: int, engines: bool | None = None
) -> Iterator[Row]:
    """Yield the rows of one export, on `machine`'s device with its threads; raises as opening the originals does.

    `engines` says whether TensorRT's take part: by default where the device is CUDA.
    """
    manifest = Manifest.load(folder)
    contenders = list(_contenders(folder, manifest, machine, machine.device == "cuda" if engines is None else engines))
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as opened:
        reading = Reading.make(manifest.plan, Path(scratch))
        for contender in contenders:
            if ALL not in contender.absent:
                contender.warm(reading, opened)
        there = [contender for contender in contenders if contender.session is not None]
        visits = {contender.name: partial(contender.visit, reading, Path(scratch)) for contender in there}
        take_turns(visits, rounds, before=machine.sample)
        take_turns({contender.name: partial(contender.start_cold, reading) for contender in there}, cold_starts)
    for contender in contenders:
        for stage in STAGES:
            if stage != "cold_start" or cold_starts:
                yield _base(manifest, machine, reading, stage, contender) | _measured(contender, stage, there[0].mask)


def _contenders(folder: Path, manifest: Manifest, machine: Machine, engines: bool) -> Iterator[_Contender]:
    """Yield the originals first, then what was exported."""
    options = {"device": machine.device, "threads": machine.threads}
    yield _Contender((ORIGINAL, "fp32"), folder, options)
    for precision in manifest.plan.precisions:
        yield _Contender(("onnxruntime", precision), folder, options)
    for precision in manifest.plan.precisions if engines else ():
        contender = _Contender((TENSORRT, precision), folder, {**options, "device": "cuda"})
        if (why := missing_engine(manifest, precision)) is not None:
            contender.absent[ALL] = {"not_run": why}
        yield contender


def _measured(contender: _Contender, stage: str, expected: np.ndarray | None) -> dict[str, Any]:
    """Return the figures of a row, or why it has none; `expected` is PyTorch's mask."""
    for key in (ALL, stage):
        if key in contender.absent:
            return dict(contender.absent[key])
    if stage not in contender.seconds:
        return {"not_run": "the method takes no prompt, and decides on a whole scan: end_to_end"}
    overlap = np.nan if contender.mask is None or expected is None else dice(contender.mask, expected)
    if not overlap >= LEAST_DICE:  # `not >=`, because nan must fail
        return {
            "error": f"it came to another mask: Dice {overlap:.3f} with PyTorch's, and rounding leaves {LEAST_DICE:g} "
            "at least; find out why with sam-bench accuracy"
        }
    milliseconds = [1e3 * second for second in contender.seconds[stage]]
    figures = {"samples_ms": [significant(value) for value in milliseconds], **percentiles(milliseconds)}
    return figures | ({"peak_mb": max(contender.peaks_mb)} if stage == "cold_start" else {})


def _base(manifest: Manifest, machine: Machine, reading: Reading, stage: str, contender: _Contender) -> Row:
    plan, name = manifest.plan, contender.name
    shape = next(iter(reading.case.volumes.values())).array.shape
    row: Row = {
        "kind": "latency",
        "method": plan.method,
        "size": plan.size,
        "weights": plan.weights.kind,
        "manifest": manifest.digest,
        "stage": stage,
        "backend": name[0],
        "device": contender.options["device"],
        "precision": name[1],
        "threads": machine.threads,
        "identity": ["threads"],
        "clicks": len(reading.clicks),
        "scan": list(shape),
    }
    if name == ("onnxruntime", "fp16") and machine.device == "cpu":
        row["note"] = CPU_FLOAT16
    if name[0] == ORIGINAL and machine.device == "cuda":
        row["note"] = "PyTorch's sessions take embeddings to the host and back; its graphs do not"
    return row


# --- One reading ---


def _visit(session: Session, reading: Reading) -> tuple[dict[str, list[float]], np.ndarray]:
    """Go through the clicks in an open session and take them back; return the seconds of each stage, and the mask."""
    set_case(session, reading.case)
    if not reading.clicks:
        session.segment_automatically()
        return {"encode": [session.steps[-1].seconds["encode"]]}, session.mask()
    clicks = [_seconds_of_click(session, point) for point in reading.clicks]
    encode = session.steps[0].seconds["encode"]
    mask = session.mask()
    undos = [seconds_of(lambda: session.undo().mask) for _ in reading.clicks]
    return {"encode": [encode], "click": clicks[1:], "undo": undos}, mask


def _seconds_of_click(session: Session, point: Point) -> float:
    return seconds_of(lambda: session.click(point.index, structure=point.structure).mask)


def _once(open_session: Callable[[], Session], reading: Reading, folder: Path) -> dict[str, list[float]]:
    """Do all that `sam-segment` does, and return the seconds of `load` and `end_to_end`."""
    start = time.perf_counter()
    with open_session() as session:
        loaded = time.perf_counter()
        given = read_study(reading.files)
        segment_study(session, given, reading.clicks)
        write_mask(folder / "mask.nii.gz", session.labels(), given.scan)
        written = time.perf_counter()
    return {"load": [loaded - start], "end_to_end": [written - start]}
