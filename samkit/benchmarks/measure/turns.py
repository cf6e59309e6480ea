"""Several things timed by turns in one process, because a shared machine is never twice the same.

A turn is a few runs of one thing, so that a fast one shows more than what the others left in the caches. Who begins
moves on by one with every round. Before each turn nothing runs for a moment: the threads of ONNX Runtime go on
spinning after a run, and would take the processor from whoever is next (PyTorch took twice as long for 50 ms). Python
collects no garbage within a turn: it would be charged to whoever is at it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from samkit.benchmarks.measure.machine import seconds_of

T = TypeVar("T")
TURN_SECONDS = 0.4
"""About how long a turn takes: a run that is longer is a turn alone."""
MOST_RUNS = 20
"""Runs in one turn at most."""
SLOW = 5
"""Turns that a run may take for its first time, and still be worth a second look."""
QUIET_SECONDS = 0.06
"""How long nothing runs before a turn."""


class Turns:
    """What takes turns, and how long every run took."""

    def __init__(self, runs: Mapping[str, Callable[[], object]], turn_seconds: float | None = None) -> None:
        """Run each of `runs` twice, which allocates and says how many are a turn of `turn_seconds`; a slow one once."""
        length = TURN_SECONDS if turn_seconds is None else turn_seconds
        self._runs = dict(runs)
        self._count = {}
        for name, run in self._runs.items():
            fastest = seconds_of(run)
            if fastest < SLOW * length:
                fastest = min(fastest, seconds_of(run))
            self._count[name] = max(1, min(MOST_RUNS, round(length / fastest)))
        self._rounds = 0
        self.samples: dict[str, list[list[float]]] = {name: [] for name in self._runs}
        """Seconds of each run, of each turn, of each of `runs`."""

    def take(self) -> None:
        """Let everyone have a turn; one of several runs begins with a run that does not count."""
        for name in in_turn(list(self._runs), self._rounds):
            run, count = self._runs[name], self._count[name]
            keep_quiet()
            collects = gc.isenabled()
            gc.disable()
            try:
                if count > 1:
                    run()
                self.samples[name].append([seconds_of(run) for _ in range(count)])
            finally:
                if collects:
                    gc.enable()
        self._rounds += 1


def keep_quiet() -> None:
    """Wait until the threads of the run before sleep."""
    time.sleep(QUIET_SECONDS)


def in_turn(names: Sequence[T], number: int) -> list[T]:
    """Return `names` in the order of round `number`.

    >>> in_turn("abc", 4)
    ['b', 'c', 'a']
    """
    first = number % max(1, len(names))
    return [*names[first:], *names[:first]]


def take_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[list[float]]]:
    """Return the seconds of each run: for each of `runs`, one list per round."""
    turns = Turns(runs)
    for _ in range(rounds):
        turns.take()
    return turns.samples
