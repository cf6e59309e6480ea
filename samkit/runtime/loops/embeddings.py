"""Embeddings: what encoders made of crops and slices, kept for the next click, on the device where there is one.

One store may serve many sessions, as in a server. Each session opens its scan in it by a key: two sessions that give
the same key share what either of them encoded, so the key must name all that an embedding depends on. What belongs to a
scan is dropped with the last session that holds it, and a budget drops what was used least recently. Memory only:
nothing of it is ever written to a disk.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from samkit.errors import InputRefused

KEPT_BYTES = 2**28
"""What a session of its own keeps: 64 slices of SAM at 1024 pixels, or 340 crops of SAM-Med3D."""


class Sized(Protocol):
    """What can be kept."""

    @property
    def nbytes(self) -> int:
        """Return how much memory it takes."""


SizedT = TypeVar("SizedT", bound=Sized)


@dataclass
class _Entry:
    made: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    """A Sized, or the InputRefused in its place; None until it is made, and if making it failed."""
    used: float = 0.0
    """When it was last asked for."""

    @property
    def nbytes(self) -> int:
        return 0 if self.value is None or isinstance(self.value, InputRefused) else self.value.nbytes


class Embeddings:
    """A store of embeddings with a budget, for any number of sessions and threads."""

    def __init__(self, max_bytes: int = KEPT_BYTES, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep up to `max_bytes`, and always the newest; `clock` tells seconds."""
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[Hashable, Hashable], _Entry] = OrderedDict()
        self._holders: dict[Hashable, int] = {}
        self.hits = 0
        """How often something was there already."""
        self.misses = 0
        """How often something had to be encoded."""

    def open(self, scan: Hashable) -> ScanEmbeddings:
        """Return the embeddings of the scan of this key; close it when the scan is no longer needed."""
        with self._lock:
            self._holders[scan] = self._holders.get(scan, 0) + 1
        return ScanEmbeddings(self, scan)

    def find_or_make(self, scan: Hashable, place: Hashable, make: Callable[[], SizedT]) -> SizedT:
        """Return the embedding at `place`, from `make` if it is not there; a refusal is remembered, too.

        Where two threads want the same at once, one makes it and the other waits; different ones don't wait.
        """
        key = (scan, place)
        while True:
            with self._lock:
                entry = self._entries.get(key)
                is_mine = entry is None
                if entry is None:
                    entry = self._entries[key] = _Entry()
                    self.misses += 1
                entry.used = self._clock()
                self._entries.move_to_end(key)
            if is_mine:
                self._make(key, entry, make)
            entry.made.wait()
            if entry.value is not None:
                break  # else whoever made it failed, and told its own caller: this one tries for itself
        if not is_mine:
            with self._lock:
                self.hits += 1
        if isinstance(entry.value, InputRefused):
            raise _again(entry.value)
        found: SizedT = entry.value
        return found

    def _make(self, key: tuple[Hashable, Hashable], entry: _Entry, make: Callable[[], Sized]) -> None:
        try:
            entry.value = make()
        except InputRefused as refusal:
            entry.value = _again(refusal)
        finally:
            with self._lock:
                is_ours = self._entries.get(key) is entry  # else the scan was closed, and opened again since
                if is_ours and (entry.value is None or self._holders.get(key[0], 0) == 0):
                    del self._entries[key]
                self._drop_to_budget()
            entry.made.set()

    def _drop_to_budget(self) -> None:
        total = sum(entry.nbytes for entry in self._entries.values())
        for key in list(self._entries)[:-1]:
            if total <= self._max_bytes:
                return
            if self._entries[key].made.is_set():
                total -= self._entries.pop(key).nbytes

    def close(self, scan: Hashable) -> None:
        """Let go of one holder of a scan; with the last one go its embeddings."""
        with self._lock:
            self._holders[scan] -= 1
            if self._holders[scan] == 0:
                del self._holders[scan]
                for key in [key for key in self._entries if key[0] == scan]:
                    del self._entries[key]

    def drop_unused(self, seconds: float) -> None:
        """Let go of what nobody asked for within the last `seconds`."""
        with self._lock:
            oldest = self._clock() - seconds
            for key in [k for k, entry in self._entries.items() if entry.made.is_set() and entry.used < oldest]:
                del self._entries[key]

    @property
    def nbytes(self) -> int:
        """Return how much memory is in use."""
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())


class ScanEmbeddings:
    """The part of a store that belongs to one scan."""

    def __init__(self, store: Embeddings, scan: Hashable) -> None:
        self._store = store
        self._scan = scan
        self._is_open = True

    def find_or_make(self, place: Hashable, make: Callable[[], SizedT]) -> SizedT:
        """Return what was encoded at `place` of the scan, from `make` if it is not there."""
        return self._store.find_or_make(self._scan, place, make)

    def close(self) -> None:
        """Let go of the scan; closing twice does nothing."""
        if self._is_open:
            self._is_open = False
            self._store.close(self._scan)


def _again(refusal: InputRefused) -> InputRefused:
    """Return the same refusal without its traceback, whose frames hold the scan of whoever met it first."""
    return InputRefused(refusal.code, *refusal.parts, options=refusal.options)


def own_embeddings() -> ScanEmbeddings:
    """Return a store that one session has for itself."""
    return Embeddings().open(None)
