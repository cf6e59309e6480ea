"""MedSAM with a YOLOv5 detector in front: two networks under one roof, because they ship together."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from samkit.networks.sam2d import Sam2D
from samkit.networks.yolo import Yolo
from samkit.networks.yolo_config import MedsamYoloConfig


class MedsamYolo(Sam2D):
    """SAM's parameters under their official names, the detector's under `detector.`; neither sees the other."""

    GRAPHS: ClassVar = {**Sam2D.GRAPHS, **Yolo.GRAPHS}
    config: MedsamYoloConfig

    def __init__(self, config: MedsamYoloConfig) -> None:
        super().__init__(config)
        self.detector = Yolo(config.detector)

    def detect(self, image: Tensor) -> Tensor:
        """Return the detector's `predictions` (B, rows, 5 + classes) of pictures (B, 3, H, W), 0..1."""
        return self.detector.detect(image)
