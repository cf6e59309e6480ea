"""SliceSession: one exported method of slices, one volume or picture set once, prompted many times.

    with open_session("exports/medsam") as session:
        session.set_image(volume)
        session.add(Box((40, 52, 31), (88, 97, 31)))
        session.propagate()
        mask = session.mask()

Prompts and masks are in the frame of the volume as given. A prompt belongs to the slice that it lies on; all prompts of
a slice go to the network together. Nothing here needs torch, unless it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samkit.errors import InputRefused, PromptError
from samkit.geometry import Triple, Volume
from samkit.intensities import STORED, Limits, scale_intensities
from samkit.manifest import Manifest
from samkit.methods.method import SliceMethod
from samkit.planes import PlaneView, checked_plane
from samkit.precisions import BASE
from samkit.prompts import Box, Point, Prompt, SliceBox, SlicePoint
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.embeddings import ScanEmbeddings
from samkit.runtime.loops.refinement import NO_LOGIT
from samkit.runtime.loops.slices import Slices, SliceState
from samkit.runtime.session.base import Volumes, taken
from samkit.runtime.session.local_session import LocalSession, check_inside
from samkit.runtime.session.places import check_prompts
from samkit.runtime.session.registration import check_co_registered
from samkit.runtime.session.steps import Step
from samkit.runtime.session.updates import MaskUpdate, Part, changed_part, paint


@dataclass(frozen=True)
class _Opened:
    """What was set: a volume with the view on it, or a picture, which is one slice."""

    slices: Slices
    shape: tuple[int, ...]
    view: PlaneView | None
    voxel_ml: float | None
    limits: tuple[Limits, ...]
    """What became black and white, in the order of the sequences."""


class SliceSession(LocalSession[SliceState]):
    """One method of slices with its runners. Holds one volume or picture, and the history of prompts on it."""

    is_sliced = True

    def __init__(
        self,
        method: SliceMethod,
        config: Any,
        runners: Mapping[str, Runner],
        *,
        plane: str | None = None,
        intensities: tuple[float, float] | None = None,
        precision: str = BASE.name,
        manifest: Manifest | None = None,
    ) -> None:
        """Take over `runners`, one per graph, of the export that `manifest` describes, if it is one.

        `plane` overrides the method's own. `intensities` are what becomes black and white, instead of percentiles of
        each volume.
        """
        super().__init__(method, config, runners, precision, manifest)
        self._slice_method = method
        self._plane = None if plane is None else checked_plane(plane)
        self._intensities = intensities
        self._set: _Opened | None = None

    @property
    def method(self) -> SliceMethod:
        """Return the method's record."""
        return self._slice_method

    @property
    def plane(self) -> str | None:
        """Return along which slices are taken; None for a picture."""
        if self._set is None:
            return self._plane or self.method.plane
        return None if self._set.view is None else self._set.view.plane

    # --- The volume ---

    def _take_volumes(self, volumes: Volumes, embeddings: ScanEmbeddings) -> None:
        """Take one volume for each of the method's sequences.

        Raises InputRefused where a sequence is missing, unknown, without contrast, or not co-registered with the first
        one, or is one slice and another plane was asked for, GeometryError for a singular affine.
        """
        named = self._by_sequence(volumes)
        check_co_registered(named)
        first = next(iter(named.values()))
        i, j, k = first.array.shape
        view = PlaneView.chosen((i, j, k), first.affine, self._plane, self.method.plane)
        scaled = [
            scale_intensities(volume.array, name or "the volume", self._intensities) for name, volume in named.items()
        ]
        channels, limits = [view.slices(array) for array, _ in scaled], tuple(limits for _, limits in scaled)
        self._open(channels, embeddings, shape=(i, j, k), view=view, voxel_ml=first.voxel_ml, limits=limits)

    def _take_picture(self, picture: np.ndarray, embeddings: ScanEmbeddings) -> None:
        """Take a picture (H, W) or (H, W, C) of intensities 0..255, grey, RGB, or one channel for each sequence.

        Grey is a colour, too: where three sequences are wanted it stands for each of them.
        """
        image = np.asarray(picture, np.float32)
        image = image[..., None] if image.ndim == 2 else image
        if len(self.sequences) == 3 and image.shape[2:] == (1,):
            image = np.repeat(image, 3, axis=2)
        wanted = (len(self.sequences),) if self.sequences else (1, 3)
        if image.ndim != 3 or image.shape[2] not in wanted or min(image.shape) < 1:
            named = f" ({', '.join(self.sequences)})" if self.sequences else ""
            raise InputRefused(
                "channels",
                f"the picture is {' x '.join(str(n) for n in picture.shape)}, and {self.method.name} needs rows, "
                f"columns and {' or '.join(str(n) for n in wanted)} channel(s){named}",
                "give a picture of that kind",
            )
        height, width = image.shape[:2]
        channels = [image[None, ..., channel] for channel in range(image.shape[2])]  # views: a copy may be gigabytes
        self._open(channels, embeddings, shape=(height, width), view=None, voxel_ml=None)

    def _open(
        self,
        channels: Sequence[np.ndarray],
        embeddings: ScanEmbeddings,
        *,
        shape: tuple[int, ...],
        view: PlaneView | None,
        voxel_ml: float | None,
        limits: tuple[Limits, ...] = (STORED,),
    ) -> None:
        slices = Slices(self.method, self.config, self._runners, channels, embeddings=embeddings)
        self._set = _Opened(slices, shape, view, voxel_ml, limits)
        self._forget()

    def _limits(self, volumes: Volumes) -> tuple[Limits, ...]:
        """Return what the volumes that are set were scaled by."""
        return self._opened().limits

    def _by_sequence(self, volumes: Volumes) -> dict[str, Volume]:
        """Return the volumes in the method's order; the key is empty where the method takes one grey volume."""
        if list(volumes) == [""] and len(self.sequences) == 1:
            volumes = {self.sequences[0]: volumes[""]}
        if not self.sequences:
            if len(volumes) != 1:
                raise InputRefused(
                    "too-many-sequences",
                    f"{self.method.name} takes one volume, and {len(volumes)} are given: {', '.join(volumes)}",
                    "give the one to segment",
                )
            return dict(volumes)
        needs = f"these weights of {self.method.name} take {_and(self.sequences)}"
        if missing := [name for name in self.sequences if name not in volumes]:
            given = _and([name for name in volumes if name]) or "one volume without a sequence's name"
            raise InputRefused(
                "missing-sequence",
                f"{_and(missing)} missing: {needs}, and given is {given}",
                f"add it, such as {{inputs {missing[0]}=FILE}}",
                options=(f"inputs {missing[0]}=FILE",),
            )
        if unknown := [name for name in volumes if name not in self.sequences]:
            raise InputRefused(
                "unknown-sequence", f"{_and(unknown)} can't be used: {needs}", f"leave {_and(unknown)} out"
            )
        return {name: volumes[name] for name in self.sequences}

    # --- Prompts ---

    def _check_places(self, prompts: Sequence[Prompt]) -> None:
        """Raise PromptError for prompts that the method does not take, InputRefused for those in a wrong place."""
        for prompt in prompts:
            self.place(prompt)

    def by_step(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, ...]]:
        """Return all prompts together: those of a slice go to the network at once."""
        check_prompts(prompts)
        return [tuple(prompts)] if prompts else []

    def _step_on(self, prompts: Sequence[Prompt], *, refine: bool) -> None:
        """Apply prompts at once, each slice's together with those it had before.

        A slice with nothing but background points has no object: its mask is empty, unless the network finds objects
        by itself.
        """
        slices, start, before = self._begin()
        state, touched = slices.prompt(self._state, [self.place(prompt) for prompt in prompts], refine=refine)
        self._finish(state, touched, 0, start, before)

    def _segment_automatically(self, report: Callable[[int, int], object] | None) -> MaskUpdate:
        slices, start, before = self._begin()
        state, found, boxes = slices.segment_automatically(self._state, report)
        return self._finish(state, found, boxes, start, before)

    def propagate(self) -> MaskUpdate:
        """Let the mask of every prompted slice lead on to its neighbours, as every session says."""
        slices, start, before = self._begin()
        if self._opened().view is None:
            raise PromptError(
                "a picture is one slice and has no neighbours; leave {propagate} out", options=("propagate",)
            )
        if "box" not in self.method.prompts:
            raise PromptError(
                f"{self.method.name} takes no box, so no mask can lead on; leave {{propagate}} out",
                options=("propagate",),
            )
        if not self._state.prompts:
            raise PromptError("nothing was prompted that could lead on to other slices; give a point or a box first")
        state, found = slices.propagate(self._state)
        return self._finish(state, found, 0, start, before)

    def channels(self) -> np.ndarray:
        """Return what the method's networks see, (sequence, slices, H, W), float32, 0..255."""
        return np.stack(self._opened().slices.channels)

    @property
    def prompted(self) -> tuple[int, ...]:
        """Return the slices with prompts, as indices of the volume's array across the plane."""
        return tuple(sorted(self._file_index(number) for number in self._state.prompts))

    def _begin(self) -> tuple[Slices, float, dict[str, float]]:
        slices = self._opened().slices
        return slices, time.perf_counter(), dict(slices.seconds)

    def _finish(
        self, state: SliceState, touched: Sequence[int], boxes: int, start: float, before: Mapping[str, float]
    ) -> MaskUpdate:
        opened = self._opened()
        seconds = {stage: spent - before[stage] for stage, spent in opened.slices.seconds.items()}
        voxels = sum(int((answer.labels > 0).sum()) for answer in state.answers.values())
        last = state.answers.get(touched[-1]) if touched else None
        step = Step(
            number=len(self._done) + 1,
            voxels=voxels,
            volume_ml=None if opened.voxel_ml is None else voxels * opened.voxel_ml,
            slices=tuple(sorted(self._file_index(number) for number in touched)),
            boxes=boxes,
            iou=() if last is None else last.iou,
            seconds={**seconds, "total": time.perf_counter() - start},
        )
        self._keep(state, step)
        return self.last_update()

    def place(self, prompt: Prompt) -> tuple[int, SlicePoint | SliceBox]:
        """Return the number of a prompt's slice, and the prompt there [pixels]."""
        opened = self._opened()
        kind = "box" if isinstance(prompt, (Box, SliceBox)) else "point"
        if kind not in self.method.prompts:
            raise PromptError(f"{self.method.name} takes no {kind}; give {taken(self.method)}")
        self._check_structure(prompt.structure)
        if opened.view is None:
            if not isinstance(prompt, (SlicePoint, SliceBox)):
                raise PromptError(
                    "a picture has no third index; a point is {points x,y,+} and a box {boxes x0,y0,x1,y1}",
                    options=("points x,y,+", "boxes x0,y0,x1,y1"),
                )
            placed: tuple[int, SlicePoint | SliceBox] = (0, prompt)
            for x, y in _corners(prompt):
                check_inside(_CALLED[kind], (x, y), opened.shape[::-1])
        else:
            if isinstance(prompt, (SlicePoint, SliceBox)):
                raise PromptError(
                    "two indices are for pictures; in a volume a point is {points i,j,k,+} and a box {boxes "
                    "i0,j0,k0,i1,j1,k1}",
                    options=("points i,j,k,+", "boxes i0,j0,k0,i1,j1,k1"),
                )
            placed = self._place_in_volume(prompt, opened.view, kind)
        for x, y in _corners(placed[1]):
            if not opened.slices.holds(x, y):
                raise InputRefused(
                    "outside-window",
                    f"{self.method.name} sees only the part of a slice around what is not zero, and {_CALLED[kind]} "
                    "lies outside",
                    "prompt inside that part",
                )
        return placed

    def _place_in_volume(self, prompt: Point | Box, view: PlaneView, kind: str) -> tuple[int, SlicePoint | SliceBox]:
        ends: tuple[Triple, ...] = (prompt.index,) if isinstance(prompt, Point) else (prompt.first, prompt.last)
        for end in ends:
            check_inside(_CALLED[kind], end, view.file_shape)
        found = view.to_slices(np.array(ends))
        # Halves go up, with their round-off, so that every orientation of a scan finds the same slice
        numbers = np.clip(np.floor(found[:, 0] + 0.5 + 1e-3), 0, view.count - 1).astype(int)
        if isinstance(prompt, Point):
            return int(numbers[0]), SlicePoint(float(found[0, 1]), float(found[0, 2]), prompt.label, prompt.structure)
        if numbers[0] != numbers[1]:
            across = view.axes[0]
            axis, first, last = "ijk"[across], ends[0][across], ends[-1][across]
            raise InputRefused(
                "box-not-flat",
                f"the box goes from {axis} {first:g} to {last:g}, and {view.plane} slices are flat along {axis}",
                f"give both corners the same {axis} (and {{propagate}} for the neighbours), or another {{plane}}",
                options=("propagate", "plane"),
            )
        (x0, y0), (x1, y1) = found[:, 1:].min(axis=0), found[:, 1:].max(axis=0)
        return int(numbers[0]), SliceBox(float(x0), float(y0), float(x1), float(y1), prompt.structure)

    def _check_structure(self, name: str) -> None:
        if name and not self.structures:
            raise PromptError(
                f"{self.method.name} tells no structures apart; give {{points}} or {{boxes}} without a structure",
                options=("points", "boxes"),
            )
        if name and name not in self.structures:
            raise PromptError(
                f"the structure '{name}' is not known; those of {self.method.name} are {', '.join(self.structures)}"
            )

    # --- Results ---

    def labels(self) -> np.ndarray:
        """Return structure numbers, uint8, on the volume's own array or the picture; 1 where nothing is told apart."""
        return _labels(self._opened(), self._state)

    def _update_since(self, before: SliceState | None, step: Step | None) -> MaskUpdate:
        opened, now, then = self._opened(), self._state, SliceState() if before is None else before
        present = self._done[-1][1] if self._done else None
        empty = None if opened.voxel_ml is None else 0.0
        return MaskUpdate(
            lambda: _labels(opened, now),
            lambda: _change(opened, then, now),
            volume_ml=empty if present is None else present.volume_ml,
            iou=() if present is None else present.iou,
            step=step,
        )

    def logits(self) -> np.ndarray:
        """Return the foreground's logits, float32, on the volume's own array or the picture.

        Very negative where nothing was asked or all is zero.
        """
        scores = {number: answer.scores for number, answer in self._state.answers.items()}
        return _whole(self._opened(), scores, np.full(self._opened().shape, NO_LOGIT, np.float32))

    def _file_index(self, number: int) -> int:
        view = self._opened().view
        return number if view is None else view.file_index(number)

    @property
    def _state(self) -> SliceState:
        return self._done[-1][0] if self._done else SliceState()

    def _opened(self) -> _Opened:
        return self._present(self._set)

    def _scan_arrays(self) -> list[np.ndarray]:
        return list(self._opened().slices.channels)

    def close(self) -> None:
        """Let go of runners and volume."""
        super().close()
        self._set = None


def _labels(opened: _Opened, state: SliceState) -> np.ndarray:
    labels = {number: answer.labels for number, answer in state.answers.items()}
    return _whole(opened, labels, np.zeros(opened.shape, np.uint8))


def _whole(opened: _Opened, parts: Mapping[int, np.ndarray], out: np.ndarray) -> np.ndarray:
    """Write slices into `out`, which is on the volume's own array, and return it."""
    stack = out[None] if opened.view is None else opened.view.slices(out)  # a view: what is written there is in `out`
    for number, part in parts.items():
        stack[number] = part
    return out


def _change(opened: _Opened, before: SliceState, after: SliceState) -> Part:
    """Return the box in which two states differ, and the labels of `after` there."""
    region, _ = changed_part(_parts(opened, before, after), _parts(opened, after, before), len(opened.shape))
    # Between two slices that changed lie others, with labels of their own
    everything = _parts(opened, after, SliceState())
    return region, paint(everything, [side.stop - side.start for side in region], [side.start for side in region])


def _parts(opened: _Opened, state: SliceState, other: SliceState) -> list[Part]:
    """Return the labels of those slices on which two states differ, as regions of the volume's own array."""
    parts: list[Part] = []
    for number, answer in state.answers.items():
        if other.answers.get(number) is answer:
            continue
        if opened.view is None:
            parts.append(((slice(0, opened.shape[0]), slice(0, opened.shape[1])), answer.labels))
        else:
            parts.append(opened.view.part(number, answer.labels))
    return parts


_CALLED = {"point": "the click", "box": "a corner of the box"}


def _corners(prompt: SlicePoint | SliceBox) -> tuple[tuple[float, float], ...]:
    """Return the places (x, y) that a prompt names."""
    if isinstance(prompt, SlicePoint):
        return ((prompt.x, prompt.y),)
    return (prompt.x0, prompt.y0), (prompt.x1, prompt.y1)


def _and(names: Sequence[str]) -> str:
    """Return names as one reads them.

    >>> _and(["t1c", "t2w", "t2f"])
    't1c, t2w and t2f'
    """
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
