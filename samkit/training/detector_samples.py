"""Pictures and boxes that the detector trains on, drawn by key as in `samples.py`; and anchors that fit the boxes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2
from torch.utils.data import Dataset

from samkit.detections import Letterbox
from samkit.errors import InputRefused
from samkit.methods.method import DetectorRecipe
from samkit.networks.yolo_config import YoloConfig
from samkit.training.box_augmentation import flip_boxes, jitter_colour, mosaic
from samkit.training.box_labels import boxes_of
from samkit.training.slice_cases import SliceCase

MAX_RATIO = 4.0
"""A box fits an anchor whose sides are at most this many times longer or shorter (detector_loss.MAX_RATIO)."""
ENOUGH = 0.98
"""Share of boxes with a fitting anchor from which the anchors stay as they are (YOLOv5's AutoAnchor)."""

_DRAW, _ORDER = range(2)  # one stream of random numbers for each purpose


@dataclass(frozen=True)
class Picture:
    """One picture and what there is to find."""

    image: np.ndarray
    """(H, W, 3) uint8: cases are kept at a byte per value."""
    boxes: np.ndarray
    """(n, 5) float32: x0, y0, x1, y1 [pixels from the picture's corner] and class."""


@dataclass(frozen=True)
class DetectorSample:
    """A picture as the network takes it."""

    image: np.ndarray
    """(3, S, S) float32, 0..1."""
    boxes: np.ndarray
    """(n, 5) x0, y0, x1, y1 [pixels of the input] and class."""


def load_pictures(
    cases: Sequence[SliceCase], slices: Sequence[Sequence[int]], label: int | None, classes: int
) -> list[Picture]:
    """Return those `slices` of each case that are not black: boxes from the files, or around a label's components.

    Raises InputRefused for images that can't be red, green and blue, and for classes the network does not know.
    """
    pictures = []
    for case, numbers in zip(cases, slices, strict=True):
        if not numbers:
            continue
        loaded = case.load()
        channels = loaded.images.shape[-1]
        if channels not in (1, 3):
            raise InputRefused(
                "channels", f"{case.name} has {channels} channels, the detector takes 1 or 3", "choose three sequences"
            )
        for number in numbers:
            labels = loaded.labels[number]
            masked = labels > 0 if label is None else labels == label
            boxes = boxes_of(masked) if loaded.boxes is None else loaded.boxes[number]
            if len(boxes) and boxes[:, 4].max() >= classes:
                raise InputRefused(
                    "classes", f"{case.name} has a box of class {int(boxes[:, 4].max())}, the detector knows {classes}",
                    f"train with {{set}} classes={int(boxes[:, 4].max()) + 1}",
                    options=("set",),
                )  # fmt: skip
            image = np.rint(loaded.images[number]).astype(np.uint8)
            if image.any():
                pictures.append(Picture(np.repeat(image, 3 // channels, axis=2), boxes))
    if not any(len(picture.boxes) for picture in pictures):
        raise InputRefused(
            "no-boxes", f"none of {len(pictures)} pictures has a box", "check that labels and pictures belong together"
        )
    return pictures


class DetectorSamples(Dataset[DetectorSample]):
    """Random pictures; indexed by key, not by position."""

    def __init__(self, pictures: Sequence[Picture], config: YoloConfig, recipe: DetectorRecipe) -> None:
        self.pictures, self.config, self.recipe = pictures, config, recipe
        self.samples = recipe.samples_per_epoch or len(pictures)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: int) -> DetectorSample:
        epoch, position = divmod(key, self.samples)
        lap, slot = divmod(position, len(self.pictures))
        order = np.random.default_rng((self.recipe.seed, _ORDER, epoch, lap)).permutation(len(self.pictures))
        rng = np.random.default_rng((self.recipe.seed, _DRAW, key))
        picture = self.pictures[int(order[slot])]
        if rng.random() < self.recipe.mosaic:
            others = [self.pictures[int(n)] for n in rng.integers(len(self.pictures), size=3)]
            parts = [(p.image.astype(np.float32), p.boxes) for p in (picture, *others)]
            image, boxes = mosaic(parts, self.config.image, rng)
            image = image / np.float32(255)
        else:
            chw, boxes = on_input(picture, self.config.image)
            image = chw.transpose(1, 2, 0)
        image = jitter_colour(image * np.float32(255), rng) / np.float32(255)
        if rng.random() < self.recipe.flip:
            image, boxes = flip_boxes(image, boxes, axis=1)
        return DetectorSample(np.ascontiguousarray(image.transpose(2, 0, 1)), boxes)


def on_input(picture: Picture, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the letterboxed picture (3, side, side), 0..1, and its boxes (n, 5) there."""
    height, width = picture.image.shape[:2]
    letterbox = Letterbox.fit((height, width), side)
    boxes = np.concatenate([letterbox.boxes(picture.boxes[:, :4]), picture.boxes[:, 4:]], axis=1)
    return letterbox.apply(picture.image), boxes.astype(np.float32)


def box_sizes(pictures: Sequence[Picture], side: int) -> np.ndarray:
    """Return width and height (n, 2) of all boxes on the network's input [pixels]."""
    sizes = [np.zeros((0, 2))]
    for picture in pictures:
        gain = min(side / n for n in picture.image.shape[:2])
        sizes.append((picture.boxes[:, 2:4] - picture.boxes[:, :2]) * gain)
    return np.concatenate(sizes)


def fitting_share(sizes: np.ndarray, anchors: np.ndarray) -> float:
    """Return the share of boxes of these `sizes` (n, 2) that have a fitting one among `anchors` (m, 2).

    >>> fitting_share(np.array([[10.0, 10.0], [90.0, 10.0]]), np.array([[12.0, 12.0]]))
    0.5
    """
    ratio = sizes[:, None] / anchors
    worst = np.maximum(ratio, 1 / ratio).max(axis=2)
    return float((worst.min(axis=1) < MAX_RATIO).mean())


def fitted_anchors(sizes: np.ndarray, config: YoloConfig) -> tuple[tuple[float, ...], ...]:
    """Return anchors around which the boxes' `sizes` (n, 2) lie, small ones for the fine grid.

    K-means of logarithms, because a fit is a ratio, by a fixed seed; YOLOv5 goes on from there by random mutations,
    which the loss's generous ratio makes unnecessary.
    """
    grids, each = len(config.anchors), len(config.anchors[0]) // 2
    logs = np.log(np.maximum(sizes, 1.0))
    count = grids * each
    kinds = np.unique(logs, axis=0)
    if len(kinds) <= count:  # no more kinds of boxes than anchors: each its own, some twice
        spread = np.resize(kinds, (count, 2))
    else:
        with warnings.catch_warnings():  # an empty cluster keeps its place, which is as good as any
            warnings.simplefilter("ignore")
            spread, _ = kmeans2(logs, count, minit="++", seed=np.random.default_rng(0))
    anchors = np.exp(spread)
    anchors = anchors[np.argsort(anchors.prod(axis=1), kind="stable")].round(1)
    return tuple(tuple(float(v) for v in part.ravel()) for part in np.split(anchors, grids))
