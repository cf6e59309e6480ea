"""Several things timed by turns in one process, because a shared machine is never twice the same.

A turn is a few runs of one thing, so that a fast one shows more than what the others left in the caches. Who begins
moves on by one with every round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from samkit.benchmarks.machine import seconds_of

TURN_SECONDS = 0.4
"""About how long a turn takes: a run that is longer is a turn alone."""
MOST_RUNS = 20
"""Runs in one turn at most."""


class Turns:
    """What takes turns, and how long every run took."""

    def __init__(self, runs: Mapping[str, Callable[[], object]], turn_seconds: float | None = None) -> None:
        """Run each of `runs` twice: the first run allocates, the second says how many are a turn of `turn_seconds`."""
        length = TURN_SECONDS if turn_seconds is None else turn_seconds
        self._runs = dict(runs)
        self._count = {}
        for name, run in self._runs.items():
            run()
            self._count[name] = max(1, min(MOST_RUNS, round(length / seconds_of(run))))
        self._rounds = 0
        self.samples: dict[str, list[list[float]]] = {name: [] for name in self._runs}
        """Seconds of each run, of each turn, of each of `runs`."""

    def take(self) -> None:
        """Let everyone have a turn; one of several runs begins with a run that does not count."""
        names = list(self._runs)
        first = self._rounds % len(names)
        for name in names[first:] + names[:first]:
            run, count = self._runs[name], self._count[name]
            if count > 1:
                run()
            self.samples[name].append([seconds_of(run) for _ in range(count)])
        self._rounds += 1


def take_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[list[float]]]:
    """Return the seconds of each run: for each of `runs`, one list per round."""
    turns = Turns(runs)
    for _ in range(rounds):
        turns.take()
    return turns.samples
