"""Virtual readers: each works through scans of its own in a session on a server, alone or beside others.

What a reader does next is drawn by a generator that is seeded with its number, so that two runs do the same, but for
how far they come. It waits before each call as a person does, exponentially distributed, or not at all. Readers are
threads of one process, which runs on the same machine as the server.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from samkit.benchmarks.cases.phantom_scans import brighter, click_on
from samkit.benchmarks.measure.processes import memory_of, processor_seconds
from samkit.benchmarks.record.rows import Times
from samkit.benchmarks.record.statistics import significant
from samkit.errors import SamkitError
from samkit.protocols.case import Case

if TYPE_CHECKING:
    from samkit.runtime import Session

Result = TypeVar("Result")

STAGES = ("open", "scan", "first_click", "click", "undo")
"""What is timed: the connection and what is served there; sending a scan, and what the method decides by itself; the
first click on it, which waits for the encoder; every later one, with the whole mask; an undo."""
UNDO_SHARE = 0.125
"""How often a click is taken back."""
PAUSE_SECONDS = 1.0
"""After a call that failed."""
MOST_CALLS = 10_000
"""Of one reader in one level, whatever the time: a bound on what is kept and sent."""


class VirtualReader:
    """One reader. `samples` has the seconds of each call by stage, `errors` how many failed, by their type."""

    def __init__(
        self,
        number: int,
        case: Case,
        open_session: Callable[[], Session],
        scans: Iterator[int],
        think_s: float | None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Get ready; nothing is opened yet. `scans` says by how much the next scan is brighter (`brighter`), and may be
        shared; `think_s` is the mean time between calls [s], None for none. `sleep` and `clock` are for tests.
        """
        self._case, self._open, self._scans, self._think_s = case, open_session, scans, think_s
        self._rng = np.random.default_rng([0x4EAD, number])
        self._sleep, self._clock = sleep, clock
        self._session: Session | None = None
        self._is_stopped = False
        self._clicks: int | None = None
        """How many of the case's clicks were clicked on this scan; None before there is one."""
        self.samples: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.errors: Counter[str] = Counter()

    @property
    def holds_a_scan(self) -> bool:
        """Return whether the server keeps a scan of this reader."""
        return self._clicks is not None

    def work(self, seconds: float) -> None:
        """Work for so long; a call that has begun is waited for. Raises what is no SamkitError."""
        until = self._clock() + seconds
        for _ in range(MOST_CALLS):
            if self._is_stopped:
                return
            if self._think_s is not None:
                self._sleep(min(self._rng.exponential(self._think_s), max(0.0, until - self._clock())))
            if self._clock() >= until:
                return
            try:
                self._act()
            except SamkitError as error:
                self.errors[type(error).__name__] += 1
                self.leave()
                self._sleep(min(PAUSE_SECONDS, max(0.0, until - self._clock())))

    def stop(self) -> None:
        """Begin nothing more, whatever time is left; from any thread."""
        self._is_stopped = True

    def leave(self) -> None:
        """Close the session, whatever state it is in."""
        session, self._session, self._clicks = self._session, None, None
        if session is not None:
            with suppress(SamkitError):
                session.close()

    def _act(self) -> None:
        """Do what comes next."""
        points = self._case.clicks
        if self._session is None:
            self._session = self._timed("open", self._open)
        elif self._clicks is None or self._clicks == len(points):
            scan = brighter(self._case, next(self._scans))  # made before the clock starts
            self._timed("scan", partial(self._session.set_image, scan.image))
            self._clicks = 0
        elif self._clicks > 1 and self._rng.random() < UNDO_SHARE:
            self._timed("undo", self._session.undo)
            self._clicks -= 1
        else:
            stage = "click" if self._clicks else "first_click"
            self._timed(stage, partial(click_on, self._session, points[self._clicks]))
            self._clicks += 1

    def _timed(self, stage: str, call: Callable[[], Result]) -> Result:
        start = self._clock()
        result = call()
        self.samples[stage].append(self._clock() - start)
        return result


@dataclass(frozen=True)
class LoadLevel:
    """What so many readers at once met."""

    readers: int
    samples: Mapping[str, Sequence[float]]
    """Seconds of each call of all readers, by stage."""
    seconds: float
    """From the first call to the last answer."""
    errors: Mapping[str, int]
    """Calls that failed, by the error's type."""
    figures: Mapping[str, Any]
    """What else a LoadRow says of it, by its names; without those of a server that is not on this machine."""

    @property
    def clicks_per_second(self) -> float:
        """Return how many clicks were answered, first ones too; the time is all there was, with that for scans."""
        return (len(self.samples["first_click"]) + len(self.samples["click"])) / self.seconds

    @property
    def failures(self) -> str:
        """Return what failed, as part of a sentence."""
        return f"calls failed: {', '.join(f'{name} {times} times' for name, times in sorted(self.errors.items()))}"

    def p95_ms(self, stage: str) -> float:
        """Return the 95th percentile of a stage's times [ms]; nan where it never came up."""
        return Times.of(self.samples[stage]).p95_ms if self.samples[stage] else math.nan


def run_level(readers: Sequence[VirtualReader], seconds: float, pid: int | None = None) -> LoadLevel:
    """Let readers work side by side for so long, and return what they met; all sessions are closed afterwards.

    `pid` is the server's process where it runs on this machine.
    """
    before = 0.0 if pid is None else processor_seconds(pid)
    own, start = time.process_time(), time.perf_counter()
    try:
        with ThreadPoolExecutor(len(readers), thread_name_prefix="reader") as pool:
            try:
                for work in [pool.submit(reader.work, seconds) for reader in readers]:
                    work.result()
            finally:  # after a bug, or Ctrl-C, nobody waits for the others' time to end
                for reader in readers:
                    reader.stop()
        took, own = time.perf_counter() - start, time.process_time() - own
        whole = took * (os.cpu_count() or 1)
        figures: dict[str, Any] = {"client_cpu_share": significant(own / whole, 3)}
        if pid is not None:
            used, memory = max(0.0, processor_seconds(pid) - before), memory_of(pid)  # less where some ended
            figures |= {"server_cpu_share": significant(used / whole, 3)}
            figures |= {f"server_{kind}_mb": memory[kind] for kind in ("rss", "pss")}
        figures["sessions_held"] = sum(reader.holds_a_scan for reader in readers)
    finally:
        for reader in readers:
            reader.leave()
    samples = {stage: tuple(value for reader in readers for value in reader.samples[stage]) for stage in STAGES}
    errors = dict(sum((reader.errors for reader in readers), Counter()))
    return LoadLevel(len(readers), samples, significant(took, 4), errors, figures)
