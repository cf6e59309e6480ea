"""VolumeSteps: what the steps of the ensemble do with volumes: a grid over the scan, clicks, logits of boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samkit.errors import InputRefused, PromptError
from samkit.geometry import Grid, Index, Volume, crop
from samkit.imageio.gate import check_several_slices
from samkit.methods.method import VolumeMethod
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.prompts import FOREGROUND, Prompt, prompt_json, prompts_from_json
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.refinement import Piece, Refiner, State
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.requests import EnsembleOptions
from samkit.runtime.session.local_session import check_inside
from samkit.runtime.session.updates import paint
from samkit.runtime.session.volume_session import mask_parts, point_to_grid, volume_click
from samkit.triton_models.served import Served
from samkit.triton_models.tasks import Box, FoundInVolume, Task, check_prepared, check_shape

_BEYOND = 1024
"""Grid voxels: a click on the edge of a scan may lie a few beyond its grid, where that is finer."""


class VolumeSteps:
    """The three steps; `prepared` is (1, I, J, K) on the network's grid, the result logits of boxes of that grid."""

    def __init__(self, served: Served, method: VolumeMethod, config: Sam3DConfig) -> None:
        """Work for what is served, whose method and network are these."""
        self._served, self._method, self._config = served, method, config

    def prepare(
        self, asked: EnsembleOptions, volumes: Mapping[str, Volume], prompts: Sequence[Prompt]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the whole scan on the grid, and clicks in its indices, as JSON.

        Raises InputRefused for a grid of more than `max_voxels`, which a session would never make as a whole.
        """
        name = self._method.name
        if asked.propagate:
            raise PromptError(f"propagate is for methods of slices, and {name} works on volumes; leave it out")
        if len(volumes) != 1:
            raise PromptError(f"{name} takes one scan, and {len(volumes)} are given; send one")
        (volume,) = volumes.values()
        points = [volume_click(prompt, name) for prompt in prompts]
        if not any(point.label == FOREGROUND for point in points):
            raise PromptError(
                f"none of {len(points)} click(s) is on the object, {name} needs one; send a point, label 1"
            )
        check_several_slices("the scan", volume.array.shape)
        i, j, k = volume.array.shape
        grid = self._grid((i, j, k), volume.affine, asked)
        for point in points:
            check_inside("the click", point.index, volume.array.shape)
        limit = self._served.limits.max_voxels
        if math.prod(grid.shape) > limit:
            raise InputRefused(
                "too-large",
                f"at {' x '.join(f'{side:g}' for side in grid.spacing)} mm the scan has "
                f"{' x '.join(str(side) for side in grid.shape)} voxels, this server's limit is {limit}",
                "ask for a larger spacing, or click in a session",
            )
        return grid.from_file(volume.array)[None], [prompt_json(point_to_grid(point, grid)) for point in points]

    def refine(
        self, runners: Mapping[str, Runner], prepared: np.ndarray, task: Task
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Return what was found, as JSON, and logits of all boxes, one after the other."""
        check_prepared(prepared.shape, sequences=1)
        (scan,), patch = prepared, self._config.patch
        i, j, k = scan.shape
        clicks = [volume_click(p, self._method.name) for p in prompts_from_json(list(task.prompts), "the task")]
        for click in clicks:
            if not all(-_BEYOND <= v < side + _BEYOND for v, side in zip(click.index, (i, j, k), strict=True)):
                raise PromptError("a click of the task lies far outside of the grid; run preprocess before refine")

        def read_box(origin: Index) -> np.ndarray:
            return crop(scan, origin, patch)

        refinement = str(self._served.export.plan.refinement)
        refiner = Refiner(self._method, self._config, refinement, runners, (i, j, k), read_box)
        state = State()
        for click in clicks:
            state = refiner.click(state, click)
        pieces = refiner.merge(state)
        found = {
            "pieces": [{"origin": list(piece.origin), "shape": list(piece.logits.shape)} for piece in pieces],
            "crops": len(state.crops),
            "limit_reached": state.limit_reached,
            "iou": [],
        }
        flat = [piece.logits.ravel() for piece in pieces]
        return found, np.concatenate(flat) if flat else np.zeros(0, np.float32)

    def restore(self, found: Task, affine: np.ndarray, result: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the mask (I, J, K) on the scan's own array, and what the report says of volumes alone."""
        if not isinstance(found, FoundInVolume):
            raise PromptError(f"{found.called} is not of a volume; send what refine answers")
        grid = self._grid(found.shape, affine, found.options)
        parts = mask_parts(_pieces(found.pieces, result, grid), grid, self._method.mask_threshold)
        return paint(parts, found.shape), {"crops": found.crops, "limit_reached": found.limit_reached}

    def _grid(self, shape: tuple[int, int, int], affine: np.ndarray, asked: EnsembleOptions) -> Grid:
        return Grid.over(shape, affine, self._config.spacing if asked.spacing is None else asked.spacing)


def _pieces(boxes: Sequence[Box], logits: np.ndarray, grid: Grid) -> list[Piece]:
    check_shape(wire.LOGITS, logits.shape, (sum(math.prod(box.shape) for box in boxes),))
    pieces, start = [], 0
    for box in boxes:
        if not all(-n < o < side for o, n, side in zip(box.origin, box.shape, grid.shape, strict=True)):
            raise PromptError(f"a piece at {list(box.origin)} lies outside of the scan's grid; run refine before")
        size = math.prod(box.shape)
        pieces.append(Piece(box.origin, logits[start : start + size].reshape(box.shape)))
        start += size
    return pieces
