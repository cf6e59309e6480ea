"""Slices to train and validate on, drawn so that a resumed run sees what an uninterrupted one would.

As in `samples.py`, a training sample has a key, and all that is random about it follows from the recipe's seed and that
key. Preprocessing is inference's own: the window around what is not zero, and the method's `preprocess`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from samkit.errors import InputRefused
from samkit.methods.method import SliceMethod, SliceRecipe
from samkit.placement import Placement
from samkit.planes import Window
from samkit.prompts import BOX_FIRST, BOX_LAST, SliceBox, SlicePoint, SlicePrompts
from samkit.training.augmentation import augment
from samkit.training.slice_cases import LoadedCase, SliceCase
from samkit.training.slice_prompts import components, jittered_box, random_point, shifted_box, tight_box

CACHE_BYTES = 6_000_000_000
"""Memory for cases and inputs; what goes beyond is read and prepared again each time."""

_DRAW, _ROUND, _ORDER, _VALIDATION = range(4)  # one stream of random numbers for each purpose


@dataclass(frozen=True)
class SliceSample:
    """One slice as the network takes it, and what is asked of it there: m objects, or all classes at once."""

    image: np.ndarray
    """(C, S, S) float32."""
    placement: Placement
    labels: np.ndarray
    """(m, H, W) on the slice: each object's mask, or one map of classes; uint8."""
    points: tuple[np.ndarray, ...]
    """Per object (p, 3): x, y [pixels of the input] and label of its points and box corners; p may be 0."""
    key: int
    where: tuple[int, int]
    """Number of the case, and of the slice in it."""


class SliceStore:
    """Loaded cases by their number, cut to the method's window, with the labels that are asked for; kept in memory."""

    def __init__(self, cases: Sequence[SliceCase], method: SliceMethod, config: Any, label: int | None) -> None:
        self.cases, self.method, self.config, self.label = cases, method, config, label
        self._kept: dict[int, LoadedCase] = {}
        self._prepared: dict[tuple[int, int], tuple[np.ndarray, Placement]] = {}
        self._bytes = 0

    def __getitem__(self, number: int) -> LoadedCase:
        if number in self._kept:
            return self._kept[number]
        loaded = self._load(self.cases[number])
        if self._has_room(loaded.images.nbytes + loaded.labels.nbytes):
            self._kept[number] = loaded
        return loaded

    def prepared(self, case: int, number: int) -> tuple[np.ndarray, Placement]:
        """Return the network's input (C, S, S) of a slice as it is, and its place there."""
        if (case, number) in self._prepared:
            return self._prepared[case, number]
        image, placement = self.method.preprocess(self[case].images[number], self.config)
        if self._has_room(image.nbytes):
            self._prepared[case, number] = image, placement
        return image, placement

    def _has_room(self, size: int) -> bool:
        fits = self._bytes + size <= CACHE_BYTES
        self._bytes += size if fits else 0
        return fits

    def _load(self, case: SliceCase) -> LoadedCase:
        loaded = case.load()
        wanted = len(self.method.sequences(self.config))
        if wanted and loaded.images.shape[-1] != wanted:
            raise InputRefused(
                "channels",
                f"{case.name} has {loaded.images.shape[-1]} channels, {self.method.name} takes {wanted}: "
                f"{', '.join(self.method.sequences(self.config))}",
                "give co-registered volumes, or pictures with a channel for each",
            )
        labels = loaded.labels if self.label is None else (loaded.labels == self.label).astype(np.uint8)
        structures = len(self.method.structures(self.config))
        if structures and labels.max() > structures:
            raise InputRefused(
                "label-values",
                f"the label of {case.name} holds values up to {labels.max()}, the network has {structures} structures",
                "give labels 1 and on, in their order; FreeSurfer's values are mapped with {format} freesurfer",
                options=("format",),
            )
        size = self.method.window(self.config)
        if size is not None:
            window = Window.around(loaded.images[..., 0], size)
            images = np.stack([window.cut(image) for image in loaded.images])
            return replace(loaded, images=images, labels=np.stack([window.cut(slice_) for slice_ in labels]))
        return replace(loaded, labels=labels)


def objects_of(labels: np.ndarray) -> list[np.ndarray]:
    """Return the masks (H, W) of a slice that get a prompt of their own: the components of each label value.

    A value whose components are all too small for a box of their own is one object.
    """
    found = []
    for value in np.unique(labels[labels > 0]):
        found += components(labels == value) or [labels == value]
    return found


def labels_on_input(labels: np.ndarray, placement: Placement, side: int) -> np.ndarray:
    """Return labels (..., H, W) of a slice on the network's square at `side` pixels, (..., side, side); 0 in padding.

    Nearest: each pixel of the square takes the label at its centre, in the placement's own alignment.
    """
    centres = (np.arange(side) + 0.5) * placement.side / side
    picked, inside = [], []
    for size, content, offset in zip(placement.shape, placement.content, placement.offset, strict=True):
        if placement.ends_aligned:
            at = np.rint((centres - 0.5 - offset) * (size - 1) / max(1, content - 1)).astype(int)
        else:
            at = np.floor((centres - offset) * size / content).astype(int)
        inside.append((at >= 0) & (at < size))
        picked.append(np.clip(at, 0, size - 1))
    moved: np.ndarray = labels[..., picked[0][:, None], picked[1]] * (inside[0][:, None] & inside[1])
    return moved


class SliceSamples(Dataset[SliceSample]):
    """Random slices; indexed by key, not by position."""

    def __init__(
        self, store: SliceStore, slices: Sequence[Sequence[int]], method: SliceMethod, config: Any, recipe: SliceRecipe
    ) -> None:
        """Draw from those `slices` of each case in `store`. Reads every case once."""
        self.store, self.method, self.config, self.recipe = store, method, config, recipe
        every, with_target = list_slices(store, slices)
        if not with_target:
            raise InputRefused(
                "no-foreground", "no slice to train on holds any of the target",
                "check the labels, or name a value that they hold with {label}",
                options=("label",),
            )  # fmt: skip
        # A prompt needs something to point at.
        self.pools = [with_target, with_target if recipe.foreground_share >= 1 or is_prompted(recipe) else every]
        self.samples = recipe.samples_per_epoch or len(self.pools[1])

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: int) -> SliceSample:
        epoch, position = divmod(key, self.samples)
        rng = np.random.default_rng((self.recipe.seed, _DRAW, key))
        which = int(rng.random() >= self.recipe.foreground_share)
        pool = self.pools[which]
        lap, slot = divmod(position, len(pool))
        order = np.random.default_rng((self.recipe.seed, _ORDER, epoch, lap, which)).permutation(len(pool))
        case, number = pool[int(order[slot])]
        labels = self.store[case].labels[number]
        if self.recipe.augment:
            image, labels = augment(self.recipe.augment, self.store[case].images[number], labels, rng)
            prepared, placement = self.method.preprocess(image, self.config)
        else:
            prepared, placement = self.store.prepared(case, number)
        if not is_prompted(self.recipe):
            target = labels if self.recipe.output == "classes" else labels > 0
            return SliceSample(
                prepared, placement, target[None].astype(np.uint8), (np.zeros((0, 3)),), key, (case, number)
            )
        objects = objects_of(labels) or [labels > 0]  # an augmentation may turn everything out of the slice
        count = self.recipe.masks_per_image
        chosen = [objects[int(n)] for n in rng.permutation(len(objects))[:count]]
        # Each slice gives the same number of rows, as in SAM-Med2D: a few objects are asked for more than once.
        chosen += [objects[int(rng.integers(len(objects)))] for _ in range(count - len(chosen))]
        points = tuple(self._prompt(mask, placement, rng) for mask in chosen)
        return SliceSample(prepared, placement, np.stack(chosen).astype(np.uint8), points, key, (case, number))

    def _prompt(self, mask: np.ndarray, placement: Placement, rng: np.random.Generator) -> np.ndarray:
        """Return one of the recipe's prompts for an object, (p, 3) x, y [pixels of the input] and label."""
        kind = self.recipe.prompts[int(rng.integers(len(self.recipe.prompts)))]
        if kind == "none" or not mask.any():
            return np.zeros((0, 3))
        if kind == "point":
            places, labels = random_point(mask, rng)
        else:
            box = jittered_box(mask, rng, self.recipe.box_jitter) if kind == "box" else shifted_box(mask, rng)
            places, labels = box.reshape(2, 2), np.array([BOX_FIRST, BOX_LAST], np.float32)
        return np.concatenate([placement.points_to_network(places), labels[:, None]], axis=1)

    def round_rng(self, key: int) -> np.random.Generator:
        """Return the generator of a sample's later clicks."""
        return np.random.default_rng((self.recipe.seed, _ROUND, key))


def is_prompted(recipe: SliceRecipe) -> bool:
    """Return whether each step of the training is told what to segment."""
    return "none" not in recipe.prompts


def list_slices(
    store: SliceStore, slices: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (case, slice) of all `slices`, and of those that hold some of the target."""
    every, with_target = [], []
    for case, numbers in enumerate(slices):
        for number in numbers:
            every.append((case, number))
            if store[case].labels[number].any():
                with_target.append((case, number))
    return every, with_target


def validation_prompts(labels: np.ndarray, recipe: SliceRecipe, place: tuple[int, int]) -> SlicePrompts:
    """Return what a held-back slice is asked with: tight boxes, else fixed random clicks, else nothing."""
    if not is_prompted(recipe):
        return SlicePrompts()
    objects = objects_of(labels)
    if any("box" in kind for kind in recipe.prompts):
        corners = [tight_box(mask).astype(float).tolist() for mask in objects]
        return SlicePrompts(boxes=tuple(SliceBox(x0, y0, x1, y1) for x0, y0, x1, y1 in corners))
    rng = np.random.default_rng((recipe.seed, _VALIDATION, *place))
    drawn = [random_point(mask, rng) for mask in objects]
    return SlicePrompts(
        points=tuple(SlicePoint(float(xy[0, 0]), float(xy[0, 1]), int(label[0])) for xy, label in drawn)
    )
