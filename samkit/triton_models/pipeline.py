"""The ensemble's three steps on arrays: what comes in raw, what the networks see, what goes out.

    preprocess   a scan and prompts -> `prepared`, the whole scan as the method's networks see it, and the task
    refine       runs the detector, encoder and decoder over it: the loop of `refinement.py`, or that of `slices.py`
    postprocess  the mask on the scan's own array

What they do with volumes is in volume_steps.py, with slices in slice_steps.py: the steps of a session, by the same
functions, so that their mask is the session's. What depends on a prompt's place, such as the z-score of a crop or the
resize of a slice, is done in refine, where the place is known.

A `task` is JSON: the scan's geometry, the options, and the prompts in the frame of `prepared`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from samkit.errors import ExportError, PromptError
from samkit.geometry import Volume, voxel_ml_of
from samkit.methods.method import SliceMethod, VolumeMethod
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.prompts import Prompt
from samkit.runtime.backends.runner import Runner
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.answers import Report
from samkit.runtime.protocol.readers import read_prompts
from samkit.runtime.protocol.requests import EnsembleOptions
from samkit.triton_models.scans import Tensors, in_voxels, read_scan, volumes_of
from samkit.triton_models.served import Served
from samkit.triton_models.slice_steps import SliceSteps
from samkit.triton_models.tasks import FoundInSlices, FoundInVolume, Task
from samkit.triton_models.volume_steps import VolumeSteps


class Steps(Protocol):
    """What the steps do with one kind of method."""

    def prepare(
        self, asked: EnsembleOptions, volumes: Mapping[str, Volume], prompts: Sequence[Prompt]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the whole scan as the networks see it, float32, and the prompts in its frame, as JSON."""

    def refine(
        self, runners: Mapping[str, Runner], prepared: np.ndarray, task: Task
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Return what was found, as JSON, and the result in the frame of `prepared`."""

    def restore(self, found: Task, affine: np.ndarray, result: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the mask (I, J, K), uint8, on the scan's own array, and the report's keys of this kind alone."""


def steps_of(served: Served) -> Steps:
    """Return the steps of what is served; raises ExportError for a kind of method that this samkit does not know."""
    method, config = served.method, served.config
    if isinstance(method, SliceMethod):
        return SliceSteps(served, method)
    if isinstance(method, VolumeMethod) and isinstance(config, Sam3DConfig):
        return VolumeSteps(served, method, config)
    raise ExportError(f"{method.name} is neither a method of slices nor of volumes; upgrade samkit")


def preprocess(served: Served, tensors: Tensors, prompts: object, options: object) -> tuple[np.ndarray, dict[str, Any]]:
    """Return `prepared`, float32, and the task.

    Raises InputRefused, GeometryError, OptionError, PromptError and TensorMismatchError for what a session would not
    take.
    """
    started = time.perf_counter()
    if not isinstance(options, dict):
        raise PromptError(f"the options are {options!r:.100}, needed is a JSON object; e.g. {{}}")
    asked = EnsembleOptions.from_json(options)
    array, affine = read_scan(tensors, asked.sequences, served.limits.max_voxels)
    given = in_voxels(read_prompts(prompts, "prompts"), affine, array.shape[1:], world=asked.world)
    served.session({}, asked)  # or raises for options of the other kind
    prepared, placed = steps_of(served).prepare(asked, volumes_of(array, affine, asked.sequences), given)
    i, j, k = array.shape[1:]
    task = Task(
        prompts=tuple(placed),
        shape=(i, j, k),
        affine=tuple(map(tuple, affine.tolist())),
        options=asked,
        seconds={"preprocess": time.perf_counter() - started},
    )
    return prepared, task.to_json()


def refine(
    served: Served, runners: Mapping[str, Runner], prepared: np.ndarray, task: object
) -> tuple[dict[str, Any], np.ndarray]:
    """Return what was found, as JSON, and logits (all boxes, one after the other) or labels (slices, H, W).

    Raises PromptError and TensorMismatchError for what `preprocess` would not have answered.
    """
    started = time.perf_counter()
    asked = Task.from_json(task)
    found, result = steps_of(served).refine(runners, prepared, asked)
    seconds = {**asked.seconds, "refine": time.perf_counter() - started}
    return {**asked.to_json(), **found, "seconds": seconds}, result


def postprocess(served: Served, found: object, result: np.ndarray) -> tuple[np.ndarray, Report]:
    """Return the mask (I, J, K), uint8, on the scan's own array, and the report on it.

    Raises PromptError and TensorMismatchError for what `refine` would not have answered.
    """
    started = time.perf_counter()
    told = (FoundInSlices if served.is_slices else FoundInVolume).from_json(found)
    affine, asked = np.array(told.affine, np.float64), told.options
    wire.check_size((1, *told.shape), served.limits.max_voxels)
    mask, of_its_kind = steps_of(served).restore(told, affine, result)
    voxels = int(np.count_nonzero(mask))
    report = Report(
        method=served.method.name,
        precision=served.precision,
        manifest_sha256=served.digest,
        voxels=voxels,
        volume_ml=voxels * voxel_ml_of(affine),
        iou=told.iou,
        warnings=served.session({}, asked).warnings,
        seconds={**told.seconds, "postprocess": time.perf_counter() - started},
        **of_its_kind,
    )
    return mask, report
