"""Exchange: requests to one server and its answers, as records; one is sent again while the connection is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

import numpy as np

from samkit.errors import (
    SamkitError,
    ServerRestarting,
    ServerTimeout,
    ServerUnreachable,
    ServingError,
    TensorMismatchError,
)
from samkit.runtime.client.recovery import Cure, cure_for
from samkit.runtime.client.triton_transport import AWAY_SECONDS, ConnectionLost, Transport
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.answers import SAME, ServerAnswer
from samkit.runtime.protocol.requests import Request
from samkit.runtime.session.base import CLOSED

AnswerT = TypeVar("AnswerT", bound=ServerAnswer)

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Waits before a request is tried again [s]; the last one repeats."""


class Exchange:
    """A transport to one server, until it is closed. All that is sent has a turn or a nonce, so it may come twice."""

    def __init__(
        self,
        transport: Transport,
        server: str,
        *,
        waits: bool = True,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        """Take over `transport`; `server` is what messages call the other end.

        Unless `waits`, what is being started again is told of at once, and not waited for.
        """
        self.is_closed = False
        self._waits = waits
        self._transport = transport
        self._server = server
        self._sleep, self._clock = sleep, clock

    def ask(
        self,
        request: Request[AnswerT],
        token: str | None,
        tensors: Mapping[str, np.ndarray],
        *,
        until: float,
        patience: float,
        from_now: bool = False,
    ) -> tuple[AnswerT, np.ndarray]:
        """Return the answer to `request` and the labels that come with it, `until` that time of the clock.

        A lost connection, and what is being started again, is tried again for `patience` [s] after the first failure,
        or, with `from_now`, from now on. Raises ServerUnreachable or ServerRestarting after that, and whatever the
        server answers with.
        """
        tries_until = self._clock() + patience if from_now else None
        tries = 0
        while True:
            if (left := until - self._clock()) <= 0:
                raise ServerTimeout(
                    f"the time for this call was over before {type(request).op} was sent to {self._server}; give more "
                    "time"
                )
            try:
                return self.attempt(request, token, tensors, left)
            except (SamkitError, ConnectionLost) as failed:
                if cure_for(failed) is not Cure.AGAIN or (isinstance(failed, SamkitError) and not self._waits):
                    raise
                now = self._clock()
                if tries_until is None:
                    tries_until = min(until, now + patience)
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
                tries += 1
                if now + pause >= tries_until:
                    self._give_up(failed, tries, token)
            self._sleep(pause)

    def _give_up(self, failed: SamkitError | ConnectionLost, tries: int, token: str | None) -> NoReturn:
        """Raise what a user hears after the last try."""
        if not isinstance(failed, ConnectionLost):
            raise failed
        if self._waits or token is None:
            raise ServerUnreachable(
                f"{failed}, tried {tries} times; check the address, and that sam-serve start runs there"
            ) from failed
        raise ServerRestarting(
            f"{failed}, tried {tries} times, and may be being started again; try again in {AWAY_SECONDS:.0f} s",
            seconds=AWAY_SECONDS,
        ) from failed

    def attempt(
        self, request: Request[AnswerT], token: str | None, tensors: Mapping[str, np.ndarray], timeout: float
    ) -> tuple[AnswerT, np.ndarray]:
        """Send a request once; raises ConnectionLost where the connection was lost."""
        self.check_open()
        inputs = {wire.REQUEST: wire.encode(request.to_json()), **tensors}
        if token is not None:
            inputs[wire.TOKEN] = np.array([token.encode()], object)
        outputs = self._transport.call(inputs, timeout)
        if missing := [name for name in (wire.ANSWER, wire.CHANGED) if name not in outputs]:
            raise TensorMismatchError(f"the answer of {self._server} has no tensor '{missing[0]}'; {SAME}")
        data = wire.decode(outputs[wire.ANSWER], wire.ANSWER)
        return request.read_answer(data, self._server), outputs[wire.CHANGED]

    def check_open(self) -> None:
        """Raise ServingError after `close`."""
        if self.is_closed:
            raise ServingError(CLOSED)

    def close(self) -> None:
        """Let go of the connection."""
        self.is_closed = True
        self._transport.close()
