"""The loop over slices: no files, no orientation, no backend. It is to 2D methods what `refinement` is to 3D ones.

A slice is encoded when something is first asked of it, and its embedding is kept for the next prompt. What is all zero,
around a head or beyond a scan's field, is background and never goes through a network.

Without prompts slices go through the encoder in batches. With them a slice can lead on to its neighbours: each part of
its mask becomes a box, a little larger, that prompts the next slice, until nothing is left of the object.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage

from samkit.errors import InputRefused
from samkit.methods.method import Answer, GraphSpec, SliceMethod
from samkit.placement import Placement
from samkit.planes import Window
from samkit.prompts import FOREGROUND, SliceBox, SlicePoint, SlicePrompts
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.embeddings import ScanEmbeddings, own_embeddings
from samkit.runtime.loops.refinement import NO_LOGIT
from samkit.runtime.loops.timing import timed
from samkit.tensors import Tensor, on_host

MIN_PIXELS = 5
"""A part of a mask with fewer pixels leads to no neighbour."""
GROWTH = 0.1
"""How much longer and wider a mask's box gets before it prompts the next slice, as a part of its sides."""
MARGIN = 2.0
"""Pixels by which each side of it moves out besides."""
BATCH_PIXELS = 2**20
"""Pixels of a batch of encoder inputs: four of 512 x 512. The memory of global attention grows with their square."""

_EDGE = 0.501
"""Pixels from the centre of an outermost pixel to its edge; world coordinates come with round-off."""
_EIGHT_NEIGHBOURS = np.ones((3, 3), int)


@dataclass(frozen=True)
class Found:
    """What was found on a slice that nobody prompted."""

    number: int
    answer: Answer
    boxes: int
    """Boxes of the detector, where the method has one."""


@dataclass(frozen=True)
class _EncodedSlice:
    embeddings: Tensor
    """(1, C, g, g)"""
    placement: Placement
    """Where the slice lies in the network's input."""

    @property
    def nbytes(self) -> int:
        return self.embeddings.nbytes


@dataclass(frozen=True)
class SliceState:
    """All that was asked about the slices of a volume, and said; slices are numbered as `PlaneView` does."""

    prompts: Mapping[int, SlicePrompts] = field(default_factory=dict)
    answers: Mapping[int, Answer] = field(default_factory=dict)

    def labels(self, count: int, shape: tuple[int, int]) -> np.ndarray:
        """Return the label map (slices, H, W), uint8, of all answers."""
        out = np.zeros((count, *shape), np.uint8)
        for number, answer in self.answers.items():
            out[number] = answer.labels
        return out


class Slices:
    """One method over the slices of one volume, or over one picture."""

    def __init__(
        self,
        method: SliceMethod,
        config: Any,
        runners: Mapping[str, Runner],
        channels: Sequence[np.ndarray],
        *,
        embeddings: ScanEmbeddings | None = None,
    ) -> None:
        """Take `channels`, one array (slices, H, W) of intensities 0..255 for each sequence or colour."""
        self._method = method
        self._config = config
        self._runners = runners
        self.channels = channels
        self._structures = method.structures(config)
        self.count = len(channels[0])
        shape = channels[0].shape[1:]
        wanted = method.window(config)
        self._window = (
            Window.whole((shape[0], shape[1]))
            if wanted is None
            else Window.around(np.any([channel.any(axis=0) for channel in channels], axis=0)[None], wanted)
        )
        self._embeddings = own_embeddings() if embeddings is None else embeddings
        self.seconds: dict[str, float] = {"prepare": 0.0, "propose": 0.0, "encode": 0.0, "decode": 0.0}
        """Time spent so far, by stage."""

    # --- One slice ---

    def is_empty(self, number: int) -> bool:
        """Return whether all that a network would see of a slice is zero."""
        return not any(self._window.cut(channel[number]).any() for channel in self.channels)

    def holds(self, x: float, y: float) -> bool:
        """Return whether a network would see the pixel (x, y) of a slice."""
        (top, left), (height, width) = self._window.origin, self._window.shape
        return -_EDGE <= y - top <= height - 1 + _EDGE and -_EDGE <= x - left <= width - 1 + _EDGE

    def answer(self, number: int, prompts: SlicePrompts) -> Answer:
        """Return the method's answer to `prompts` [pixels of the slice]; raises InputRefused for an empty slice."""
        if self.is_empty(number):
            raise InputRefused(
                "empty-slice", "the slice of this prompt holds nothing but zeros", "prompt a slice that shows something"
            )
        encoded = self._embeddings.find_or_make(number, lambda: self._encode_slice(number))
        return self._answer(encoded, self._in_window(prompts))

    # --- Steps: from one state to the next ---

    def prompt(
        self, state: SliceState, placed: Sequence[tuple[int, SlicePoint | SliceBox]], *, refine: bool = False
    ) -> tuple[SliceState, list[int]]:
        """Return the state after more prompts, each with its slice's number, and the slices that they touch.

        All prompts of a slice go to the network together. With `refine` the slice's masks so far go in, too. A slice
        with nothing but background points has no object: its mask is empty, unless the network finds objects by itself.
        """
        all_prompts, answers = dict(state.prompts), dict(state.answers)
        touched = sorted({number for number, _ in placed})
        for number in touched:
            old = all_prompts.get(number, SlicePrompts())
            new = [prompt for where, prompt in placed if where == number]
            everything = SlicePrompts(
                old.points + tuple(p for p in new if isinstance(p, SlicePoint)),
                old.boxes + tuple(b for b in new if isinstance(b, SliceBox)),
            )
            all_prompts[number] = everything
            mask = answers[number].low_res if refine and number in state.prompts and number in answers else None
            answers.pop(number, None)
            # A network behind a detector knows no object but those it is shown
            decides = self._method.is_automatic and self._method.propose is None
            if decides or everything.boxes or any(p.label == FOREGROUND for p in everything.points):
                answers[number] = self.answer(number, replace(everything, low_res=mask))
        return SliceState(all_prompts, answers), touched

    def segment_automatically(
        self, state: SliceState, report: Callable[[int, int], object] | None = None
    ) -> tuple[SliceState, list[int], int]:
        """Return the state after the method segmented every slice without prompts, those slices, and boxes found.

        `report` is called with slices done and their number.
        """
        answers = {number: answer for number, answer in state.answers.items() if number in state.prompts}
        touched, boxes = [], 0
        for one in self.automatic(n for n in range(self.count) if n not in state.prompts):
            answers[one.number] = one.answer
            boxes += one.boxes
            touched.append(one.number)
            if report is not None:
                report(one.number + 1, self.count)
        return SliceState(state.prompts, answers), touched, boxes

    def propagate(self, state: SliceState) -> tuple[SliceState, list[int]]:
        """Return the state after every prompted slice's mask led on to its neighbours, and the slices it led to."""
        starts = {number: state.answers[number] for number in state.prompts if number in state.answers}
        found = self.neighbours(starts, state.prompts.keys())
        return SliceState(state.prompts, {**state.answers, **found}), sorted(found)

    # --- Many slices ---

    def automatic(self, numbers: Iterable[int]) -> Iterator[Found]:
        """Yield what the method finds by itself on each slice, leaving out empty ones and those where it finds no box.

        Memory holds one batch of embeddings at a time.
        """
        batch = encoder_batch(self._runners["image_encoder"].graph)
        waiting = self._proposed(numbers)
        while taken := list(itertools.islice(waiting, batch)):
            prepared = [self._prepare(self._image(number)) for number, _ in taken]
            embeddings = self._encode([image for image, _ in prepared])
            # A batch is taken apart on the host: each of its rows is used once
            rows = [embeddings] if len(taken) == 1 else np.split(on_host(embeddings), len(taken))
            for row, (number, prompts), (_, placement) in zip(rows, taken, prepared, strict=True):
                answer = self._answer(_EncodedSlice(row, placement), prompts)
                # The next prompt's mask, of a slice that had none: megabytes for each slice
                yield Found(number, replace(answer, low_res=None), len(prompts.boxes))

    def _proposed(self, numbers: Iterable[int]) -> Iterator[tuple[int, SlicePrompts]]:
        """Yield the slices worth encoding, with the detector's prompts [pixels of the window]."""
        for number in numbers:
            if self.is_empty(number):
                continue
            if self._method.propose is None:
                yield number, SlicePrompts()
                continue
            with timed(self.seconds, "propose"):
                prompts = self._method.propose(self._run, self._image(number), self._config)
            if prompts:
                yield number, prompts

    def neighbours(self, starts: Mapping[int, Answer], stops: Collection[int]) -> dict[int, Answer]:
        """Return the answers on further slices, both ways from each of `starts` and up to the next of `stops`.

        Where two ways meet, the slice gets what either of them says.
        """
        found: dict[int, Answer] = {}
        for (start, first), step in itertools.product(sorted(starts.items()), (-1, 1)):
            number, boxes = start + step, self.boxes_of(first.labels)
            while 0 <= number < self.count and number not in stops and boxes and not self.is_empty(number):
                answer = self.answer(number, boxes)
                boxes = self.boxes_of(answer.labels)
                if boxes:
                    kept = replace(answer, low_res=None)  # as in `automatic`
                    found[number] = either(found[number], kept) if number in found else kept
                number += step
        return found

    def boxes_of(self, labels: np.ndarray) -> SlicePrompts:
        """Return one enlarged box [pixels] around each connected part of a label map (H, W), small parts left out."""
        boxes = []
        height, width = labels.shape
        for value in np.unique(labels[labels > 0]):
            parts, count = ndimage.label(labels == value, structure=_EIGHT_NEIGHBOURS)
            sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
            for place, size in zip(ndimage.find_objects(parts), sizes, strict=True):
                if size < MIN_PIXELS:
                    continue
                (y0, y1), (x0, x1) = (_enlarged(side, most) for side, most in zip(place, (height, width), strict=True))
                boxes.append(SliceBox(x0, y0, x1, y1, self._structures[value - 1] if self._structures else ""))
        return SlicePrompts(boxes=tuple(boxes))

    # --- Steps ---

    def _image(self, number: int) -> np.ndarray:
        """Return what a network sees of a slice, (h, w, C) float32."""
        return np.stack([self._window.cut(channel[number]) for channel in self.channels], axis=-1)

    def _in_window(self, prompts: SlicePrompts) -> SlicePrompts:
        """Return prompts [pixels of the slice] as prompts [pixels of the window]."""
        top, left = self._window.origin
        points = tuple(SlicePoint(p.x - left, p.y - top, p.label, p.structure) for p in prompts.points)
        boxes = tuple(SliceBox(b.x0 - left, b.y0 - top, b.x1 - left, b.y1 - top, b.structure) for b in prompts.boxes)
        return replace(prompts, points=points, boxes=boxes)

    def _prepare(self, image: np.ndarray) -> tuple[np.ndarray, Placement]:
        with timed(self.seconds, "prepare"):
            return self._method.preprocess(image, self._config)

    def _encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return `image_embeddings` (B, C, g, g), which stay on the encoder's device."""
        with timed(self.seconds, "encode"):
            feed = {"image": np.stack(images)}
            return self._runners["image_encoder"].run_keeping(feed, ("image_embeddings",))["image_embeddings"]

    def _encode_slice(self, number: int) -> _EncodedSlice:
        image, placement = self._prepare(self._image(number))
        return _EncodedSlice(self._encode([image]), placement)

    def _answer(self, encoded: _EncodedSlice, prompts: SlicePrompts) -> Answer:
        """Return the answer to prompts [pixels of the window] on the whole slice."""
        with timed(self.seconds, "decode"):
            answer = self._method.answer(self._run, encoded.embeddings, encoded.placement, prompts, self._config)
        paste = self._window.paste
        return replace(answer, labels=paste(answer.labels, 0), scores=paste(answer.scores, NO_LOGIT))

    def _run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return self._runners[graph].run(inputs)


def encoder_batch(graph: GraphSpec) -> int:
    """Return how many slices go through an encoder of slices at once."""
    spec = graph.inputs[0]
    return max(1, min(spec.axes[0].max, BATCH_PIXELS // spec.axes[-1].max ** 2))


def either(one: Answer, other: Answer) -> Answer:
    """Return the union of two answers about a slice; where both are sure, the one with the larger logit decides."""
    takes_other = other.scores > one.scores
    return Answer(
        np.where(takes_other, other.labels, one.labels),
        np.where(takes_other, other.scores, one.scores),
    )


def _enlarged(side: slice, size: int) -> tuple[float, float]:
    """Return first and last pixel of a box's side after it grew, within 0 to `size` - 1."""
    first, last = float(side.start), float(side.stop - 1)
    out = GROWTH / 2 * (side.stop - side.start) + MARGIN
    return max(first - out, 0.0), min(last + out, size - 1.0)
