"""Session: one exported method of volumes, one volume set once, clicked many times; `open_export` opens any method.

    with open_export("exports/m-sam") as session:
        session.set_volume(volume)
        step = session.add_point(Point((60, 70, 30), FOREGROUND))
        mask = session.mask()
        session.undo()

Points and masks are in the frame of the volume as given. Nothing here needs torch, unless it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samkit.errors import ExportError, GeometryError, PromptError
from samkit.geometry import Grid, Index, Triple, Volume
from samkit.manifest import Export, Manifest
from samkit.methods.method import Method, SliceMethod, VolumeMethod
from samkit.networks.config import NetworkConfig
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.prompts import Box, Point, Prompt, SliceBox, SlicePoint
from samkit.runtime.backends.runner import Runner, add_substitutes
from samkit.runtime.loops.embeddings import ScanEmbeddings
from samkit.runtime.loops.refinement import NO_LOGIT, Piece, Refiner, State
from samkit.runtime.session.base_session import BaseSession, check_inside
from samkit.runtime.session.slice_session import SliceSession
from samkit.runtime.session.steps import Step
from samkit.runtime.session.updates import MaskUpdate, Part, changed_part, paint, tight

ORT_TENSORRT = "onnxruntime-tensorrt"
"""ONNX Runtime with its own TensorRT provider."""
TENSORRT = "tensorrt"
"""Engines that sam-export built."""
BACKENDS = ("onnxruntime", ORT_TENSORRT, TENSORRT, "torch")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class _Clicked:
    state: State
    parts: tuple[Part, ...]
    """The mask, on the regions of the volume that crops cover."""


class Session(BaseSession[_Clicked, Step]):
    """One method with its runners. Holds one volume, and the history of clicks on it."""

    def __init__(
        self,
        method: VolumeMethod,
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
        super().__init__(runners, precision, manifest)
        self.method = method
        self.config = config
        self.refinement = refinement
        self.spacing = config.spacing if spacing is None else spacing
        self._volume: Volume | None = None
        self._grid: Grid | None = None
        self._refiner: Refiner | None = None

    # --- The volume ---

    def set_volume(self, volume: Volume | Mapping[str, Volume], *, embeddings: ScanEmbeddings | None = None) -> None:
        """Take a new volume; clicks and embeddings of the one before are forgotten.

        `embeddings` is the scan's place in a store that sessions share; by default the session has its own. Raises
        GeometryError for a singular affine or spacing, PromptError where more than one volume is given.
        """
        if isinstance(volume, Mapping):
            if len(volume) != 1:
                raise PromptError(f"{self.method.name} takes one scan, and {len(volume)} are given; give one")
            volume = next(iter(volume.values()))
        grid = self.grid_over(volume)
        patch = (self.config.patch,) * 3

        def read_box(origin: Index) -> np.ndarray:
            return grid.box_from_file(volume.array, origin, patch)

        self._volume, self._grid = volume, grid
        self._refiner = Refiner(
            self.method, self.config, self.refinement, self._runners, grid.shape, read_box, embeddings=embeddings
        )
        self._forget()

    def grid_over(self, volume: Volume) -> Grid:
        """Return the network's grid over a scan; raises GeometryError for a singular affine or spacing."""
        if volume.array.ndim != 3 or min(volume.array.shape) < 1:
            raise GeometryError(f"a volume has three axes (I, J, K), this one is {volume.array.shape}; pass one scan")
        i, j, k = volume.array.shape
        return Grid.over((i, j, k), volume.affine, self.spacing)

    def check_point(self, point: Point) -> None:
        """Raise InputRefused unless `point` lies in the volume."""
        check_inside("the click", point.index, self._opened()[0].array.shape)

    # --- Clicks ---

    def add_point(self, point: Point) -> Step:
        """Apply one click, in voxel indices of the volume, and return what it did.

        Raises InputRefused where the click lies outside the volume or where there is nothing but air.
        """
        volume, grid, refiner = self._opened()
        self.check_point(point)
        start, before = time.perf_counter(), dict(refiner.seconds)
        state = refiner.click(self._state, point_to_grid(point, grid))
        pieces = refiner.merge(state)
        restore = time.perf_counter()
        parts = mask_parts(pieces, grid, self.method.mask_threshold)
        now = time.perf_counter()
        seconds = {stage: spent - before[stage] for stage, spent in refiner.seconds.items()}
        step = Step(
            number=len(self._done) + 1,
            volume_ml=_count_voxels(parts, volume.array.shape) * volume.voxel_ml,
            crops=len(state.crops),
            followed=state.followed,
            limit_reached=state.limit_reached,
            seconds={**seconds, "restore": now - restore, "total": now - start},
        )
        return self._add(_Clicked(state, parts), step)

    @property
    def origins(self) -> tuple[Index, ...]:
        """Return the first grid voxel of every crop in use."""
        return tuple(crop.origin for crop in self._state.crops)

    # --- Results ---

    def mask(self) -> np.ndarray:
        """Return the mask (I, J, K), bool, on the volume's own array; empty before the first click."""
        return self.labels() > 0

    def labels(self) -> np.ndarray:
        """Return the mask (I, J, K), uint8, 1 on the object."""
        return paint(_parts(self.now), self._opened()[0].array.shape)

    def update_since(self, before: _Clicked | None) -> MaskUpdate:
        """Return the present mask and what differs from the mask of the state `before`."""
        shape, now = self._opened()[0].array.shape, self.now
        return MaskUpdate(
            lambda: paint(_parts(now), shape),
            lambda: changed_part(_parts(before), _parts(now), len(shape)),
            volume_ml=self._done[-1][1].volume_ml if self._done else 0.0,
        )

    # --- As every session ---

    @property
    def is_automatic(self) -> bool:
        """Whether the method finds something without a prompt: no method of volumes does."""
        return False

    def add_prompt(self, prompt: Prompt) -> None:
        """Apply one click; raises PromptError for what is no click in a volume."""
        self.add_point(as_point(prompt, self.method.name))

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
        return self._done[-1][0].state if self._done else State()

    def _opened(self) -> tuple[Volume, Grid, Refiner]:
        if self._volume is None or self._grid is None or self._refiner is None:
            raise PromptError("no volume is set; call set_volume first")
        return self._volume, self._grid, self._refiner

    def close(self) -> None:
        """Let go of runners and volume."""
        super().close()
        self._volume = self._grid = self._refiner = None


def as_point(prompt: Prompt, method: str) -> Point:
    """Return `prompt` if it is a click in a volume; raises PromptError, which calls the method by its name."""
    if isinstance(prompt, (Box, SliceBox)):
        raise PromptError(f"{method} takes no box; click on the object, e.g. --point 60,70,30,+")
    if isinstance(prompt, SlicePoint):
        raise PromptError(
            f"a point is written i,j,k,+ or i,j,k,- in a volume and this one has two indices, {prompt.x:g} and "
            f"{prompt.y:g}; e.g. --point 60,70,30,+"
        )
    if prompt.structure:
        raise PromptError(f"{method} tells no structures apart; give --point without a name")
    return prompt


def point_to_grid(point: Point, grid: Grid) -> Point:
    """Return a click in voxel indices of the file's array as one in indices of the grid, inside it."""
    i, j, k = np.clip(grid.points_from_file(np.array([point.index])), -0.5, np.array(grid.shape) - 0.5)[0]
    return Point((i, j, k), point.label)


def mask_parts(pieces: Sequence[Piece], grid: Grid, threshold: float) -> tuple[Part, ...]:
    """Return the mask, bool, on boxes of the file's array as small as the mask has them: every click keeps its own."""
    found = [grid.region_to_file(piece.logits, piece.origin) for piece in pieces]
    return tuple(part for region, logits in found if (part := tight((region, logits > threshold))) is not None)


def _count_voxels(parts: Sequence[Part], shape: Sequence[int]) -> int:
    """Return how many voxels a mask has; regions of far crops may still overlap."""
    if len(parts) < 2:
        return sum(int(part.sum()) for _, part in parts)
    return int(np.count_nonzero(paint(parts, shape)))


def _parts(state: _Clicked | None) -> tuple[Part, ...]:
    return () if state is None else state.parts


def open_export(
    folder: str | Path,
    *,
    backend: str = "onnxruntime",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    spacing: Triple | None = None,
    plane: str | None = None,
    intensities: tuple[float, float] | None = None,
) -> Session | SliceSession:
    """Return a session on an export folder; files that it could use are checked against the manifest first.

    A method of volumes gives a Session, a method of slices a SliceSession. `backend` is `onnxruntime`,
    `onnxruntime-tensorrt` (its TensorRT provider), `tensorrt` (engines that the manifest lists, built here) or `torch`
    (float32, needs the checkpoint that the manifest names); `device` is `cpu` or `cuda`, by default `cuda` for the two
    of TensorRT, which need it, and `cpu` for the others; `precision` is by default `fp16` on CUDA where the export has
    it, else `fp32`, which `onnxruntime-tensorrt` always runs unless it is told. `spacing` [mm] is for methods of
    volumes, `plane` and `intensities` (what becomes black and white) for those of slices; each is by default the
    method's own.
    """
    device = default_device(backend) if device is None else device
    if backend not in BACKENDS or device not in DEVICES:
        raise ExportError(
            f"backend '{backend}' on device '{device}' is not known; backends are {', '.join(BACKENDS)}, devices "
            f"{', '.join(DEVICES)}"
        )
    # The runners of TensorRT check the very bytes that they load, and need nothing else of the export
    export = Export.open(folder, verify=backend != TENSORRT)
    if precision is None:
        precision = default_precision(export.manifest, backend, device)
    with ExitStack() as opened:
        runners, warnings = open_runners(export.folder, export.manifest, backend, device, precision, threads)
        for runner in runners.values():
            opened.callback(runner.close)
        add_substitutes(runners, export.graphs)
        session = make_session(
            export.method, export.config, runners, precision, export.manifest, spacing, plane, intensities
        )
        session.warn(*warnings)
        opened.pop_all()  # the session closes them from here on
    return session


def open_runners(
    folder: Path, manifest: Manifest, backend: str, device: str, precision: str, threads: int | None
) -> tuple[dict[str, Runner], list[str]]:
    """Return a runner of each graph of an export, by name, and what users must be told of the backend.

    The files are not hashed here, save those of TensorRT engines. Raises as `open_export` does, and then leaves
    nothing open.
    """
    plan = manifest.plan
    runners: dict[str, Runner] = {}
    warnings: list[str] = []
    with ExitStack() as opened:
        if backend == "torch":
            if precision != "fp32":
                raise ExportError(f"the torch backend runs float32, not {precision}; leave --precision out")
            from samkit.runtime.backends.torch_runner import open_torch_runners

            runners.update(open_torch_runners(plan, device=device, threads=threads))
        elif backend == TENSORRT:
            if device != "cuda":
                raise ExportError(f"TensorRT engines run on a CUDA device and not on {device}; leave --device out")
            from samkit.runtime.backends.tensorrt_library import tensorrt_version, untested_warning
            from samkit.runtime.backends.tensorrt_runner import TensorRTRunner

            if (untested := untested_warning(tensorrt_version())) is not None:
                warnings.append(untested)
            for graph in plan.specs:
                runners[graph.name] = opened.enter_context(TensorRTRunner(folder, manifest, graph, precision))
        else:
            from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner

            for graph in plan.specs:
                path = manifest.path(folder, graph.name, precision)
                tensorrt = backend == ORT_TENSORRT
                runner = OnnxRuntimeRunner(path, graph, device=device, threads=threads, tensorrt=tensorrt)
                runners[graph.name] = opened.enter_context(runner)
        opened.pop_all()
    return runners, warnings


def described(manifest: Manifest, folder: Path) -> tuple[Method, NetworkConfig]:
    """Return method and network of the export in `folder`; raises ManifestError where the manifest leaves them open."""
    export = Export.of(folder, manifest)
    return export.method, export.config


def make_session(
    method: Method,
    config: NetworkConfig,
    runners: Mapping[str, Runner],
    precision: str,
    manifest: Manifest,
    spacing: Triple | None,
    plane: str | None,
    intensities: tuple[float, float] | None,
) -> Session | SliceSession:
    """Return a session of the method's kind on `runners`; raises PromptError for an option of the other kind."""
    if isinstance(method, SliceMethod):
        if spacing is not None:
            raise PromptError(f"{method.name} works on slices as they are and takes no spacing; leave --spacing out")
        return SliceSession(
            method, config, runners, plane=plane, intensities=intensities, precision=precision, manifest=manifest
        )
    if not isinstance(method, VolumeMethod) or not isinstance(config, Sam3DConfig):
        raise ExportError(f"{method.name} is neither a method of slices nor of volumes; upgrade samkit")
    if plane is not None or intensities is not None:
        option = "--plane" if plane is not None else "--intensities"
        raise PromptError(f"{option} is for methods of slices, and {method.name} works on volumes; leave it out")
    refinement = str(manifest.plan.refinement)
    return Session(method, config, refinement, runners, spacing=spacing, precision=precision, manifest=manifest)


def default_device(backend: str) -> str:
    """Return where a backend runs when nobody asks: `cuda` for those of TensorRT, else `cpu`."""
    return "cuda" if backend in (ORT_TENSORRT, TENSORRT) else "cpu"


def default_precision(manifest: Manifest, backend: str, device: str) -> str:
    """Return what runs when nobody asks: `fp16` on CUDA where the export has it, else `fp32`.

    `onnxruntime-tensorrt` runs `fp32`, too: nobody has seen what its provider makes of our float16 files.
    """
    takes = backend in ("onnxruntime", TENSORRT) and device == "cuda"
    return "fp16" if takes and manifest.plan.precision == "fp16" else "fp32"
