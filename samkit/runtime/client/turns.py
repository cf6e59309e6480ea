"""Turns: the changes of a session on a server, each of which has a number and happens once.

Where a change got no answer at all, nobody knows whether it happened, or will; the next one asks first, and takes over
what did.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np

from samkit.errors import SamkitError, ServingError, TensorMismatchError, WrongTurn
from samkit.runtime.client.remote_mask import RemoteMask
from samkit.runtime.protocol.answers import Changed
from samkit.runtime.protocol.requests import AskState, SessionChange


class Turns:
    """What was asked of a session so far, and which of it is in doubt."""

    def __init__(
        self, ask: Callable[[SessionChange | AskState, float], tuple[Changed, np.ndarray]], mask: RemoteMask, turn: int
    ) -> None:
        """Begin after `turn`, the last change that happened.

        `ask` sends a request, with the time of the clock until which it may take, and `mask` hears of each answer.
        """
        self._ask = ask
        self._mask = mask
        self._turn = turn
        self._doubted: list[SessionChange] = []
        """Requests without an answer. All have the turn after the last one that is known: at most one can happen."""

    def change(self, asked: SessionChange, until: float) -> None:
        """Do what changes the session; calls that got no answer are looked into first.

        Had one of them happened and is this the same again, it is taken for another try, and happens no second time.
        """
        try:
            self._once(asked, self.settle(until), until)
        except WrongTurn:  # refused, so this one did not happen
            happened = self.settle(until, is_behind=True)
            if happened is None:  # whatever has the turn is no call from here, and a user should know
                raise
            self._once(asked, happened, until)

    def settle(self, until: float, *, is_behind: bool = False) -> SessionChange | None:
        """Find out about calls that got no answer, and return the request of the one that happened.

        While none did, each may wait on the server still, and all stay in doubt. Where something else happened, or
        `is_behind` and nothing is in doubt, the session's state is taken over from the server and None returned.
        """
        if not self._doubted and not is_behind:
            return None
        state, labels = self._ask(AskState(), until)
        if state.turn <= self._turn:
            return None
        for request in tuple(self._doubted) if state.turn == self._turn + 1 else ():
            with suppress(WrongTurn):
                self._send(request, until)  # the server answers the one that has the turn once more, and does nothing
                return request
        self._mask.take_state(state, labels)
        self._end(state.turn)
        return None

    def _once(self, asked: SessionChange, happened: SessionChange | None, until: float) -> None:
        """Do what is asked, unless it is the request that turned out to have happened."""
        if happened is None or replace(asked, turn=happened.turn) != happened:
            self._send(replace(asked, turn=self._turn + 1), until)

    def _send(self, request: SessionChange, until: float) -> None:
        """Send what changes the session; it is in doubt until its answer is here."""
        if request not in self._doubted:
            self._doubted.append(request)
        try:
            answer, labels = self._ask(request, until)
        except SamkitError as error:
            # Of what is neither, nobody knows whether it happened, or the next call will hear the same
            if isinstance(error, WrongTurn) or not isinstance(error, (ServingError, TensorMismatchError)):
                self._doubted.remove(request)
            raise
        self._mask.take_change(request, answer, labels)
        self._end(answer.turn)

    def _end(self, turn: int) -> None:
        """Go on after `turn`; whatever was in doubt had it or never will."""
        self._turn = turn
        self._doubted.clear()
