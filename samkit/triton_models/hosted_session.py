"""HostedSession: one session of a server, and what one request does to it. Whoever calls keeps requests apart."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from samkit.errors import PromptError, WrongTurn
from samkit.runtime.loops.embeddings import ScanEmbeddings
from samkit.runtime.protocol.answers import Changed, Nothing, ServerAnswer
from samkit.runtime.protocol.requests import (
    Add,
    AskState,
    BoxCorners,
    Check,
    Click,
    Propagate,
    Redo,
    Request,
    Reset,
    SegmentAutomatically,
    SessionChange,
    Undo,
)
from samkit.runtime.session.local_session import LocalSession
from samkit.runtime.session.updates import MaskUpdate
from samkit.triton_models.memory import Counted
from samkit.triton_models.scans import in_voxels

Reply: TypeAlias = tuple[ServerAnswer, np.ndarray]
"""An answer, and the labels (I, J, K), uint8, of the box that it names."""
MOST_STEPS = 512
"""Of one session: each keeps a mask, and an embedding where refinement is recurrent."""


class HostedSession:
    """A session on one scan, with the turn that it is at.

    The same request with the same turn gets the same answer and happens once: the last one is kept for a client that
    lost its connection before the answer came.
    """

    def __init__(
        self,
        session: LocalSession[Any],
        embeddings: ScanEmbeddings,
        affine: np.ndarray | None,
        shape: tuple[int, ...],
    ) -> None:
        """Take over a session whose scan is set. `affine` is None for a picture, `shape` that of its mask."""
        self.session = session
        self.embeddings = embeddings
        self.affine = affine
        self.shape = shape
        self.turn = 0
        """Of the last change."""
        self.last: tuple[SessionChange, Reply] | None = None
        """That change, and how it was answered."""
        self._counted = Counted()
        self.nbytes = self._count()
        """Memory of scan, history and last answer [bytes]."""

    def tell(self, request: Request[Any]) -> Reply:
        """Return the answer to a request that changes nothing; raises what its prompts would."""
        match request:
            case AskState():
                return self._reply(self.session.update_from_empty())
            case Check():
                self.session.check(*in_voxels(request.prompts, self.affine, self.shape, world=request.world))
                return Nothing(), nothing()
        raise PromptError(f"{request.op} is no request to a session that is open; send another op")

    def repeated(self, request: SessionChange) -> Reply | None:
        """Return the answer to the last change if `request` is the same again, else None."""
        return self.last[1] if self.last is not None and request == self.last[0] else None

    def change(self, request: SessionChange) -> tuple[Changed, np.ndarray]:
        """Do what a request of the next turn says; nothing changes where it is refused, the turn included."""
        if request.turn != self.turn + 1:
            said = "no turn that is a number" if request.turn is None else f"turn {request.turn}"
            raise WrongTurn(
                f'this call has {said} and the session\'s next one is {self.turn + 1}; ask its "state", and let one '
                "program at a time use a session"
            )
        with self.session.all_or_nothing():
            reply = self._reply(self._apply(request), request.turn)
        self.turn, self.last = request.turn, (request, reply)
        self.nbytes = self._count()
        return reply

    def _count(self) -> int:
        answered = () if self.last is None else (self.last[1][1],)
        return self._counted.count((*self.session.kept, *answered))

    def _apply(self, request: SessionChange) -> MaskUpdate:
        match request:
            case Click() | BoxCorners() | Add():
                if len(self.session.steps) >= MOST_STEPS:
                    raise PromptError(f"this session has {MOST_STEPS} steps, as many as a server remembers; reset it")
                return self.session.add(*in_voxels(request.prompts, self.affine, self.shape, world=request.world))
            case SegmentAutomatically():
                return self.session.segment_automatically()
            case Propagate():
                return self.session.propagate()
            case Undo():
                return self.session.undo()
            case Redo():
                return self.session.redo()
            case Reset():
                return self.session.reset()
        raise PromptError(f"{request.op} is no change that this server knows; send another op")

    def _reply(self, update: MaskUpdate, turn: int | None = None) -> tuple[Changed, np.ndarray]:
        sides = [(side.start, side.stop) for side in update.changed]
        answer = Changed(
            turn=self.turn if turn is None else turn,
            step=update.step,
            region=tuple(sides if len(sides) == 3 else [*sides, (0, 1)]),
            volume_ml=update.volume_ml,
            iou=update.iou,
            prompted=self.session.prompted,
            origins=self.session.origins,
        )
        return answer, _as_volume(update.change[1])

    def close(self) -> None:
        """Let go of the scan's embeddings; runners are the server's."""
        self.embeddings.close()


def nothing() -> np.ndarray:
    """Return the labels of no box."""
    return np.zeros((0, 0, 0), np.uint8)


def _as_volume(labels: np.ndarray) -> np.ndarray:
    """Return labels of a region with three axes; a picture's have two.

    A copy: they may be a view of the whole mask, and stay in memory for a client that did not get its answer.
    """
    return np.array(labels if labels.ndim == 3 else labels[..., None], np.uint8, order="C")
