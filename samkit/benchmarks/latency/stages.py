"""Rows of `sam-bench latency` about what a reader waits for, by backend, on a phantom that lies on disk as a scan does.

`load` opens an export; `encode` is the image encoder's part of the first click; `click` is a later one, until the whole
mask is there; `undo` takes one back; `end_to_end` opens, reads the scan, clicks and writes the mask, in a process that
has imported everything; `cold_start` is a new process until the first mask. Backends take turns, and the sessions that
are clicked in are warm. A method that looks by itself decides on the whole scan in `end_to_end`, whoever clicks.

The backends must come to the same mask; where one does not, or fails, its times are an error.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samkit.benchmarks.cases.phantom_scans import click_on, phantom_cases
from samkit.benchmarks.latency.candidates import attempt, candidates, note_on
from samkit.benchmarks.latency.cold_start import first_mask, open_reader
from samkit.benchmarks.latency.settings import EAGER, LatencySettings
from samkit.benchmarks.measure.machine import Machine
from samkit.benchmarks.measure.processes import call_alone
from samkit.benchmarks.measure.turns import seconds_of, take_turns
from samkit.benchmarks.record.rows import Absent, Identity, LatencyRow, Times
from samkit.errors import MissingDependencyError, SamkitError
from samkit.files import working_folder
from samkit.geometry import Volume
from samkit.imageio.study import read_study
from samkit.imageio.writing import write_mask, write_volume
from samkit.manifest import Export
from samkit.masks import dice
from samkit.methods import SliceMethod
from samkit.precisions import BASE
from samkit.prompts import FOREGROUND, Point, prompt_json
from samkit.protocols.case import Case
from samkit.protocols.simulated_user import CENTRE, SimulatedUser
from samkit.runtime.backends import Variant, get_backend
from samkit.runtime.session.base import Session
from samkit.segment.segmenting import segment_study

STAGES = ("cold_start", "load", "encode", "click", "undo", "end_to_end")
CLICKS = 4
LEAST_DICE = 0.9
"""Of a mask with PyTorch's: less is another mask, and not rounding."""


def write_case(export: Export, folder: Path) -> tuple[Case, dict[str, Path]]:
    """Return a phantom for the method of an export, with a reader's clicks, always on the same places whatever the
    answer, and the files of its scans, which are written into `folder`.
    """
    case = next(phantom_cases(export.method, export.config, 1))
    files = {name: folder / f"{name or 'scan'}.nii.gz" for name in case.volumes}
    for name, volume in case.volumes.items():
        write_volume(files[name], Volume(np.asarray(volume.array, np.float32), volume.affine))
    return replace(case, clicks=_clicks(case, export)), files


def _clicks(case: Case, export: Export) -> tuple[Point, ...]:
    """Return CLICKS points in the target, spread over it evenly; none where the method takes none."""
    if isinstance(export.method, SliceMethod) and not export.method.prompts:
        return ()
    user = SimulatedUser.of(case, CENTRE, export.method, export.config, export.plan.size)
    inside = np.argwhere(user.target)
    picked = inside[np.linspace(0, len(inside) - 1, CLICKS + 2).round().astype(int)[1:-1]]
    if user.view is None:
        return tuple(Point((float(i), float(j), float(k)), FOREGROUND) for i, j, k in picked)
    to_voxel, place = user.view.to_voxel, user.place
    return tuple(Point(to_voxel(place, float(x), float(y)), FOREGROUND, user.structure) for y, x in picked)


@dataclass
class SessionTimer:
    """The sessions of one backend on one case, and how long a reader waited for them."""

    identity: Identity
    export: Export
    case: Case
    files: Mapping[str, Path]
    """Of the case's scans; masks are written beside them."""
    absent: dict[str, Absent] = field(default_factory=dict)
    """By stage, why there are no times."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By stage."""
    peaks_mb: list[float] = field(default_factory=list)
    """Of each cold start's process."""
    session: Session | None = None
    mask: np.ndarray | None = None

    @property
    def _opening(self) -> dict[str, Any]:
        return {name: getattr(self.identity, name) for name in ("backend", "precision", "device", "threads")}

    def warm_up(self, opened: ExitStack) -> None:
        """Open a session, which `opened` closes, and read in it once; notes what fails, and raises PyTorch's."""
        failed = attempt(self.identity, partial(self._open, opened))
        self.absent = {} if failed is None else dict.fromkeys(STAGES, failed)

    def _open(self, opened: ExitStack) -> None:
        if lack := get_backend(self.identity.backend).missing(self.export, self.identity.precision):
            raise MissingDependencyError(lack)
        session = opened.enter_context(open_reader(self.export.folder, **self._opening))
        _, self.mask = visit(session, self.case)
        self.session = session

    def take_turn(self) -> None:
        """Read in the warm session, then do all that `sam-segment` does."""
        if self.session is not None:
            for stage, seconds in visit(self.session, self.case)[0].items():
                self.seconds[stage] += seconds
        start = time.perf_counter()
        with open_reader(self.export.folder, **self._opening) as session:
            loaded = time.perf_counter()
            study = read_study(self.files)
            segment_study(session, study, self.case.clicks)
            write_mask(next(iter(self.files.values())).with_name("mask.nii.gz"), session.labels(), study.scan)
            written = time.perf_counter()
        self.seconds["load"].append(loaded - start)
        self.seconds["end_to_end"].append(written - start)

    def start_cold(self) -> None:
        """Do it in a new process, unless that failed before."""
        if "cold_start" in self.absent:
            return
        prompts = [prompt_json(point) for point in self.case.clicks[:1]]
        where = {"export": self.export.folder, "files": self.files, "opening": self._opening}
        failure = f"{self.identity.backend} {self.identity.precision} gave no first mask"
        try:
            seconds, found = call_alone(first_mask, failure, prompts=prompts, **where)
        except SamkitError as error:
            self.absent["cold_start"] = Absent("latency", self.identity, str(error), is_failure=True)
        else:
            self.seconds["cold_start"].append(seconds)
            self.peaks_mb.append(found["peak_mb"])

    def row(self, stage: str, expected: np.ndarray | None) -> LatencyRow | Absent:
        """Return the row of a stage, or why there is none; `expected` is PyTorch's mask."""
        identity = replace(self.identity, stage=stage)
        if stage in self.absent:
            return replace(self.absent[stage], identity=identity)
        if stage not in self.seconds:
            why = "the method takes no prompt, and decides on a whole scan: end_to_end"
            return Absent("latency", identity, why, is_failure=False)
        overlap = np.nan if self.mask is None or expected is None else dice(self.mask, expected)
        if not overlap >= LEAST_DICE:  # `not >=`, because nan must fail
            fault = (
                f"it came to another mask: Dice {overlap:.3f} with PyTorch's, and rounding leaves {LEAST_DICE:g} at "
                "least; find out why with sam-bench accuracy"
            )
            return Absent("latency", identity, fault, is_failure=True)
        note = note_on(Variant(identity.backend, identity.precision, identity.device))
        if (identity.backend, identity.device) == (EAGER, "cuda"):
            note = "PyTorch's sessions take embeddings to the host and back; its graphs do not"
        return LatencyRow(
            identity,
            Times.of(self.seconds[stage]),
            peak_mb=max(self.peaks_mb) if stage == "cold_start" else None,
            clicks=len(self.case.clicks),
            scan=self.case.shape,
            note=note,
        )


def time_stages(export: Export, machine: Machine, settings: LatencySettings) -> Iterator[LatencyRow | Absent]:
    """Yield the rows of one export, on `machine`'s device with its threads; raises as opening the originals does."""
    with working_folder() as scratch, ExitStack() as opened:
        case, files = write_case(export, scratch)
        timers = []
        for one in (Variant(EAGER, BASE.name, machine.device), *candidates(export, settings)):
            identity = Identity.of(export.plan, export.digest, **asdict(one), threads=machine.threads)
            timers.append(SessionTimer(identity, export, case, files))
            timers[-1].warm_up(opened)
        there = [timer for timer in timers if timer.session is not None]
        take_turns({timer.identity: timer.take_turn for timer in there}, settings.rounds, before=machine.sample)
        take_turns({timer.identity: timer.start_cold for timer in there}, settings.cold_starts)
    for timer in timers:
        for stage in STAGES:
            if stage != "cold_start" or settings.cold_starts:
                yield timer.row(stage, there[0].mask if there else None)


def visit(session: Session, case: Case) -> tuple[dict[str, list[float]], np.ndarray]:
    """Go through the clicks in an open session and take them back; return the seconds of each stage, and the mask."""
    session.set_image(case.image, automatic=False)
    if not case.clicks:
        mask = session.segment_automatically().mask
        return {"encode": [session.steps[-1].seconds["encode"]]}, mask
    clicks = [seconds_of(partial(click_on, session, point)) for point in case.clicks]
    encode = session.steps[0].seconds["encode"]
    mask = session.mask()
    undos = [seconds_of(lambda: session.undo().mask) for _ in case.clicks]
    return {"encode": [encode], "click": clicks[1:], "undo": undos}, mask
