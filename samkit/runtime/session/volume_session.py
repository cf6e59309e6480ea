"""VolumeSession: one exported method of volumes, one volume set once, clicked many times.

    with open_session("exports/m-sam") as session:
        session.set_image(volume)
        step = session.add(Point((60, 70, 30), FOREGROUND)).step
        mask = session.mask()
        session.undo()

Points and masks are in the frame of the volume as given. Nothing here needs torch, unless it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from samkit.errors import ExportError, GeometryError, InputRefused, PromptError
from samkit.geometry import Grid, Index, Triple, Volume
from samkit.imageio.gate import check_several_slices
from samkit.manifest import Manifest
from samkit.methods.method import VolumeMethod
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.precisions import BASE
from samkit.prompts import EXAMPLE_POINT, Box, Point, Prompt, SliceBox, SlicePoint
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.embeddings import ScanEmbeddings
from samkit.runtime.loops.refinement import NO_LOGIT, Piece, Refiner, State
from samkit.runtime.session.base import Volumes
from samkit.runtime.session.local_session import LocalSession, check_inside
from samkit.runtime.session.places import check_prompts
from samkit.runtime.session.steps import Step
from samkit.runtime.session.updates import MaskUpdate, Part, changed_part, paint, tight


@dataclass(frozen=True)
class _Clicked:
    state: State
    parts: tuple[Part, ...]
    """The mask, on the regions of the volume that crops cover."""


class _Opened(NamedTuple):
    """What was set."""

    volume: Volume
    grid: Grid
    refiner: Refiner


class VolumeSession(LocalSession[_Clicked]):
    """One method with its runners. Holds one volume, and the history of clicks on it."""

    def __init__(
        self,
        method: VolumeMethod,
        config: Sam3DConfig,
        refinement: str,
        runners: Mapping[str, Runner],
        *,
        spacing: Triple | None = None,
        precision: str = BASE.name,
        manifest: Manifest | None = None,
    ) -> None:
        """Take over `runners`, one per graph, of the export that `manifest` describes, if it is one.

        `spacing` [mm] overrides what the network was trained at.
        """
        if refinement not in method.refinements:
            raise ExportError(
                f"{method.name} knows the refinements {', '.join(method.refinements)}, not '{refinement}'; export again"
            )
        super().__init__(method, config, runners, precision, manifest)
        self._volume_method, self._refinement = method, refinement
        self._spacing = config.spacing if spacing is None else spacing
        self._set: _Opened | None = None

    @property
    def method(self) -> VolumeMethod:
        """Return the method's record."""
        return self._volume_method

    @property
    def spacing(self) -> Triple:
        """Return the voxel size [mm] of the network's grid along the patient's axes."""
        return self._spacing

    # --- The volume ---

    def _take_volumes(self, volumes: Volumes, embeddings: ScanEmbeddings) -> None:
        """Take a new volume; clicks and embeddings of the one before are forgotten."""
        if len(volumes) != 1:
            raise InputRefused(
                "too-many-sequences", f"{self.method.name} takes one scan, and {len(volumes)} are given", "give one"
            )
        volume = next(iter(volumes.values()))
        grid = self._grid_over(volume)
        patch = (self.config.patch,) * 3

        def read_box(origin: Index) -> np.ndarray:
            return grid.box_from_file(volume.array, origin, patch)

        refiner = Refiner(
            self.method, self.config, self._refinement, self._runners, grid.shape, read_box, embeddings=embeddings
        )
        self._set = _Opened(volume, grid, refiner)
        self._forget()

    def _take_picture(self, picture: np.ndarray, embeddings: ScanEmbeddings) -> None:
        self._refuse_picture()

    def _grid_over(self, volume: Volume) -> Grid:
        """Return the network's grid over a scan; raises GeometryError for a singular affine or spacing."""
        if volume.array.ndim != 3 or min(volume.array.shape) < 1:
            raise GeometryError(f"a volume has three axes (I, J, K), this one is {volume.array.shape}; pass one scan")
        check_several_slices("the scan", volume.array.shape)
        i, j, k = volume.array.shape
        return Grid.over((i, j, k), volume.affine, self.spacing)

    # --- Clicks ---

    def _check_places(self, prompts: Sequence[Prompt]) -> None:
        """Raise PromptError for what is no click in a volume, InputRefused for one outside."""
        shape = self._opened().volume.array.shape
        for prompt in prompts:
            check_inside("the click", volume_click(prompt, self.method.name).index, shape)

    def by_step(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, ...]]:
        """Return each click by itself: the network gets one at a time."""
        check_prompts(prompts)
        return [(prompt,) for prompt in prompts]

    def _step_on(self, prompts: Sequence[Prompt], *, refine: bool) -> None:
        """Apply one click; raises InputRefused where there is nothing but air, PromptError for `refine`."""
        if refine:
            raise PromptError(
                f"refine is asked for, and {self.method.name} gives every click the mask of the one before anyway; "
                "leave it out"
            )
        (prompt,) = prompts
        volume, grid, refiner = self._opened()
        start, before = time.perf_counter(), dict(refiner.seconds)
        state = refiner.click(self._state, point_to_grid(volume_click(prompt, self.method.name), grid))
        pieces = refiner.merge(state)
        restore = time.perf_counter()
        parts = mask_parts(pieces, grid, self.method.mask_threshold)
        now = time.perf_counter()
        seconds = {stage: spent - before[stage] for stage, spent in refiner.seconds.items()}
        voxels = _count_voxels(parts, volume.array.shape)
        step = Step(
            number=len(self._done) + 1,
            voxels=voxels,
            volume_ml=voxels * volume.voxel_ml,
            crops=len(state.crops),
            followed=state.followed,
            limit_reached=state.limit_reached,
            seconds={**seconds, "restore": now - restore, "total": now - start},
        )
        self._keep(_Clicked(state, parts), step)

    @property
    def origins(self) -> tuple[Index, ...]:
        """Return the first grid voxel of every crop in use."""
        return tuple(crop.origin for crop in self._state.crops)

    # --- Results ---

    def labels(self) -> np.ndarray:
        """Return the mask (I, J, K), uint8, 1 on the object."""
        return paint(_parts(self._now), self._opened().volume.array.shape)

    def logits(self) -> np.ndarray:
        """Return the logits (I, J, K), float32, on the volume's own array; very negative where no crop was."""
        volume, grid, refiner = self._opened()
        out = np.full(volume.array.shape, NO_LOGIT, np.float32)
        for piece in refiner.merge(self._state):
            region, values = grid.region_to_file(piece.logits, piece.origin)
            np.maximum(out[region], values, out=out[region])
        return out

    def _update_since(self, before: _Clicked | None, step: Step | None) -> MaskUpdate:
        shape, now = self._opened().volume.array.shape, self._now
        return MaskUpdate(
            lambda: paint(_parts(now), shape),
            lambda: changed_part(_parts(before), _parts(now), len(shape)),
            volume_ml=self._done[-1][1].volume_ml if self._done else 0.0,
            step=step,
        )

    @property
    def _state(self) -> State:
        return self._done[-1][0].state if self._done else State()

    def _opened(self) -> _Opened:
        return self._present(self._set)

    def _scan_arrays(self) -> list[np.ndarray]:
        return [self._opened().volume.array]

    def close(self) -> None:
        """Let go of runners and volume."""
        super().close()
        self._set = None


def volume_click(prompt: Prompt, method: str) -> Point:
    """Return `prompt` as the click in a volume that it has to be; raises PromptError, which names the method."""
    if isinstance(prompt, (Box, SliceBox)):
        raise PromptError(
            f"{method} takes no box; click on the object, e.g. {{{EXAMPLE_POINT}}}", options=(EXAMPLE_POINT,)
        )
    if isinstance(prompt, SlicePoint):
        raise PromptError(
            f"a click in a volume has three indices and this one has two, {prompt.x:g} and {prompt.y:g}; "
            f"e.g. {{{EXAMPLE_POINT}}}",
            options=(EXAMPLE_POINT,),
        )
    if prompt.structure:
        raise PromptError(
            f"{method} tells no structures apart; give {{points}} without a structure", options=("points",)
        )
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
