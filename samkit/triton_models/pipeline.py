"""The ensemble's three steps on arrays: what comes in raw, what the networks see, what goes out.

    preprocess   a scan and prompts -> `prepared`, the whole scan as the method's networks see it, and the task
    refine       runs the detector, encoder and decoder over it: the loop of `refinement.py`, or that of `slices.py`
    postprocess  the mask on the scan's own array

    volumes      prepared (1, I, J, K) on the network's grid; refine gives logits of boxes of that grid
    slices       prepared (sequence, slices, H, W), 0..255, turned as a reader expects; refine gives labels like that

They are the steps of a session, by the same functions, so that their mask is the session's. What depends on a prompt's
place, such as the z-score of a crop or the resize of a slice, is done in refine, where the place is known.

A `task` is JSON: the scan's geometry, the options, and the prompts in the frame of `prepared`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from samkit.errors import ExportError, InputRefused, PromptError
from samkit.geometry import Grid, Index, crop, voxel_ml_of
from samkit.methods.method import SliceMethod, VolumeMethod
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.planes import PlaneView
from samkit.prompts import FOREGROUND, Box, Point, SliceBox, SlicePoint, prompt_json, prompts_from_json
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.refinement import Piece, Refiner, State
from samkit.runtime.loops.slices import Slices, SliceState
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.requests import EnsembleOptions
from samkit.runtime.session.local_session import check_inside
from samkit.runtime.session.slice_session import SliceSession
from samkit.runtime.session.updates import paint
from samkit.runtime.session.volume_session import VolumeSession, as_point, mask_parts, point_to_grid
from samkit.triton_models.scans import Tensors, in_voxels, read_scan, volumes_of
from samkit.triton_models.served import Served

# --- Preprocess ---


def preprocess(served: Served, tensors: Tensors, prompts: object, options: object) -> tuple[np.ndarray, dict[str, Any]]:
    """Return `prepared`, float32, and the task.

    Raises InputRefused, GeometryError, PromptError and TensorMismatchError for what a session would not take.
    """
    started = time.perf_counter()
    if not isinstance(options, dict):
        raise PromptError(f"the options are {options!r:.100}, needed is a JSON object; e.g. {{}}")
    asked = EnsembleOptions.from_json(options)
    array, affine = read_scan(tensors, asked.sequences, served.limits.max_voxels)
    given = in_voxels(prompts_from_json(prompts, "the request"), affine, world=asked.world)
    volumes = volumes_of(array, affine, asked.sequences)
    session = served.session({}, asked)
    if isinstance(session, SliceSession):
        session.set_image(volumes, automatic=False)
        placed = [session.place(prompt) for prompt in given]
        if not placed and not session.is_automatic:
            raise PromptError(f"{served.method.name} segments nothing without a prompt; send a point or a box")
        if asked.propagate and ("box" not in session.method.prompts or not placed):
            raise PromptError(f"{served.method.name} was given no prompt that could lead on; leave propagate out")
        prepared = session.channels()
        task: dict[str, Any] = {"prompts": [{"slice": n, **prompt_json(prompt)} for n, prompt in placed]}
    elif asked.propagate:
        raise PromptError(
            f"propagate is for methods of slices, and {served.method.name} works on volumes; leave it out"
        )
    else:
        prepared, points = _on_grid(session, volumes, given, served.limits.max_voxels)
        task = {"prompts": [prompt_json(point) for point in points]}
    task |= {
        "shape": list(array.shape[1:]),
        "affine": affine.tolist(),
        "options": asked.to_json(),
        "seconds": {"preprocess": time.perf_counter() - started},
    }
    return prepared, task


def _on_grid(
    session: VolumeSession, volumes: Mapping[str, Any], given: list[Any], max_voxels: int
) -> tuple[np.ndarray, list[Point]]:
    """Return the whole scan on the network's grid (1, I, J, K), and clicks in its indices.

    Raises InputRefused for a grid of more than `max_voxels`, which a session would never make as a whole.
    """
    name = session.method.name
    if len(volumes) != 1:
        raise PromptError(f"{name} takes one scan, and {len(volumes)} are given; send one")
    (volume,) = volumes.values()
    points = [as_point(prompt, name) for prompt in given]
    if not any(point.label == FOREGROUND for point in points):
        raise PromptError(f"none of {len(points)} click(s) is on the object, {name} needs one; send a point, label 1")
    grid = session.grid_over(volume)
    for point in points:
        check_inside("the click", point.index, volume.array.shape)
    if math.prod(grid.shape) > max_voxels:
        raise InputRefused(
            "too-large",
            f"at {' x '.join(f'{side:g}' for side in grid.spacing)} mm the scan has "
            f"{' x '.join(str(side) for side in grid.shape)} voxels, this server's limit is {max_voxels}",
            "ask for a larger spacing, or click in a session",
        )
    return grid.from_file(volume.array)[None], [point_to_grid(point, grid) for point in points]


# --- Refine ---


def refine(
    served: Served, runners: Mapping[str, Runner], prepared: np.ndarray, task: Mapping[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what was found, as JSON, and logits (all boxes, one after the other) or labels (slices, H, W)."""
    started = time.perf_counter()
    if isinstance(served.method, SliceMethod):
        found, result = _refine_slices(served, runners, prepared, task)
    else:
        found, result = _refine_volume(served, runners, prepared[0], task)
    seconds = {**task["seconds"], "refine": time.perf_counter() - started}
    return {**task, **found, "seconds": seconds}, result


def _refine_volume(
    served: Served, runners: Mapping[str, Runner], prepared: np.ndarray, task: Mapping[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    method, config = served.method, served.config
    if not isinstance(method, VolumeMethod) or not isinstance(config, Sam3DConfig):
        raise ExportError(f"{method.name} is neither a method of slices nor of volumes; upgrade samkit")
    i, j, k = prepared.shape

    def read_box(origin: Index) -> np.ndarray:
        return crop(prepared, origin, config.patch)

    refiner = Refiner(method, config, str(served.export.plan.refinement), runners, (i, j, k), read_box)
    state = State()
    for point in prompts_from_json(task["prompts"], "the task"):
        state = refiner.click(state, as_point(point, method.name))
    pieces = refiner.merge(state)
    found = {
        "pieces": [{"origin": list(piece.origin), "shape": list(piece.logits.shape)} for piece in pieces],
        "crops": len(state.crops),
        "limit_reached": state.limit_reached,
        "iou": [],
    }
    flat = [piece.logits.ravel() for piece in pieces]
    return found, np.concatenate(flat) if flat else np.zeros(0, np.float32)


def _refine_slices(
    served: Served, runners: Mapping[str, Runner], prepared: np.ndarray, task: Mapping[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    method = served.method
    if not isinstance(method, SliceMethod):
        raise ExportError(f"{method.name} is no method of slices; upgrade samkit")
    slices = Slices(method, served.config, runners, list(prepared))
    state, boxes = SliceState(), 0
    touched: list[int] = []
    if task["prompts"]:
        state, touched = slices.prompt(state, [_placed(entry) for entry in task["prompts"]])
    if method.is_automatic:
        state, touched, boxes = slices.segment_automatically(state)
    if EnsembleOptions.from_json(task["options"]).propagate:
        state, touched = slices.propagate(state)
    last = state.answers.get(touched[-1]) if touched else None
    found = {"boxes": boxes, "slices": sorted(state.answers), "iou": [] if last is None else list(last.iou)}
    _, _, height, width = prepared.shape
    return found, state.labels(slices.count, (height, width))


def _placed(entry: Mapping[str, Any]) -> tuple[int, SlicePoint | SliceBox]:
    (prompt,) = prompts_from_json([{key: value for key, value in entry.items() if key != "slice"}], "the task")
    if isinstance(prompt, (Point, Box)):
        raise PromptError("the task has a prompt with three indices, and a slice has two; run preprocess before refine")
    return int(entry["slice"]), prompt


# --- Postprocess ---


def postprocess(served: Served, found: Mapping[str, Any], result: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the mask (I, J, K), uint8, on the scan's own array, and the report on it."""
    started = time.perf_counter()
    affine, (i, j, k) = np.array(found["affine"], np.float64), found["shape"]
    wire.check_size((1, i, j, k), served.limits.max_voxels)
    session = served.session({}, EnsembleOptions.from_json(found["options"]))
    slices: dict[str, Any] = {}
    if isinstance(session, SliceSession):
        view = PlaneView.of((i, j, k), affine, str(session.plane))
        mask = np.ascontiguousarray(view.volume(result))
        slices = {"slices": sorted(view.file_index(number) for number in found["slices"])}
    else:
        grid = Grid.over((i, j, k), affine, session.spacing)
        parts = mask_parts(_pieces(found["pieces"], result), grid, session.method.mask_threshold)
        mask = paint(parts, (i, j, k))
    voxels = int(np.count_nonzero(mask))
    kept = {key: found[key] for key in ("crops", "limit_reached", "boxes", "iou") if key in found}
    report = {
        "method": served.method.name,
        "precision": served.precision,
        "manifest_sha256": served.digest,
        "voxels": voxels,
        "volume_ml": voxels * voxel_ml_of(affine),
        **kept,
        **slices,
        "warnings": list(session.warnings),
        "seconds": {**found["seconds"], "postprocess": time.perf_counter() - started},
    }
    return mask, report


def _pieces(entries: list[Mapping[str, Any]], logits: np.ndarray) -> list[Piece]:
    pieces, start = [], 0
    for entry in entries:
        size = int(np.prod(entry["shape"]))
        i, j, k = entry["origin"]
        pieces.append(Piece((i, j, k), logits[start : start + size].reshape(entry["shape"])))
        start += size
    return pieces
