"""Several things measured by turns in one process, because a shared machine is never twice the same.

Who begins moves on by one with every round. Before each turn nothing runs for a moment: the threads of ONNX Runtime go
on spinning after a run, and would take the processor from whoever is next (PyTorch took twice as long for 50 ms). What
is quick runs several times in its turn, so that it shows more than what the others left in the caches.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")
Name = TypeVar("Name")
MOST_RUNS = 20
"""In one turn."""
SLOW = 5
"""Turns that a run may take for its first time, and still be worth a second look."""
QUIET_SECONDS = 0.06
"""Before a turn, until the threads of the run before sleep."""


def take_turns(
    turns: Mapping[Name, Callable[[], T]], rounds: int, before: Callable[[], object] | None = None, uncounted: int = 0
) -> dict[Name, list[T]]:
    """Return what each of `turns` measured, round by round. Each begins with `before`, such as a sample of the machine;
    `uncounted` rounds come first and are forgotten.
    """
    found: dict[Name, list[T]] = {name: [] for name in turns}
    for number in range(uncounted + rounds):
        if before is not None:
            time.sleep(QUIET_SECONDS)
            before()
        for name, value in take_round(turns, number).items():
            found[name].append(value)
    return {name: values[uncounted:] for name, values in found.items()}


def take_round(turns: Mapping[Name, Callable[[], T]], number: int) -> dict[Name, T]:
    """Let everyone have one turn, in the order of round `number`, and return what each of them measured."""
    found: dict[Name, T] = {}
    collects, names = gc.isenabled(), deque(turns)
    names.rotate(-number)
    for name in names:
        time.sleep(QUIET_SECONDS)
        gc.disable()  # what it takes would be charged to whoever is at it
        try:
            found[name] = turns[name]()
        finally:
            if collects:
                gc.enable()
    return found


def several(run: Callable[[], object], turn_seconds: float) -> Callable[[], list[float]]:
    """Return a turn of as many runs as fill `turn_seconds`: the seconds of each.

    `run` is run twice at once, which allocates and says how many that are; a slow one once. A turn of several begins
    with a run that does not count.
    """
    fastest = seconds_of(run)
    if fastest < SLOW * turn_seconds:
        fastest = min(fastest, seconds_of(run))
    count = max(1, min(MOST_RUNS, round(turn_seconds / fastest)))

    def turn() -> list[float]:
        if count > 1:
            run()
        return [seconds_of(run) for _ in range(count)]

    return turn


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long `run` took [s]."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
