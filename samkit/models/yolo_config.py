"""What decides the shape of a YOLOv5 detector, and of MedSAM with one in front. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from samkit.models.config import NetworkConfig, below_one
from samkit.models.sam2d_config import Sam2DConfig

COCO_ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
"""Width and height [pixels] of three anchors for each of the three grids, as YOLOv5 starts from."""

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
                (
                    len(self.anchors) != len(self.strides)
                    or len({len(grid) for grid in self.anchors}) != 1
                    or len(self.anchors[0]) % 2,
                    f"anchors {self.anchors} are not pairs of numbers, alike for each of {len(self.strides)} grids",
                ),
            )
            if wrong
        ]


@dataclass(frozen=True)
class MedsamYoloConfig(Sam2DConfig):
    """MedSAM and the detector that finds its boxes."""

    detector: YoloConfig = field(default_factory=YoloConfig)
    sequences: tuple[str, ...] = ("t1c", "t2w", "t2f")
    """The co-registered sequences that become red, green and blue."""
