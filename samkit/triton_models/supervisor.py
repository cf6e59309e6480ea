"""Supervisor: starts again what dies of a server, until it dies too often in a row.

A model whose process died is loaded again, alone: sessions live in another process and stay, and what they asked that
model is asked again (python_backend.py). Where a model died that answers from threads, Triton lets those whose requests
it had wait until their time is up; so then, and where loading fails, the whole server is killed and started again. It
says that it is not ready, or says nothing, from the death on until all of it runs.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from samkit.errors import ServingError
from samkit.triton_models.limits import MOST_RESTARTS
from samkit.triton_models.processes import Death
from samkit.triton_models.server import EmbeddedServer

logger = logging.getLogger(__name__)

LIVED_SECONDS = 10.0
"""What lived so long did not die at once."""
_THREADED = ("_refine", "_session")
"""How names of models end that answer from threads."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class Supervisor:
    """Looks after a server that was started."""

    def __init__(
        self,
        server: EmbeddedServer,
        *,
        most: int = MOST_RESTARTS,
        lived: float = LIVED_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Give up once something died more than `most` times in a row, each time within `lived` [s] of its start."""
        self._server = server
        self._most, self._lived = most, lived
        self._sleep, self._clock = sleep, clock
        self._lives: dict[str, _Life] = {}
        """By model; the server's own has no name."""

    def run(self) -> NoReturn:
        """Start again what dies, from the thread that started the server; raises ServingError to give up."""
        self._server.signs.say_watched()
        while True:
            death = self._server.wait(60)
            while death is not None:
                death = self._revive(death)

    def _revive(self, death: Death) -> Death | None:
        """Start again what died; return how that failed, None where it did not."""
        part, before = death.model, self._lives.get(death.model)
        row = 1 if before is None or self._clock() - before.since >= self._lived else before.row + 1
        alone = bool(part) and not part.endswith(_THREADED) and death.is_sudden
        # Before all else: what answers no more must not say that it is ready
        if alone:
            alone = self._is_done(self._server.unload, part)
        if not alone:
            self._server.stop(at_once=True)
        if row > self._most:
            raise ServingError(
                f"{death}, and {self._most} starts in a row did not help; see the server's log for why, mend that, and "
                "start it again"
            )
        what = part if alone else "the server"
        logger.warning("%s; starting %s again, for the %d. of at most %d times in a row", death, what, row, self._most)
        began = self._clock()
        self._sleep(0.0 if row == 1 else min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (row - 2)))
        try:
            if alone:
                self._server.load(part)
            else:
                self._server.start()
                self._server.signs.say_watched()
        except ServingError as error:
            self._lives[part] = _Life(row, math.inf)
            return Death(part, f"does not start again ({error})", is_sudden=False)
        self._lives[part] = _Life(row, self._clock())
        logger.warning("%s runs again, after %.1f s", what, self._clock() - began)
        return None

    def _is_done(self, act: Callable[[str], None], model: str) -> bool:
        try:
            act(model)
        except ServingError as error:
            logger.warning("%s", error)
            return False
        return True


@dataclass(frozen=True)
class _Life:
    """What is known of a part that was started again."""

    row: int
    """How often in a row."""
    since: float
    """When it ran again, by the clock; endless where it never did."""
