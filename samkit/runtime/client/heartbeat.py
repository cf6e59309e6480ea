"""Heartbeat: a thread that tells a server every few seconds that a session's client lives.

A reader who rests keeps the place then, however long, and one whose program died loses it soon. What goes wrong is for
the next act to find out, which opens the scan again where the session is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from samkit.errors import SamkitError
from samkit.runtime.client.exchange import Exchange
from samkit.runtime.client.recovery import Cure, cure_for
from samkit.runtime.client.triton_transport import ConnectionLost
from samkit.runtime.protocol.requests import Alive

_LONGEST = 5.0
"""How long one beat may take [s]."""


class Heartbeat:
    """Beats for one session on a server, until it is stopped or the session gone; it keeps no program from ending."""

    def __init__(
        self, exchange: Exchange, token: str, seconds: float, *, wait: Callable[[float], bool] | None = None
    ) -> None:
        """Say every `seconds` that the client lives; `wait` pauses and returns whether to end, and is for tests."""
        self._exchange, self._token, self._seconds = exchange, token, seconds
        self._ends = threading.Event()
        self._wait = self._ends.wait if wait is None else wait
        threading.Thread(target=self._run, name="samkit heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Beat no more; one that is on its way is let go."""
        self._ends.set()

    def _run(self) -> None:
        while not self._wait(self._seconds) and not self._ends.is_set() and self._beat():
            pass

    def _beat(self) -> bool:
        """Return whether it is worth while to go on."""
        try:
            self._exchange.attempt(Alive(), self._token, {}, min(self._seconds, _LONGEST))
        except (SamkitError, ConnectionLost) as error:
            return cure_for(error) is not Cure.ANEW and not self._exchange.is_closed
        except Exception:  # what a library says of a connection that was closed meanwhile
            return not self._exchange.is_closed
        return True
