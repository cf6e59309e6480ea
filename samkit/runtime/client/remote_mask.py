"""RemoteMask: what a client knows of a session on a server: the mask, and the history of steps, as answers told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samkit.errors import TensorMismatchError
from samkit.geometry import Index
from samkit.runtime.protocol.answers import SAME, Changed
from samkit.runtime.protocol.requests import Add, Redo, Reset, SessionChange, Undo, request_of
from samkit.runtime.session.steps import Step
from samkit.runtime.session.updates import MaskUpdate, Part, Region, changed_part


class RemoteMask:
    """The mask after the last answer. One answer replaces it wholly or, where it does not fit, not at all."""

    def __init__(self, shape: tuple[int, ...], empty: float | None) -> None:
        """Begin with nothing on a volume (I, J, K) or a picture (H, W); `empty` is the volume of that [mL]."""
        nothing: Part = ((slice(0, 0),) * len(shape), np.zeros((0,) * len(shape), np.uint8))
        self._labels = _Labels(np.zeros(shape, np.uint8))
        self.update = MaskUpdate(self._labels.array, lambda: nothing, volume_ml=empty)
        self.prompted: tuple[int, ...] = ()
        """Slices with prompts, as indices of the volume's array across the plane."""
        self.origins: tuple[Index, ...] = ()
        """The first grid voxel of every crop in use."""
        self._done: list[_Taken] = []
        self._undone: list[_Taken] = []
        self._is_whole = True
        """Whether the server's history is known from its beginning, and not what another program added to it."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return what the steps did, in order, as far as answers told."""
        return tuple(taken.step for taken in self._done if taken.step is not None)

    @property
    def acts(self) -> tuple[SessionChange, ...] | None:
        """Return what leads a new session to this mask and this history, undone steps included.

        None where that is not known: another program used the session, too.
        """
        taken = [*self._done, *reversed(self._undone)]
        asked = [each.request for each in taken if each.request is not None]
        if not self._is_whole or len(asked) < len(taken):
            return None
        return (*asked, *([Undo()] * len(self._undone)))

    def take_change(self, request: SessionChange, answer: Changed, values: np.ndarray) -> None:
        """Make what the answer to `request` tells the present state; `values` are the labels in its box."""
        part = _part_of(answer, values, self._labels.shape)
        labels, step = _Labels(self._labels, part), answer.step
        update = MaskUpdate(labels.array, lambda: part, volume_ml=answer.volume_ml, iou=answer.iou, step=step)
        self._show(answer, labels, update)
        match request:
            case Undo():
                self._undone.append(self._done.pop() if self._done else _Taken())
            case Redo():
                self._done.append(self._undone.pop() if self._undone else _Taken())
            case _:
                self._undone.clear()
                if isinstance(request, Reset) or step is None:
                    self._done.clear()
                    self._is_whole = True
                else:
                    self._done += _taken(request, step, step.number - len(self._done))

    def take_state(self, answer: Changed, values: np.ndarray) -> None:
        """Make the server's state the present one: its history is not the one that is known here."""
        before, shape = self._labels, self._labels.shape
        labels = _Labels(np.zeros(shape, np.uint8), _part_of(answer, values, shape))
        whole: Region = tuple(slice(0, side) for side in shape)

        def change() -> Part:
            return changed_part([(whole, before.array())], [(whole, labels.array())], len(whole))

        update = MaskUpdate(labels.array, change, volume_ml=answer.volume_ml, iou=answer.iou)
        self._show(answer, labels, update)
        self._done.clear()
        self._undone.clear()
        self._is_whole = False

    def _show(self, answer: Changed, labels: _Labels, update: MaskUpdate) -> None:
        self._labels, self.update = labels, update
        self.prompted, self.origins = answer.prompted, answer.origins


@dataclass(frozen=True)
class _Taken:
    """One step."""

    request: SessionChange | None = None
    """What alone would take it again; None where that is not known."""
    step: Step | None = None
    """What it did; None where no answer told of it."""


def _taken(request: SessionChange, step: Step, count: int) -> list[_Taken]:
    """Return the `count` steps that were taken up to `step`, the last of them by `request`."""
    several = request.prompts if isinstance(request, Add) and count > 1 else ()
    if not several or count != len(several):  # one step; more are another program's
        return [*([_Taken()] * (count - 1)), _Taken(request, step)]
    # Clicks that came at once are undone one by one
    singles = [request_of([prompt]) for prompt in several]
    return [*map(_Taken, singles[:-1]), _Taken(singles[-1], step)]


class _Labels:
    """Labels after an answer: those before it, and a part that changed. They are made when somebody looks, and once, so
    that a click copies no scan of labels.
    """

    def __init__(self, before: _Labels | np.ndarray, part: Part | None = None) -> None:
        self.shape: tuple[int, ...] = before.shape
        self._before = before
        self._part = part

    def array(self) -> np.ndarray:
        """Return the labels, uint8; the array can't be written to, because later ones are made from it."""
        waiting: list[Part] = []
        labels: _Labels | np.ndarray = self
        while isinstance(labels, _Labels):
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


def _part_of(answer: Changed, values: np.ndarray, shape: tuple[int, ...]) -> Part:
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
