"""What one call of a session did: `Step` to a volume, `SliceStep` to slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What one click did."""

    number: int
    """1 for the first click."""
    volume_ml: float
    """Volume of the mask [mL]."""
    crops: int
    """Crops in use."""
    followed: int
    """Crops among them that no click has touched: the object led there."""
    limit_reached: bool
    """Whether the object goes on beyond the crops that one click may add; click there to follow it further."""
    seconds: Mapping[str, float]
    """Of this click: crop, encode, decode, merge, restore, total."""


@dataclass(frozen=True)
class SliceStep:
    """What one prompt, or one pass over slices, did."""

    number: int
    """1 for the first step."""
    voxels: int
    """Voxels of the mask, or pixels of a picture's."""
    volume_ml: float | None
    """Volume of the mask [mL]; None for a picture."""
    slices: tuple[int, ...]
    """Slices that got a new answer: indices of the volume's array across the plane, 0 for a picture."""
    boxes: int
    """Boxes that the method's detector found."""
    iou: tuple[float, ...]
    """Predicted IoU of the masks on the last of these slices, where the method trained that head."""
    seconds: Mapping[str, float]
    """Of this step: prepare, propose, encode, decode, total."""
