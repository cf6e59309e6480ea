"""Session: one exported method, one volume set once, prompted many times.

    with open_session("exports/m-sam") as session:
        session.set_volume(volume)
        step = session.add_point(Point((60, 70, 30), FOREGROUND))
        mask = session.mask()
        session.undo()

Points and masks are in the frame of the volume as given. Nothing here needs torch, unless it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from samkit.errors import ExportError, GeometryError, InputRefused, ManifestError, PromptError
from samkit.geometry import Grid, Index, Triple, Volume
from samkit.manifest import Manifest
from samkit.methods import get_method
from samkit.methods.method import Method
from samkit.models.sam3d_config import Sam3DConfig
from samkit.prompts import Point
from samkit.runtime.refinement import NO_LOGIT, Refiner, State
from samkit.runtime.runner import Runner

BACKENDS = ("onnxruntime", "torch")
DEVICES = ("cpu", "cuda")

_ROUND_OFF = 1e-3
"""Voxels that a click may lie outside the volume: world coordinates come with round-off."""


@dataclass(frozen=True)
class Step:
    """What one click did."""

    number: int
    """1 for the first click."""
    volume_ml: float
    """Volume of the mask [mL]."""
    crops: int
    """Crops in use."""
    followed: int
    """Crops among them that no click has touched: the object led there."""
    limit_reached: bool
    """Whether the object goes on beyond the crops that one click may add; click there to follow it further."""
    seconds: Mapping[str, float]
    """Of this click: crop, encode, decode, merge, restore, total."""


@dataclass(frozen=True)
class _Entry:
    state: State
    step: Step
    regions: tuple[tuple[tuple[slice, slice, slice], np.ndarray], ...]
    """The mask, on the regions of the volume that crops cover."""


class Session:
    """One method with its runners. Holds one volume, and the history of clicks on it."""

    def __init__(
        self,
        method: Method,
        config: Sam3DConfig,
        refinement: str,
        runners: Mapping[str, Runner],
        *,
        spacing: Triple | None = None,
        precision: str = "fp32",
        manifest: Manifest | None = None,
    ) -> None:
        """Take over `runners`, one per graph, of the export that `manifest` describes, if it is one.

        `spacing` [mm] overrides what the network was trained at.
        """
        if refinement not in method.refinements:
            raise ExportError(
                f"{method.name} knows the refinements {', '.join(method.refinements)}, not '{refinement}'; export again"
            )
        self.method = method
        self.config = config
        self.refinement = refinement
        self.precision = precision
        self.spacing = config.spacing if spacing is None else spacing
        self._manifest = manifest
        self._runners = dict(runners)
        self._volume: Volume | None = None
        self._grid: Grid | None = None
        self._refiner: Refiner | None = None
        self._done: list[_Entry] = []
        self._undone: list[_Entry] = []

    # --- The volume ---

    def set_volume(self, volume: Volume) -> None:
        """Take a new volume; clicks and embeddings of the one before are forgotten.

        Raises GeometryError for a singular affine or spacing.
        """
        if volume.array.ndim != 3 or min(volume.array.shape) < 1:
            raise GeometryError(f"a volume has three axes (I, J, K), this one is {volume.array.shape}; pass one scan")
        i, j, k = volume.array.shape
        grid = Grid.over((i, j, k), volume.affine, self.spacing)
        patch = (self.config.patch,) * 3

        def read_box(origin: Index) -> np.ndarray:
            return grid.box_from_file(volume.array, origin, patch)

        self._volume, self._grid = volume, grid
        self._refiner = Refiner(self.method, self.config, self.refinement, self._runners, grid.shape, read_box)
        self.reset()

    def check_point(self, point: Point) -> None:
        """Raise InputRefused unless `point` lies in the volume."""
        shape = self._opened()[0].array.shape
        if not all(-0.5 - _ROUND_OFF <= v <= n - 0.5 + _ROUND_OFF for v, n in zip(point.index, shape, strict=True)):
            where = ", ".join(f"{v:g}" for v in point.index)
            raise InputRefused(
                "click-outside",
                f"the click ({where}) lies outside the volume of {' x '.join(str(n) for n in shape)} voxels",
                "give indices of the file's own array, counted from 0, or world millimetres with --world",
            )

    # --- Clicks ---

    def add_point(self, point: Point) -> Step:
        """Apply one click, in voxel indices of the volume, and return what it did.

        Raises InputRefused where the click lies outside the volume or where there is nothing but air.
        """
        volume, grid, refiner = self._opened()
        self.check_point(point)
        start, before = time.perf_counter(), dict(refiner.seconds)
        inside = np.clip(grid.points_from_file(np.array([point.index])), -0.5, np.array(grid.shape) - 0.5)[0]
        state = refiner.click(self._state, Point((inside[0], inside[1], inside[2]), point.label))
        pieces = refiner.merge(state)
        restore = time.perf_counter()
        regions = []
        for piece in pieces:
            region, logits = grid.region_to_file(piece.logits, piece.origin)
            regions.append((region, logits > self.method.mask_threshold))
        now = time.perf_counter()
        seconds = {stage: spent - before[stage] for stage, spent in refiner.seconds.items()}
        step = Step(
            number=len(self._done) + 1,
            volume_ml=_count(regions, volume.array.shape) * volume.voxel_ml,
            crops=len(state.crops),
            followed=state.followed,
            limit_reached=state.limit_reached,
            seconds={**seconds, "restore": now - restore, "total": now - start},
        )
        self._done.append(_Entry(state, step, tuple(regions)))
        self._undone.clear()
        return step

    def undo(self) -> None:
        """Take the last click back; the mask is bit for bit what it was before it."""
        if not self._done:
            raise PromptError("there is no click to undo; add one first")
        self._undone.append(self._done.pop())

    def redo(self) -> None:
        """Take the last undo back."""
        if not self._undone:
            raise PromptError("there is no undone click; redo works right after undo")
        self._done.append(self._undone.pop())

    def reset(self) -> None:
        """Forget all clicks; the volume and its embeddings stay."""
        self._done.clear()
        self._undone.clear()

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return what the clicks did, in order."""
        return tuple(entry.step for entry in self._done)

    @property
    def origins(self) -> tuple[Index, ...]:
        """Return the first grid voxel of every crop in use."""
        return tuple(crop.origin for crop in self._state.crops)

    # --- Results ---

    def mask(self) -> np.ndarray:
        """Return the mask (I, J, K), bool, on the volume's own array; empty before the first click."""
        mask = np.zeros(self._opened()[0].array.shape, bool)
        for region, part in self._done[-1].regions if self._done else ():
            mask[region] |= part
        return mask

    def logits(self) -> np.ndarray:
        """Return the logits (I, J, K), float32, on the volume's own array; very negative where no crop was."""
        volume, grid, refiner = self._opened()
        out = np.full(volume.array.shape, NO_LOGIT, np.float32)
        for piece in refiner.merge(self._state):
            region, values = grid.region_to_file(piece.logits, piece.origin)
            np.maximum(out[region], values, out=out[region])
        return out

    @property
    def _state(self) -> State:
        return self._done[-1].state if self._done else State()

    def _opened(self) -> tuple[Volume, Grid, Refiner]:
        if self._volume is None or self._grid is None or self._refiner is None:
            raise PromptError("no volume is set; call set_volume first")
        return self._volume, self._grid, self._refiner

    # --- Life ---

    @property
    def manifest(self) -> Manifest:
        """Return the manifest of the export; raises ManifestError where the session was made without one."""
        if self._manifest is None:
            raise ManifestError("this session was made from runners, and a manifest needs an export; use open_session")
        return self._manifest

    @property
    def providers(self) -> dict[str, tuple[str, ...]]:
        """Return, for every graph, what really runs it."""
        return {name: runner.providers for name, runner in self._runners.items()}

    def close(self) -> None:
        """Let go of runners and volume."""
        for runner in self._runners.values():
            runner.close()
        self._volume = self._grid = self._refiner = None
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _count(regions: list[tuple[tuple[slice, slice, slice], np.ndarray]], shape: tuple[int, ...]) -> int:
    """Return how many voxels the mask has; regions of far crops may still overlap."""
    if len(regions) < 2:
        return sum(int(part.sum()) for _, part in regions)
    mask = np.zeros(shape, bool)
    for region, part in regions:
        mask[region] |= part
    return int(mask.sum())


def open_session(
    folder: str | Path,
    *,
    backend: str = "onnxruntime",
    device: str = "cpu",
    precision: str | None = None,
    threads: int | None = None,
    spacing: Triple | None = None,
) -> Session:
    """Return a session on an export folder, whose files are checked against its manifest first.

    `backend` is `onnxruntime` or `torch` (float32, needs the checkpoint that the manifest names); `device` is `cpu`
    or `cuda`; `precision` is by default `fp32` on the CPU and `fp16` on CUDA where the export has it.
    """
    folder = Path(folder)
    if backend not in BACKENDS or device not in DEVICES:
        raise ExportError(
            f"backend '{backend}' on device '{device}' is not known; backends are {', '.join(BACKENDS)}, devices "
            f"{', '.join(DEVICES)}"
        )
    manifest = Manifest.load(folder)
    manifest.verify(folder)
    plan = manifest.plan
    if plan.config is None or plan.refinement is None:
        raise ManifestError(f"the manifest of {folder.name} does not describe its network; export again")
    method, config = get_method(plan.method), plan.config
    if precision is None:
        precision = default_precision(manifest, backend, device)
    runners: dict[str, Runner] = {}
    with ExitStack() as opened:
        if backend == "torch":
            if precision != "fp32":
                raise ExportError(f"the torch backend runs float32, not {precision}; leave --precision out")
            from samkit.runtime.torch_runner import open_torch_runners

            runners.update(open_torch_runners(method, config, plan.weights, device=device, threads=threads))
        else:
            from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner

            for graph in method.graphs(config):
                path = manifest.path(folder, graph.name, precision)
                runner = OnnxRuntimeRunner(path, graph, device=device, threads=threads)
                runners[graph.name] = opened.enter_context(runner)
        session = Session(
            method, config, plan.refinement, runners, spacing=spacing, precision=precision, manifest=manifest
        )
        opened.pop_all()  # the session closes them from here on
    return session


def default_precision(manifest: Manifest, backend: str, device: str) -> str:
    """Return what runs when nobody asks: `fp16` for ONNX on CUDA where the export has it, else `fp32`."""
    return "fp16" if backend == "onnxruntime" and device == "cuda" and manifest.plan.precision == "fp16" else "fp32"
