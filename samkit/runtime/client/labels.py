"""Labels: the mask that a client has, made of what answers told: those before an answer, and the part that changed."""

from __future__ import annotations

import numpy as np

from samkit.errors import TensorMismatchError
from samkit.runtime.protocol.answers import SAME, Changed
from samkit.runtime.session.updates import Part, Region


class Labels:
    """Labels after an answer: those before it, and a part that changed. They are made when somebody looks, and once, so
    that a click copies no scan of labels.
    """

    def __init__(self, before: Labels | np.ndarray, part: Part | None = None) -> None:
        self.shape: tuple[int, ...] = before.shape
        self._before = before
        self._part = part

    def array(self) -> np.ndarray:
        """Return the labels, uint8; the array can't be written to, because later ones are made from it."""
        waiting: list[Part] = []
        labels: Labels | np.ndarray = self
        while isinstance(labels, Labels):
            if labels._part is not None:
                waiting.append(labels._part)
            labels = labels._before
        if waiting:
            labels = labels.copy()
            for region, values in reversed(waiting):
                labels[region] = values
        labels.setflags(write=False)
        self._before, self._part = labels, None
        return labels


def part_of(answer: Changed, values: np.ndarray, shape: tuple[int, ...]) -> Part:
    """Return the labels `values` on the box that `answer` names, of a mask of `shape`.

    Raises TensorMismatchError unless they fit the box, and it the mask. On the wire a picture has a third axis of 1.
    """
    sides = answer.region
    is_inside = len(sides) == 3 and all(
        0 <= first <= last <= size for (first, last), size in zip(sides, (*shape, 1)[:3], strict=True)
    )
    if not is_inside or values.shape != tuple(last - first for first, last in sides):
        raise TensorMismatchError(
            f"the answer tells of labels {values.shape} on the box {[list(side) for side in sides]} of a mask {shape}; "
            f"{SAME}"
        )
    region: Region = tuple(slice(first, last) for first, last in sides[: len(shape)])
    return region, np.asarray(values, np.uint8).reshape([side.stop - side.start for side in region])
