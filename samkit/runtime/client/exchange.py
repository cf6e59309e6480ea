"""Exchange: requests to one server and its answers, as records; one is sent again while the connection is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from samkit.errors import ServerUnreachable, ServingError, TensorMismatchError
from samkit.runtime.client.triton_transport import ConnectionLost, Transport
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.answers import SAME, ServerAnswer
from samkit.runtime.protocol.requests import Request
from samkit.runtime.session.base import CLOSED

AnswerT = TypeVar("AnswerT", bound=ServerAnswer)

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Waits before a lost connection is tried again [s]; the last one repeats."""


class Exchange:
    """A transport to one server, until it is closed. All that is sent has a turn or a nonce, so it may come twice."""

    def __init__(
        self,
        transport: Transport,
        server: str,
        *,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        """Take over `transport`; `server` is what messages call the other end."""
        self.is_closed = False
        self._transport = transport
        self._server = server
        self._sleep, self._clock = sleep, clock

    def ask(
        self,
        request: Request[AnswerT],
        token: str | None,
        tensors: Mapping[str, np.ndarray],
        *,
        timeout: float,
        patience: float,
        from_now: bool = False,
    ) -> tuple[AnswerT, np.ndarray]:
        """Return the answer to `request` and the labels that come with it, within `timeout` [s].

        A lost connection is tried again for `patience` [s] after the first loss, or, with `from_now`, from now on.
        Raises ServerUnreachable after that, and whatever the server answers with.
        """
        ends = self._clock() + timeout
        tries_until = self._clock() + patience if from_now else None
        left, tries = timeout, 0
        while True:
            try:
                return self.attempt(request, token, tensors, left)
            except ConnectionLost as lost:
                now = self._clock()
                if tries_until is None:
                    tries_until = min(ends, now + patience)
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
                tries += 1
                left = ends - now - pause
                if now + pause >= tries_until:
                    raise ServerUnreachable(
                        f"{lost}, tried {tries} times; check the address, and that sam-serve start runs there"
                    ) from lost
            self._sleep(pause)

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
