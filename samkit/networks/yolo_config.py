"""What decides the shape of a YOLOv5 detector, and of MedSAM with one in front. Plain data, no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from samkit.errors import CheckpointError
from samkit.networks.config import NetworkConfig, below_one
from samkit.networks.sam2d_config import Sam2DConfig

COCO_ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
"""Width and height [pixels] of three anchors for each of the three grids, as YOLOv5 starts from."""

T = TypeVar("T")

LONGEST = 1280
"""Longest side of an image that the network takes [pixels]."""


@dataclass(frozen=True)
class YoloConfig(NetworkConfig):
    """YOLOv5 v6/v7. The defaults are `l` with one class."""

    width: int = 64
    """Channels of the first convolution: n 16, s 32, m 48, l 64, x 80; all others are multiples of it."""
    depth: int = 3
    """Bottlenecks of the first block, of those that the layer table repeats 3 times: n and s 1, m 2, l 3, x 4."""
    classes: int = 1
    image: int = 640
    """Side of the square input that slices are letterboxed to [pixels], a multiple of 32."""
    anchors: tuple[tuple[float, ...], ...] = COCO_ANCHORS
    """Per grid, width and height of its anchors [pixels of the input]."""
    strides: tuple[int, ...] = (8, 16, 32)
    """Pixels of the input per cell of each grid."""

    def problems(self) -> list[str]:
        """Return what makes this network impossible, one clause each."""
        return below_one(self, ("width", "depth", "classes", "image")) or [
            text
            for wrong, text in (
                (self.width % 2, f"width {self.width} is odd"),
                (
                    self.image % 32 or self.image > LONGEST,
                    f"image {self.image} is no multiple of 32 up to {LONGEST}",
                ),
                (tuple(self.strides) != (8, 16, 32), f"strides {self.strides} are not 8, 16, 32"),
                (
                    len(self.anchors) != len(self.strides)
                    or len({len(grid) for grid in self.anchors}) != 1
                    or len(self.anchors[0]) % 2
                    or not all(0 < side < math.inf for grid in self.anchors for side in grid),
                    f"anchors {self.anchors} are not pairs of lengths, alike for each of {len(self.strides)} grids",
                ),
            )
            if wrong
        ]


BLOCKS = {2: 1, 4: 2, 6: 3, 8: 1, 13: 1, 17: 1, 20: 1, 23: 1}
"""Layers with bottlenecks, and how many of them for each of `depth`."""


def yolo_state(state: Mapping[str, T]) -> dict[str, T]:
    """Return the entries of an official state dict as Yolo names them, `model.0.conv.weight` and so on.

    Wrappers around the network each add a `model.` or `module.`; all but the last go.
    """
    return {re.sub(r"^(?:(?:model|module)\.)+(?=\d)", "model.", name): value for name, value in state.items()}


def yolo_config(shapes: Mapping[str, tuple[int, ...]], anchors: ArrayLike | None, image: int = 640) -> YoloConfig:
    """Return the config of a YOLOv5 state dict: n, s, m, l or x, any number of classes.

    `shapes` by the names that `yolo_state` returns; `anchors` is its entry `model.24.anchors` (3, A, 2), width and
    height in strides, which are not stored and always 8, 16, 32. `image` is the side it will be used at [pixels].
    Raises CheckpointError for a state dict of another network.
    """
    stem = shapes.get("model.0.conv.weight", ())
    head = [shapes.get(f"model.24.m.{grid}.weight", ()) for grid in range(3)]
    grids = np.asarray(anchors, np.float64)  # None where the entry is missing: no shape then
    if (
        len(stem) != 4
        or stem[1:] != (3, 6, 6)
        or any(len(s) != 4 for s in head)
        or grids.ndim != 3
        or grids.shape[::2] != (3, 2)
        or not grids.size
    ):
        raise _another(
            f"model.0.conv.weight is {stem or 'missing'}, needed (width, 3, 6, 6); model.24.m.{{0,1,2}}.weight are "
            f"{head}, needed three kernels; model.24.anchors is {grids.shape}, needed (3, A, 2)"
        )
    width, values = stem[0], head[0][0] // grids.shape[1]
    depths = {layer: _bottlenecks(shapes, layer) for layer in BLOCKS}
    depth = depths[2]
    if depths != {layer: times * depth for layer, times in BLOCKS.items()} or depth < 1:
        raise _another(f"layers hold {depths} bottlenecks, needed are multiples {BLOCKS} of one number")
    wanted = [(values * grids.shape[1], times * width, 1, 1) for times in (4, 8, 16)]
    if head != wanted or values < 6:
        raise _another(f"its heads are {head}, needed A * (5 + classes) outputs of width * 4, 8, 16 inputs")
    if more := sorted(n for n in shapes if not re.fullmatch(r"model\.(1?\d|2[0-3])\..*|model\.24\.(anchors|m\..*)", n)):
        raise _another(f"it also holds {', '.join(more[:5])}, {len(more)} such entries")
    strides = YoloConfig.strides
    pixels = tuple(tuple(float(v) for v in (g * s).ravel()) for g, s in zip(grids, strides, strict=True))
    return YoloConfig(width=width, depth=depth, classes=values - 5, image=image, anchors=pixels)


def _bottlenecks(shapes: Mapping[str, tuple[int, ...]], layer: int) -> int:
    return len([n for n in shapes if re.fullmatch(rf"model\.{layer}\.m\.\d+\.cv1\.conv\.weight", n)])


def _another(found: str) -> CheckpointError:
    return CheckpointError(
        f"this is no YOLOv5 detector of release 6 or 7: {found}; give weights of yolov5 n, s, m, l or x (not -seg, not "
        "-cls, not the 1280-pixel models with a 6 in their name)"
    )


@dataclass(frozen=True)
class MedsamYoloConfig(Sam2DConfig):
    """MedSAM and the detector that finds its boxes."""

    detector: YoloConfig = field(default_factory=YoloConfig)
    sequences: tuple[str, ...] = ("t1c", "t2w", "t2f")
    """The co-registered sequences that become red, green and blue; a lone one becomes all three."""

    def problems(self) -> list[str]:
        """Return what makes this network impossible, one clause each."""
        wrong = len(self.sequences) not in (1, 3) or len(set(self.sequences)) < len(self.sequences)
        return [*super().problems(), *([f"sequences {self.sequences} are not one or three names"] if wrong else [])]
