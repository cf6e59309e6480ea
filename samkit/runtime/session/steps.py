"""Step: what one act on the mask did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What one click in a volume, all prompts given at once to slices, or one pass over slices did.

    A field that has no meaning for the method is empty, or None where it would be a number.
    """

    number: int
    """1 for the first step."""
    voxels: int
    """Voxels of the mask, or pixels of a picture's."""
    volume_ml: float | None
    """Volume of the mask [mL]; None for a picture."""
    seconds: Mapping[str, float]
    """Of this step, by stage, and their total. In volumes: crop, encode, decode, merge, restore; on slices: prepare,
    propose, encode, decode."""
    crops: int | None = None
    """Crops of the volume in use."""
    followed: int | None = None
    """Crops among them that no click has touched: the object led there."""
    limit_reached: bool = False
    """Whether the object goes on beyond the crops that one click may add; click there to follow it further."""
    slices: tuple[int, ...] = ()
    """Slices that got a new answer: indices of the volume's array across the plane, 0 for a picture."""
    boxes: int = 0
    """Boxes that the method's detector found."""
    iou: tuple[float, ...] = ()
    """Predicted IoU of the masks on the last of these slices, where the method trained that head."""
