"""YOLOv5, the detector that finds MedSAM's boxes: a backbone, a path up and down its grids, and three heads.

The layer table is that of YOLOv5 v6.0 (also v7.0); the widths n, s, m, l and x differ in YoloConfig alone. Layers
keep their official numbers, so that a released state dict fits name for name. The numbers between (upsampling and
concatenations, 11 12 15 16 19 22) hold no weights and stand in `raw` as code.

Written from the published architecture and from shapes of state dicts, under samkit's own licence. Released YOLOv5
weights are AGPL-3.0; samkit ships none.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.networks.network import Network
from samkit.networks.yolo_config import LONGEST, YoloConfig
from samkit.networks.yolo_layers import C3, SPPF, Conv, Detect


class Yolo(Network):
    """The network. Images are RGB from 0 to 1, letterboxed (samkit.detections) to sides that 32 divides."""

    GRAPHS: ClassVar = {"detector": "detect"}
    config: YoloConfig

    def __init__(self, config: YoloConfig) -> None:
        super().__init__()
        self.config = config
        w, d = config.width, config.depth
        strides = torch.tensor(config.strides, dtype=torch.float32)
        anchors = torch.tensor(config.anchors, dtype=torch.float32).unflatten(1, (-1, 2)) / strides[:, None, None]
        layers = {
            0: Conv(3, w, 6, 2, 2),
            1: Conv(w, 2 * w, 3, 2),
            2: C3(2 * w, 2 * w, d),
            3: Conv(2 * w, 4 * w, 3, 2),
            4: C3(4 * w, 4 * w, 2 * d),
            5: Conv(4 * w, 8 * w, 3, 2),
            6: C3(8 * w, 8 * w, 3 * d),
            7: Conv(8 * w, 16 * w, 3, 2),
            8: C3(16 * w, 16 * w, d),
            9: SPPF(16 * w),
            10: Conv(16 * w, 8 * w),
            13: C3(16 * w, 8 * w, d, shortcut=False),
            14: Conv(8 * w, 4 * w),
            17: C3(8 * w, 4 * w, d, shortcut=False),
            18: Conv(4 * w, 4 * w, 3, 2),
            20: C3(8 * w, 8 * w, d, shortcut=False),
            21: Conv(8 * w, 8 * w, 3, 2),
            23: C3(16 * w, 16 * w, d, shortcut=False),
            24: Detect((4 * w, 8 * w, 16 * w), config.classes, anchors, config.strides, LONGEST),
        }
        self.model = nn.ModuleDict({str(number): layer for number, layer in layers.items()})

    def detect(self, image: Tensor) -> Tensor:
        """Return `predictions` (B, rows, 5 + classes) of images (B, 3, H, W), both sides multiples of 32 up to 1280.

        A row is the box's centre x, centre y, width and height [pixels of the input], then from 0 to 1 how surely
        there is an object, and each class's probability if there is one. The finest grid comes first; in a grid, rows
        are in the order of anchors, y, x. Three anchors give 3 * (H * W / 64 + H * W / 256 + H * W / 1024) rows.
        """
        head: Detect = self.model["24"]  # type: ignore[assignment]
        return head.decode(self.raw(image))

    def raw(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (B, A, H / stride, W / stride, 5 + classes) of each grid, for the loss."""
        layer = self.model
        fine = self._through(image, 0, 1, 2, 3, 4)
        middle = self._through(fine, 5, 6)
        top = self._through(middle, 7, 8, 9, 10)
        middle = self._through(torch.cat([_doubled(top), middle], 1), 13, 14)
        fine = self._through(torch.cat([_doubled(middle), fine], 1), 17)
        lower = self._through(torch.cat([layer["18"](fine), middle], 1), 20)
        coarse = self._through(torch.cat([layer["21"](lower), top], 1), 23)
        maps: tuple[Tensor, ...] = layer["24"]((fine, lower, coarse))
        return maps

    def _through(self, x: Tensor, *numbers: int) -> Tensor:
        for number in numbers:
            x = self.model[str(number)](x)
        return x


def _doubled(x: Tensor) -> Tensor:
    """Return (B, C, 2H, 2W) of (B, C, H, W), each value four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
