"""SessionHost: the sessions of one served export, each on a scan of its own, found by an unguessable token.

No Triton here: requests are JSON objects and arrays (runtime/protocol/wire.py says which), and any number of threads
may bring them. Requests of one session are worked on one after the other, those of different sessions side by side.

    host = SessionHost(served, served.runners())
    opened, _ = host.answer({"op": "open"}, None, {"volume": scan, "affine": affine})
    answer, changed = host.answer({"op": "click", "turn": 1, "point": [60, 70, 30], "label": 1}, opened["token"], {})

A scan is held in memory until its session is closed or nobody used it for a while, and is never written anywhere. A
token tells which start of the server it belongs to, so that a client learns why its session is gone.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from samkit.errors import (
    AtCapacity,
    PromptError,
    ServerRestarted,
    ServingError,
    SessionExpired,
    UnknownSession,
    WrongTurn,
)
from samkit.prompts import Prompt
from samkit.runtime.backends.runner import Runner
from samkit.runtime.loops.embeddings import Embeddings, ScanEmbeddings
from samkit.runtime.session.local_session import LocalSession
from samkit.runtime.session.updates import MaskUpdate
from samkit.triton_models.requests import (
    OPENING,
    Options,
    check_keys,
    read_flag,
    read_prompts,
    read_scan,
    read_text,
    volumes_of,
)
from samkit.triton_models.served import Served

Tensors: TypeAlias = "Mapping[str, np.ndarray | None]"
"""Volume inputs and affine of a request."""
Reply: TypeAlias = "tuple[dict[str, Any], np.ndarray]"
"""The answer's JSON, and the labels (I, J, K), uint8, of the box that it names."""

_NOTHING = np.zeros((0, 0, 0), np.uint8)
_START_BYTES, _SECRET_BYTES = 8, 24
_TOKEN = re.compile(f"[0-9a-f]{{{2 * (_START_BYTES + _SECRET_BYTES)}}}")
"""What a token looks like: which start of the server it belongs to, then what nobody can guess."""
_REMEMBERED = 4096
"""Expired sessions whose users can still be told so."""
_MOST_REQUESTS = 4
"""Of one session at a time: a call, and its repeats after a lost connection."""
_PROMPTING = frozenset({"click", "box", "prompts"})
_CHANGING = _PROMPTING | {"decide", "propagate", "undo", "redo", "reset"}
_KEYS = {
    "click": ("op", "turn", "point", "label", "structure", "world"),
    "box": ("op", "turn", "box", "structure", "world"),
    "prompts": ("op", "turn", "prompts", "world"),
    "check": ("op", "prompts", "world"),
    **dict.fromkeys(_CHANGING - _PROMPTING, ("op", "turn")),
    "state": ("op",),
    "close": ("op",),
}
"""What a request may say."""
_SHORTEST_NONCE = 16
_MOST_STEPS = 512
"""Of one session: each keeps a mask, and an embedding where refinement is recurrent."""


@dataclass
class Counters:
    """What happened since the server started."""

    opened: int = 0
    clicks: int = 0
    """Points and boxes."""
    expired: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent by stage [s]."""


@dataclass
class _Held:
    """One session."""

    session: LocalSession[Any]
    embeddings: ScanEmbeddings
    affine: np.ndarray | None
    """None for a picture."""
    shape: tuple[int, ...]
    """Of the scan, or height and width of the picture."""
    nonce: str | None
    """What the client called the request that opened it."""
    used: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    turn: int = 0
    last: tuple[str, Reply] | None = None
    """The request of that turn and its reply, for a client that did not get it."""
    requests: int = 0
    """At work or waiting."""
    is_gone: bool = False
    """Closed while a request waited for it."""


@dataclass
class _Opening:
    """A request to open a session, at work or done."""

    ended: threading.Event = field(default_factory=threading.Event)
    answer: dict[str, Any] | None = None
    scan: str = ""
    """The key of what was opened."""


class SessionHost:
    """All sessions of one served export."""

    def __init__(
        self,
        served: Served,
        runners: Mapping[str, Runner],
        *,
        clock: Callable[[], float] = time.monotonic,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Run graphs by `runners`. `clock` tells seconds; `log` gets a line without names, paths or voxels."""
        self._served = served
        self._runners = runners
        self._clock = clock
        self._log = log
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._opening = 0
        self._openings: dict[str, _Opening] = {}
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._start = secrets.token_hex(_START_BYTES)
        self.embeddings = Embeddings(served.limits.cache_bytes, clock=clock)
        self.counters = Counters()

    # --- Requests ---

    def answer(self, request: object, token: str | None, tensors: Tensors) -> Reply:
        """Return the answer to one request; raises SamkitError, and nothing changed then."""
        if not isinstance(request, dict) or not isinstance(op := request.get("op"), str):
            raise PromptError(
                f'the request is {request!r:.100}, needed is a JSON object with an op; e.g. {{"op": "open"}}'
            )
        if op == "describe":
            return self._served.describe(), _NOTHING
        self.drop_idle()
        if op == "open":
            return self._open(request, tensors), _NOTHING
        if op not in _KEYS:
            known = ", ".join(sorted({"describe", "open", *_KEYS}))
            raise PromptError(f"the request's op is '{op:.40}', known are {known}; send one of those")
        check_keys(request, _KEYS[op], op)
        held = self._find(token)
        with self._waiting(held), held.lock:
            if held.is_gone:  # while this request waited
                raise self._gone(token)
            held.used = self._clock()
            try:
                return self._answer(held, op, request, str(token))
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

    def _answer(self, held: _Held, op: str, request: dict[str, Any], token: str) -> Reply:
        if op == "close":
            self._close(token, held)
            return {}, _NOTHING
        if op == "state":
            update = held.session.update_from_empty()
            return self._reply(held, update, held.turn), _as_volume(update.change[1])
        if op == "check":
            held.session.check(*self._prompts(held, op, request))
            return {}, _NOTHING
        return self._change(held, op, request, token)

    # --- Opening and closing ---

    def _open(self, request: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
        """Return the new session's answer; the same for the same nonce, whose first answer may have been lost."""
        check_keys(request, ("op", "nonce", "replaces", *OPENING), "open")
        nonce = read_text(request, "nonce")
        if nonce is not None and len(nonce) < _SHORTEST_NONCE:
            raise PromptError(
                f"the nonce has {len(nonce)} letters, needed are {_SHORTEST_NONCE} and more, drawn at random for each "
                "scan; leave it out if you never send a request twice"
            )
        with self._lock:
            known = None if nonce is None else self._openings.get(nonce)
            opening = _Opening() if known is None else known
            if known is None and nonce is not None:
                self._openings[nonce] = opening
        if known is None:
            try:
                opening.answer, opening.scan = self._open_new(request, tensors, nonce)
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
        if self._read(Options.from_json(request), tensors)[2] != opening.scan:
            raise WrongTurn("this nonce opened another scan; draw a new one at random for each")
        return opening.answer

    def _open_new(self, request: dict[str, Any], tensors: Tensors, nonce: str | None) -> tuple[dict[str, Any], str]:
        """Return the answer, and the key of the scan."""
        started, limit = time.perf_counter(), self._served.limits.max_sessions
        options = Options.from_json(request)
        replaced = read_text(request, "replaces")
        with self._lock:  # before any work on megabytes
            if len(self._held) + self._opening - (replaced in self._held) >= limit:
                raise AtCapacity(
                    f"{limit} sessions of {self._served.method.name} are open, as many as this server holds; close "
                    "one, try again later, or have max_sessions raised"
                )
            self._opening += 1
        try:
            held, scan = self._hold(options, tensors, nonce)
        except BaseException:
            with self._lock:
                self._opening -= 1
            raise
        token = self._start + secrets.token_hex(_SECRET_BYTES)
        with self._lock:  # at once, so that the session is never counted twice
            self._opening -= 1
            self._held[token] = held
            self.counters.opened += 1
            old = None if replaced is None else self._held.get(replaced)
        if old is not None and replaced is not None:
            with old.lock:
                if not old.is_gone:
                    self._close(replaced, old)
        session, shape = held.session, held.shape
        self._log(
            f"{_hash(token)} open {self._served.method.name} {' x '.join(str(side) for side in shape)} "
            f"{time.perf_counter() - started:.3f} s"
        )
        return {
            "token": token,
            "turn": 0,
            "shape": list(shape),
            "plane": session.plane,
            "spacing": None if session.spacing is None else list(session.spacing),
        }, scan

    def _hold(self, options: Options, tensors: Tensors, nonce: str | None) -> tuple[_Held, str]:
        """Return a session on a scan, and the scan's key."""
        array, affine, scan = self._read(options, tensors)
        voxels = np.array(array)  # the request's memory goes with the request
        embeddings = self.embeddings.open(scan)
        try:
            session = self._served.session(self._runners, asdict(options))
            image = (
                np.moveaxis(voxels[..., 0], 0, -1) if options.picture else volumes_of(voxels, affine, options.sequences)
            )
            session.set_image(image, automatic=False, embeddings=embeddings)
        except BaseException:
            embeddings.close()
            raise
        shape = voxels.shape[1:3] if options.picture else voxels.shape[1:]
        return _Held(session, embeddings, None if options.picture else affine, shape, nonce, self._clock()), scan

    def _read(self, options: Options, tensors: Tensors) -> tuple[np.ndarray, np.ndarray, str]:
        """Return voxels, affine, and the SHA-256 of all that an embedding depends on, but the place in the scan."""
        voxels, affine = read_scan(tensors, options, self._served.limits.max_voxels)
        how = json.dumps([self._served.digest, voxels.shape, voxels.dtype.name, asdict(options)])
        key = hashlib.sha256(how.encode())
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
            is_expired = token in self._expired
        if is_expired:
            return SessionExpired(
                f"nobody used this session for {self._served.limits.idle_seconds} s, so its scan was forgotten; open "
                "the scan again"
            )
        if token is not None and _TOKEN.fullmatch(token) and not token.startswith(self._start):
            return ServerRestarted("the server was started again since this session was opened; open the scan again")
        return UnknownSession("no session has this token, it was closed or never opened; open the scan again")

    def _close(self, token: str, held: _Held, *, is_expired: bool = False) -> None:
        with self._lock:
            self._held.pop(token, None)
            if is_expired:  # at once, so that no request finds neither the session nor why it is gone
                self.counters.expired += 1
                self._expired[token] = None
                while len(self._expired) > _REMEMBERED:
                    self._expired.popitem(last=False)
            if held.nonce is not None:
                self._openings.pop(held.nonce, None)
        held.is_gone = True
        held.embeddings.close()
        self._log(f"{_hash(token)} close")

    def drop_idle(self) -> None:
        """Forget sessions and embeddings that nobody used for too long; a session at work is not idle."""
        idle = self._served.limits.idle_seconds
        with self._lock:
            oldest = self._clock() - idle
            waiting = [token for token, held in self._held.items() if held.used < oldest]
        for token in waiting:
            held = self._held.get(token)
            if held is None or not held.lock.acquire(blocking=False):
                continue
            try:
                if held.used < oldest and not held.is_gone:
                    self._close(token, held, is_expired=True)
            finally:
                held.lock.release()
        self.embeddings.drop_unused(idle)

    def figures(self) -> list[tuple[str, str, str, float, str]]:
        """Return what a metrics page shows: name, counter or gauge, description, value, and a stage or nothing."""
        with self._lock:
            counters, stages, held = self.counters, dict(self.counters.seconds), len(self._held)
        store = self.embeddings
        return [
            ("samkit_sessions_open", "gauge", "Sessions that hold a scan", held, ""),
            ("samkit_sessions_total", "counter", "Sessions opened", counters.opened, ""),
            ("samkit_sessions_expired_total", "counter", "Sessions that nobody used", counters.expired, ""),
            ("samkit_clicks_total", "counter", "Points and boxes applied", counters.clicks, ""),
            ("samkit_cache_hits_total", "counter", "Embeddings that were there already", store.hits, ""),
            ("samkit_cache_misses_total", "counter", "Embeddings that had to be encoded", store.misses, ""),
            ("samkit_cache_bytes", "gauge", "Memory of embeddings", store.nbytes, ""),
            *(
                ("samkit_stage_seconds_total", "counter", "Time spent in a stage of sessions", seconds, stage)
                for stage, seconds in sorted(stages.items())
            ),
        ]

    # --- What changes a session ---

    def _change(self, held: _Held, op: str, request: dict[str, Any], token: str) -> Reply:
        """Do what a request of the next turn says; the turn before is answered again, if it is the same request."""
        turn, text = request.get("turn"), json.dumps(request, sort_keys=True)
        if held.last is not None and turn == held.turn and text == held.last[0]:
            return held.last[1]
        if not isinstance(turn, int) or isinstance(turn, bool) or turn != held.turn + 1:
            raise WrongTurn(
                f'this call has turn {turn!r:.20} and the session\'s next one is {held.turn + 1}; ask its "state", '
                "and let one program at a time use a session"
            )
        if op in _PROMPTING and len(held.session.steps) >= _MOST_STEPS:
            raise PromptError(f"this session has {_MOST_STEPS} steps, as many as a server remembers; reset it")
        started = time.perf_counter()
        prompts = self._prompts(held, op, request) if op in _PROMPTING else []
        with held.session.all_or_nothing():
            update = self._do(held.session, op, prompts)
            reply = self._reply(held, update, turn), _as_volume(update.change[1])
        held.turn = turn
        held.last = (text, reply)
        spent = time.perf_counter() - started
        with self._lock:
            self.counters.clicks += len(prompts)
            for stage, seconds in (update.step.seconds if update.step is not None else {}).items():
                if stage != "total":  # the sum of the others
                    self.counters.seconds[stage] = self.counters.seconds.get(stage, 0.0) + seconds
        self._log(f"{_hash(token)} {op} turn {held.turn} {' x '.join(str(n) for n in reply[1].shape)} {spent:.3f} s")
        return reply

    def _do(self, session: LocalSession[Any], op: str, prompts: list[Prompt]) -> MaskUpdate:
        if op in _PROMPTING:
            return session.add(*prompts)
        acts = {
            "decide": session.segment_automatically,
            "propagate": session.propagate,
            "undo": session.undo,
            "redo": session.redo,
            "reset": session.reset,
        }
        return acts[op]()

    def _prompts(self, held: _Held, op: str, request: dict[str, Any]) -> list[Prompt]:
        if op in ("click", "box"):
            kept = {"click": ("point", "label", "structure"), "box": ("box", "structure")}[op]
            entries: object = [{key: request[key] for key in kept if key in request}]
        else:
            entries = request.get("prompts")
        return read_prompts(entries, held.affine, world=read_flag(request, "world"))

    def _reply(self, held: _Held, update: MaskUpdate, turn: int) -> dict[str, Any]:
        session, region = held.session, [[side.start, side.stop] for side in update.changed]
        return {
            "turn": turn,
            "step": None if update.step is None else asdict(update.step),
            "region": region if len(region) == 3 else [*region, [0, 1]],
            "volume_ml": update.volume_ml,
            "iou": list(update.iou),
            "prompted": list(session.prompted),
            "origins": [list(origin) for origin in session.origins],
        }


def _as_volume(labels: np.ndarray) -> np.ndarray:
    """Return labels of a region with three axes; a picture's have two.

    A copy: they may be a view of the whole mask, and stay in memory for a client that did not get its answer.
    """
    return np.array(labels if labels.ndim == 3 else labels[..., None], np.uint8, order="C")


def _hash(token: str) -> str:
    """Return what a log may call a session: nobody can use it."""
    return hashlib.sha256(token.encode()).hexdigest()[:8]
