"""MaskUpdate: what a call of a session did to the mask; and which box of a mask changed between two states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np

from samkit.runtime.session.steps import Step

Region: TypeAlias = tuple[slice, ...]
"""A box of the volume's own array (I, J, K), or of a picture (H, W)."""
Part: TypeAlias = tuple[Region, np.ndarray]
"""A region and the labels there, uint8 or bool."""


class MaskUpdate:
    """The mask after a call, and what the call changed. Later calls do not alter it."""

    def __init__(
        self,
        labels: Callable[[], np.ndarray],
        change: Callable[[], Part],
        *,
        volume_ml: float | None,
        iou: tuple[float, ...] = (),
        step: Step | None = None,
        restored: bool = False,
    ) -> None:
        """Take functions for what is costly: they are called when somebody looks, and once."""
        self._labels, self._change = labels, change
        self._volume_ml, self._iou, self._step, self._restored = volume_ml, iou, step, restored

    def __repr__(self) -> str:
        """Return how large the mask is, and the box that changed."""
        size = f"{self.volume_ml:.4g} mL" if self.volume_ml is not None else f"{np.count_nonzero(self.labels)} pixels"
        box = ", ".join(f"{side.start}:{side.stop}" for side in self.changed)
        changed = f"changed [{box}]" if all(side.start < side.stop for side in self.changed) else "nothing changed"
        return f"<MaskUpdate: mask of {size}, {changed}{f' by step {self.step.number}' if self.step else ''}>"

    @property
    def restored(self) -> bool:
        """Return whether this call found that the server had forgotten the session, and sent scan and prompts again.

        The mask is what it would have been. It is told once, and never of a session on an export folder.
        """
        return self._restored

    def as_restored(self) -> MaskUpdate:
        """Return the same, as that of a session that was restored."""
        return MaskUpdate(
            lambda: self.labels, lambda: self.change, volume_ml=self.volume_ml, iou=self.iou, step=self.step,
            restored=True,
        )  # fmt: skip

    @property
    def volume_ml(self) -> float | None:
        """Return the volume of the mask [mL]; None for a picture."""
        return self._volume_ml

    @property
    def iou(self) -> tuple[float, ...]:
        """Return the predicted IoU of the masks on the last slice, where the method trained that head."""
        return self._iou

    @property
    def step(self) -> Step | None:
        """Return what the call did, of several clicks the last one: number, voxels, seconds, crops or slices.

        None where it took no step: a scan was set, or steps were taken back or forgotten.
        """
        return self._step

    @cached_property
    def labels(self) -> np.ndarray:
        """Return structure numbers, uint8, on the volume's own array; 1 where nothing is told apart.

        The array can't be written to: `change` and later looks at this update tell of the same mask.
        """
        labels = self._labels()
        labels.setflags(write=False)
        return labels

    @property
    def mask(self) -> np.ndarray:
        """Return the whole mask, bool, on the volume's own array (I, J, K) or the picture (H, W)."""
        return self.labels > 0

    @cached_property
    def change(self) -> Part:
        """Return the smallest box that holds all that changed, and the labels there now."""
        return self._change()

    @property
    def changed(self) -> Region:
        """Return the smallest box that holds all that changed; its slices are empty where nothing did."""
        return self.change[0]


def paint(parts: Sequence[Part], shape: Sequence[int], origin: Sequence[int] | None = None) -> np.ndarray:
    """Return labels, uint8, on a box of `shape` that begins at `origin`.

    Where parts overlap the larger label counts.
    """
    out = np.zeros(tuple(shape), np.uint8)
    start = [0] * len(shape) if origin is None else origin
    for region, labels in parts:
        low = [max(side.start - first, 0) for side, first in zip(region, start, strict=True)]
        high = [min(side.stop - first, size) for side, first, size in zip(region, start, shape, strict=True)]
        if all(a < b for a, b in zip(low, high, strict=True)):
            inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            cut = [a + first - side.start for a, first, side in zip(low, start, region, strict=True)]
            here = tuple(slice(c, c + b - a) for c, a, b in zip(cut, low, high, strict=True))
            np.maximum(out[inside], labels[here], out=out[inside])
    return out


def changed_part(before: Sequence[Part], after: Sequence[Part], rank: int) -> Part:
    """Return the smallest box of an array of `rank` axes where two masks, each given by its parts, differ.

    With it come the labels of `after` there. All slices are empty where nothing differs.
    """
    regions = [region for region, labels in (*before, *after) if labels.size]
    if regions:
        origin = [min(region[axis].start for region in regions) for axis in range(rank)]
        shape = [max(region[axis].stop for region in regions) - origin[axis] for axis in range(rank)]
        now = paint(after, shape, origin)
        box = _bounds(paint(before, shape, origin) != now)
        if box is not None:
            return _placed(box, origin), now[box].copy()  # not a view, which would keep the box of all parts in memory
    return (slice(0, 0),) * rank, np.zeros((0,) * rank, np.uint8)


def tight(part: Part) -> Part | None:
    """Return the smallest part that has the same labels, None where all of them are zero."""
    region, labels = part
    box = _bounds(labels)
    return None if box is None else (_placed(box, [side.start for side in region]), labels[box].copy())


def _placed(box: Region, origin: Sequence[int]) -> Region:
    """Return a box of an array that begins at `origin` of a larger one, in the larger one."""
    return tuple(slice(side.start + first, side.stop + first) for side, first in zip(box, origin, strict=True))


def _bounds(mask: np.ndarray) -> Region | None:
    """Return the smallest box around what is not zero, None where all is."""
    bounds: list[slice] = []
    rest = mask
    for axis in range(mask.ndim):  # each axis looks only at what the ones before left over
        used = np.flatnonzero(rest.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not used.size:
            return None
        bounds.append(slice(int(used[0]), int(used[-1]) + 1))
        rest = rest[(slice(None),) * axis + (bounds[-1],)]
    return tuple(bounds)
