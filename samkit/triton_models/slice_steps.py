"""SliceSteps: what the steps of the ensemble do with slices: intensities and planes, prompts, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from samkit.errors import PromptError
from samkit.geometry import Volume
from samkit.methods.method import SliceMethod
from samkit.planes import PlaneView
from samkit.prompts import Box, Point, Prompt, SliceBox, SlicePoint, prompt_json, prompts_from_json
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.slices import Slices, SliceState
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.readers import read_count
from samkit.runtime.protocol.requests import EnsembleOptions
from samkit.runtime.session.slice_session import SliceSession
from samkit.triton_models.served import Served
from samkit.triton_models.tasks import FoundInSlices, Task, check_prepared, check_shape


class SliceSteps:
    """The three steps; `prepared` is (sequence, slices, H, W), 0..255, as a reader expects, the result labels of it."""

    def __init__(self, served: Served, method: SliceMethod) -> None:
        """Work for what is served, whose method this is."""
        self._served, self._method = served, method

    def prepare(
        self, asked: EnsembleOptions, volumes: Mapping[str, Volume], prompts: Sequence[Prompt]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the whole scan as the networks see it, and prompts on its slices, as JSON."""
        method = self._method
        session = SliceSession(
            method, self._served.config, {}, plane=asked.plane, intensities=asked.intensities,
            precision=self._served.precision, manifest=self._served.export.manifest,
        )  # fmt: skip
        session.take(volumes)
        placed = [session.place(prompt) for prompt in prompts]
        if not placed and not method.is_automatic:
            raise PromptError(f"{method.name} segments nothing without a prompt; send a point or a box")
        if asked.propagate and ("box" not in method.prompts or not placed):
            raise PromptError(f"{method.name} was given no prompt that could lead on; leave propagate out")
        return session.channels(), [{"slice": number, **prompt_json(prompt)} for number, prompt in placed]

    def refine(
        self, runners: Mapping[str, Runner], prepared: np.ndarray, task: Task
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Return what was found, as JSON, and labels (slices, H, W)."""
        sequences = self._method.sequences(self._served.config)
        check_prepared(prepared.shape, sequences=max(1, len(sequences)))
        slices = Slices(self._method, self._served.config, runners, list(prepared))
        state, boxes = SliceState(), 0
        touched: list[int] = []
        if task.prompts:
            state, touched = slices.prompt(state, [_placed(entry, prepared.shape[1]) for entry in task.prompts])
        if self._method.is_automatic:
            state, touched, boxes = slices.segment_automatically(state)
        if task.options.propagate:
            state, touched = slices.propagate(state)
        last = state.answers.get(touched[-1]) if touched else None
        found = {"boxes": boxes, "slices": sorted(state.answers), "iou": [] if last is None else list(last.iou)}
        _, _, height, width = prepared.shape
        return found, state.labels(slices.count, (height, width))

    def restore(self, found: Task, affine: np.ndarray, result: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the mask (I, J, K) on the scan's own array, and what the report says of slices alone."""
        if not isinstance(found, FoundInSlices):
            raise PromptError(f"{found.called} is not of slices; send what refine answers")
        view = PlaneView.chosen(found.shape, affine, found.options.plane, self._method.plane)
        check_shape(wire.LABELS, result.shape, (view.count, *view.shape))
        if found.slices and max(found.slices) >= view.count:
            raise PromptError(f"slice {max(found.slices)} is none of the scan's {view.count}; run refine before")
        across = tuple(sorted(view.file_index(number) for number in found.slices))
        return np.ascontiguousarray(view.volume(result)), {"boxes": found.boxes, "slices": across}


def _placed(entry: Mapping[str, Any], count: int) -> tuple[int, SlicePoint | SliceBox]:
    (prompt,) = prompts_from_json([{key: value for key, value in entry.items() if key != "slice"}], "the task")
    if isinstance(prompt, (Point, Box)):
        raise PromptError("the task has a prompt with three indices, and a slice has two; run preprocess before refine")
    number = read_count(entry.get("slice"), "slice")
    if number >= count:
        raise PromptError(f"slice {number} is none of the scan's {count}; run preprocess before refine")
    return number, prompt
