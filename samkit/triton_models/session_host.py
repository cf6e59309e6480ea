"""SessionHost: the sessions of one served export, each on a scan of its own, found by an unguessable token.

No Triton here: any number of threads may bring requests (runtime/protocol/requests.py). Requests of one session are
worked on one after the other, those of different sessions side by side.

    host = SessionHost(served, served.runners())
    opened, _ = host.answer(Open(), None, {"volume": scan, "affine": affine})
    changed, labels = host.answer(Click(turn=1, point=(60, 70, 30), label=1), opened.token, {})

A scan is held in memory until its session is closed or nobody used it for a while, and is never written anywhere. A
token tells which start of the server it belongs to, so that a client learns why its session is gone. What one request
does to one session is in hosted_session.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samkit.errors import AtCapacity, ServerRestarted, ServingError, SessionExpired, UnknownSession, WrongTurn
from samkit.geometry import by
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.embeddings import Embeddings
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.answers import Changed, Nothing, Opened
from samkit.runtime.protocol.requests import (
    Add,
    Alive,
    BoxCorners,
    Click,
    Close,
    Describe,
    Open,
    Propagate,
    Request,
    SegmentAutomatically,
    SessionChange,
)
from samkit.triton_models.hosted_session import HostedSession, Reply, nothing
from samkit.triton_models.memory import budget_of_machine
from samkit.triton_models.scans import Tensors, read_scan, volumes_of
from samkit.triton_models.served import Served

logger = logging.getLogger(__name__)

_START_BYTES, _SECRET_BYTES = 8, 24
_TOKEN = re.compile(f"[0-9a-f]{{{2 * (_START_BYTES + _SECRET_BYTES)}}}")
"""What a token looks like: which start of the server it belongs to, then what nobody can guess."""
_REMEMBERED = 4096
"""Expired sessions whose users can still be told so, and openings that were taken back before they came."""
_BEATS = 3
"""How often a client says that it lives within the time after which it is taken for dead."""
_TAKEN_BACK = "this opening was taken back by its client; draw another nonce"
_MOST_REQUESTS = 4
"""Of one session at a time: a call, and its repeats after a lost connection."""


@dataclass
class Counters:
    """What happened since the server started."""

    opened: int = 0
    clicks: int = 0
    """Points and boxes."""
    expired: int = 0
    """Closed because nobody used them, for whatever reason."""
    silent: int = 0
    """Of these, those whose client's heartbeat had stopped."""
    unused: int = 0
    """Of these, those that had no request after `open`."""
    cancelled: int = 0
    """Requests to open a session that the client took back, done or not."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent by stage [s]."""


@dataclass
class _Held:
    """One session, and who uses it."""

    hosted: HostedSession
    nonce: str | None
    """What the client called the request that opened it."""
    used: float
    has_heartbeat: bool
    is_asked: bool = False
    """Whether any request came since it was opened."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: int = 0
    """At work or waiting."""
    is_gone: bool = False
    """Closed while a request waited for it."""


@dataclass
class _Opening:
    """A request to open a session, at work or done."""

    ended: threading.Event = field(default_factory=threading.Event)
    is_cancelled: bool = False
    """Whether the client waits for it no more."""
    token: str | None = None
    """Of the session, from the moment it is held."""
    answer: Opened | None = None
    scan: str = ""
    """The key of what was opened."""


class SessionHost:
    """All sessions of one served export."""

    def __init__(
        self, served: Served, runners: Mapping[str, Runner], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Run graphs by `runners`. `clock` tells seconds. What is logged has no names, paths or voxels in it."""
        self._served = served
        self._runners = runners
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._opening = 0
        self._coming = 0
        """Bytes of scans that are being opened."""
        self._budget = served.limits.memory_bytes or budget_of_machine(served.names)
        self._replaced: Counter[str] = Counter()
        self._openings: dict[str, _Opening] = {}
        self._expired: OrderedDict[str, str] = OrderedDict()
        """Tokens of sessions that expired, and why."""
        self._cancelled: OrderedDict[str, str] = OrderedDict()
        """Nonces that were taken back before anything came with them."""
        self._start = secrets.token_hex(_START_BYTES)
        self.embeddings = Embeddings(served.limits.cache_bytes, clock=clock)
        self.counters = Counters()

    # --- Requests ---

    def answer(self, request: Request[Any], token: str | None, tensors: Tensors) -> Reply:
        """Return the answer to one request; raises SamkitError, and nothing changed then."""
        if isinstance(request, Describe):
            return self._served.describe(), nothing()
        self.drop_idle()
        if isinstance(request, Open):
            return self._open(request, tensors), nothing()
        if isinstance(request, Close) and request.nonce is not None:
            self._cancel(request.nonce)
            return Nothing(), nothing()
        held = self._find(token)
        held.is_asked = True
        if isinstance(request, Alive):  # beside what the session works on, which may take minutes
            held.used = self._clock()
            return Nothing(), nothing()
        with self._waiting(held), held.lock:
            if held.is_gone:  # while this request waited
                raise self._gone(token)
            held.used = self._clock()
            try:
                return self._answer(held, request, str(token))
            finally:
                held.used = self._clock()

    @contextmanager
    def _waiting(self, held: _Held) -> Iterator[None]:
        """Refuse more requests of one session than a careful client ever sends: each keeps a thread from others."""
        with self._lock:
            if held.requests >= _MOST_REQUESTS:
                raise WrongTurn(
                    f"{held.requests} requests of this session wait already, needed is one after the other; wait for "
                    "the answer, or ask again later"
                )
            held.requests += 1
        try:
            yield
        finally:
            with self._lock:
                held.requests -= 1

    def _answer(self, held: _Held, request: Request[Any], token: str) -> Reply:
        if isinstance(request, Close):
            self._close(token, held)
            return Nothing(), nothing()
        if not isinstance(request, SessionChange):
            return held.hosted.tell(request)
        if (before := held.hosted.repeated(request)) is not None:
            return before
        if isinstance(request, (Click, BoxCorners, Add, SegmentAutomatically, Propagate)):
            with self._lock:
                self._check_memory(0, "this session takes nothing more; undo, reset, ")
        started = time.perf_counter()
        answer, labels = held.hosted.change(request)
        spent = time.perf_counter() - started
        self._count(request, answer)
        box = by(labels.shape)
        logger.info("%s %s turn %d %s %.3f s", _hash(token), request.op, held.hosted.turn, box, spent)
        return answer, labels

    def _check_memory(self, more: int, what: str, replaced: str | None = None) -> None:
        """Raise AtCapacity where sessions would hold more than they may; whoever calls has the lock."""
        taken = sum(held.hosted.nbytes for token, held in self._held.items() if token != replaced) + self._coming
        if taken + more > self._budget:
            raise AtCapacity(
                f"the sessions of {self._served.method.name} hold {taken >> 20} MiB, and may hold "
                f"{self._budget >> 20}: {what}close one, try again later, or have memory_bytes raised"
            )

    def _count(self, request: SessionChange, answer: Changed) -> None:
        """Add to the figures what a change did."""
        with self._lock:
            self.counters.clicks += len(request.prompts) if isinstance(request, (Click, BoxCorners, Add)) else 0
            for stage, seconds in ({} if answer.step is None else answer.step.seconds).items():
                if stage != "total":  # the sum of the others
                    self.counters.seconds[stage] = self.counters.seconds.get(stage, 0.0) + seconds

    # --- Opening and closing ---

    def _open(self, request: Open, tensors: Tensors) -> Opened:
        """Return the new session's answer; the same for the same nonce, whose first answer may have been lost."""
        nonce = request.nonce
        with self._lock:
            if nonce is not None and nonce in self._cancelled:
                raise ServingError(_TAKEN_BACK)
            known = None if nonce is None else self._openings.get(nonce)
            opening = _Opening() if known is None else known
            if known is None and nonce is not None:
                self._openings[nonce] = opening
        if known is None:
            try:
                opening.answer, opening.scan = self._open_new(request, tensors, opening)
            finally:
                if opening.answer is None and nonce is not None:  # the next try begins anew
                    with self._lock:
                        self._openings.pop(nonce, None)
                opening.ended.set()
            return opening.answer
        opening.ended.wait()
        if opening.answer is None:
            raise ServingError("this scan was sent twice, and the first try failed; open it again")
        # Two readers whose program draws no random nonce must not meet in one session
        if self._read(request, tensors)[2] != opening.scan:
            raise WrongTurn("this nonce opened another scan; draw a new one at random for each")
        return opening.answer

    def _open_new(self, request: Open, tensors: Tensors, opening: _Opening) -> tuple[Opened, str]:
        """Return the answer, and the key of the scan."""
        started, limit, replaced = time.perf_counter(), self._served.limits.max_sessions, request.replaces
        size = self._size(tensors)
        with self._lock:  # before any work on megabytes
            # A session that makes room for another does not count, nor do those that others replace meanwhile
            staying = self._held.keys() - self._replaced.keys() - {replaced}
            if len(staying) + self._opening >= limit:
                raise AtCapacity(
                    f"{limit} sessions of {self._served.method.name} are open, as many as this server holds; close "
                    "one, try again later, or have max_sessions raised"
                )
            self._check_memory(size, f"this scan of {size >> 20} does not fit; ", replaced)
            self._opening += 1
            self._coming += size
            self._replaced += Counter([replaced] if replaced is not None else [])
        try:
            hosted, scan = self._hold(request, tensors)
            token = self._take_place(hosted, request, opening, size)
        except BaseException:
            with self._lock:
                self._opening -= 1
                self._coming -= size
                self._end_replacing(replaced)
            raise
        with self._lock:
            old = None if replaced is None else self._held.get(replaced)
        if old is not None and replaced is not None:
            with old.lock:
                if not old.is_gone:
                    self._close(replaced, old)
        with self._lock:
            self._end_replacing(replaced)
        sides, spent = by(hosted.shape), time.perf_counter() - started
        logger.info("%s open %s %s %.3f s", _hash(token), self._served.method.name, sides, spent)
        session = hosted.session
        opened = Opened(
            token=token,
            turn=0,
            shape=hosted.shape,
            plane=session.plane,
            spacing=session.spacing,
            alive_seconds=self._served.limits.heartbeat_seconds / _BEATS if request.heartbeat else None,
        )
        return opened, scan

    def _take_place(self, hosted: HostedSession, request: Open, opening: _Opening, size: int) -> str:
        """Return the token of a session that is held from now on; raises ServingError where nobody waits for it."""
        token = self._start + secrets.token_hex(_SECRET_BYTES)
        with self._lock:  # at once, so that the session is never counted twice
            if not opening.is_cancelled:
                self._opening -= 1
                self._coming -= size
                self._held[token] = _Held(hosted, request.nonce, self._clock(), request.heartbeat)
                self.counters.opened += 1
                opening.token = token
                return token
        hosted.close()
        raise ServingError(_TAKEN_BACK)

    def _cancel(self, nonce: str) -> None:
        """Take back the opening of this nonce: done, at work, or on its way still."""
        with self._lock:
            opening = self._openings.get(nonce)
            if opening is None:
                _remember(self._cancelled, nonce, "")
                return
            opening.is_cancelled = True
            self.counters.cancelled += 1
            held = None if opening.token is None else self._held.get(opening.token)
        if held is not None and opening.token is not None:
            with held.lock:
                if not held.is_gone:
                    self._close(opening.token, held)

    def _size(self, tensors: Tensors) -> int:
        """Return the bytes that a session will hold of a scan, before any step."""
        arrays = [array for name in wire.VOLUMES if (array := tensors.get(name)) is not None]
        return sum(4 * array.size if self._served.is_slices else array.nbytes for array in arrays)

    def _end_replacing(self, replaced: str | None) -> None:
        """Let a session count again that an opening was to replace, where it is still there."""
        self._replaced -= Counter([replaced] if replaced is not None else [])

    def _hold(self, request: Open, tensors: Tensors) -> tuple[HostedSession, str]:
        """Return a session on a scan, and the scan's key."""
        array, affine, scan = self._read(request, tensors)
        voxels = np.array(array)  # the request's memory goes with the request
        embeddings = self.embeddings.open(scan)
        try:
            session = self._served.session(self._runners, request)
            if request.picture:
                session.take(np.moveaxis(voxels[..., 0], 0, -1), embeddings)
                return HostedSession(session, embeddings, None, voxels.shape[1:3]), scan
            volumes = volumes_of(voxels, affine, request.sequences)
            session.take(volumes, embeddings)
            return HostedSession(session, embeddings, affine, voxels.shape[1:]), scan
        except BaseException:
            embeddings.close()
            raise

    def _read(self, request: Open, tensors: Tensors) -> tuple[np.ndarray, np.ndarray, str]:
        """Return voxels, affine, and the SHA-256 of all that an embedding depends on, but the place in the scan."""
        voxels, affine = read_scan(
            tensors, request.sequences, self._served.limits.max_voxels, is_picture=request.picture
        )
        how = [self._served.digest, voxels.shape, voxels.dtype.name, request.picture, request.options.to_json()]
        key = hashlib.sha256(json.dumps(how).encode())
        key.update(np.ascontiguousarray(affine, np.float64).tobytes())
        key.update(np.ascontiguousarray(voxels).data)
        return voxels, affine, key.hexdigest()

    def _find(self, token: str | None) -> _Held:
        """Return the session of a token; raises the error that says why there is none."""
        with self._lock:
            if token in self._held:
                return self._held[token]
        raise self._gone(token)

    def _gone(self, token: str | None) -> ServingError:
        """Return the error that says why no session has this token."""
        with self._lock:
            why = None if token is None else self._expired.get(token)
        if why is not None:
            return SessionExpired(f"{why}, so its scan was forgotten; open the scan again")
        if token is not None and _TOKEN.fullmatch(token) and not token.startswith(self._start):
            return ServerRestarted("the server was started again since this session was opened; open the scan again")
        return UnknownSession("no session has this token, it was closed or never opened; open the scan again")

    def _close(self, token: str, held: _Held, *, why: str | None = None) -> None:
        """Forget a session; `why` says what a client hears of one that expired."""
        with self._lock:
            self._held.pop(token, None)
            if why is not None:  # at once, so that no request finds neither the session nor why it is gone
                self.counters.expired += 1
                self.counters.silent += held.has_heartbeat
                self.counters.unused += not held.has_heartbeat and not held.is_asked
                _remember(self._expired, token, why)
            if held.nonce is not None:
                self._openings.pop(held.nonce, None)
        held.is_gone = True
        held.hosted.close()
        logger.info("%s close", _hash(token))

    def drop_idle(self) -> None:
        """Forget sessions and embeddings that nobody used for too long; a session at work is not idle."""
        with self._lock:
            now = self._clock()
            waiting = [token for token, held in self._held.items() if held.used < now - self._rest(held)]
        for token in waiting:
            held = self._held.get(token)
            if held is None or not held.lock.acquire(blocking=False):
                continue
            try:
                if held.used < now - (rest := self._rest(held)) and not held.is_gone:
                    what = "heard of this session's client" if held.has_heartbeat else "used this session"
                    self._close(token, held, why=f"nobody {what} for {rest} s")
            finally:
                held.lock.release()
        self.embeddings.drop_unused(self._served.limits.idle_seconds)

    def _rest(self, held: _Held) -> int:
        """Return how long nothing may be heard of a session [s]."""
        limits = self._served.limits
        if held.has_heartbeat:
            return limits.heartbeat_seconds
        return limits.idle_seconds if held.is_asked else min(limits.idle_seconds, limits.unused_seconds)

    def figures(self) -> list[tuple[str, str, str, float, str]]:
        """Return what a metrics page shows: name, counter or gauge, description, value, and a stage or nothing."""
        with self._lock:
            counters, stages, held = self.counters, dict(self.counters.seconds), len(self._held)
            nbytes = sum(held.hosted.nbytes for held in self._held.values())
        store = self.embeddings
        return [
            ("samkit_sessions_open", "gauge", "Sessions that hold a scan", held, ""),
            ("samkit_sessions_bytes", "gauge", "Memory of scans, histories and last answers", nbytes, ""),
            ("samkit_sessions_bytes_limit", "gauge", "What that may be", self._budget, ""),
            ("samkit_sessions_total", "counter", "Sessions opened", counters.opened, ""),
            ("samkit_sessions_expired_total", "counter", "Sessions that nobody used", counters.expired, ""),
            ("samkit_sessions_silent_total", "counter", "Of them: the client's heartbeat stopped", counters.silent, ""),
            ("samkit_sessions_unused_total", "counter", "Of them: only ever opened", counters.unused, ""),
            ("samkit_opens_cancelled_total", "counter", "Opened for clients that gave up", counters.cancelled, ""),
            ("samkit_clicks_total", "counter", "Points and boxes applied", counters.clicks, ""),
            ("samkit_cache_hits_total", "counter", "Embeddings that were there already", store.hits, ""),
            ("samkit_cache_misses_total", "counter", "Embeddings that had to be encoded", store.misses, ""),
            ("samkit_cache_bytes", "gauge", "Memory of embeddings", store.nbytes, ""),
            *(
                ("samkit_stage_seconds_total", "counter", "Time spent in a stage of sessions", seconds, stage)
                for stage, seconds in sorted(stages.items())
            ),
        ]


def _remember(known: OrderedDict[str, str], key: str, value: str) -> None:
    """Add an entry; the oldest one is forgotten where there are too many."""
    known[key] = value
    while len(known) > _REMEMBERED:
        known.popitem(last=False)


def _hash(token: str) -> str:
    """Return what a log may call a session: nobody can use it."""
    return hashlib.sha256(token.encode()).hexdigest()[:8]
