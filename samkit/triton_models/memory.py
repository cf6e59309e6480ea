"""What sessions hold in memory, counted, and what they may hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np

_CGROUP = ("memory.max", "memory/memory.limit_in_bytes")
"""Of a container, in both versions of Linux's control groups."""


def budget_of_machine(names: int, *, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return what the sessions of one of `names` may hold where nobody says [bytes].

    Half of what the machine, or the container, has: the rest is for graphs, the embedding cache, and requests.
    """
    (kilobytes,) = (
        int(line.split()[1]) for line in (proc / "meminfo").read_text().splitlines() if line.startswith("MemTotal:")
    )
    found = [kilobytes << 10]
    for file in _CGROUP:
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            found.append(int((cgroup / file).read_text()))
    return min(found) // 2 // names


class Counted:
    """How much memory the arrays of a session take, each counted once, however many states share it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._known: dict[int, tuple[object, dict[int, int]]] = {}
        """What was counted before, with the arrays in it; states are never changed in place."""

    def count(self, kept: Iterable[object]) -> int:
        """Return the bytes of all arrays in `kept`; only what is new in it is looked through."""
        self._known = {id(one): self._known.get(id(one)) or (one, _arrays(one)) for one in kept}
        found: dict[int, int] = {}
        for _, arrays in self._known.values():
            found.update(arrays)
        return sum(found.values())


def _arrays(one: object) -> dict[int, int]:
    """Return the size of every array in a tree of records, mappings and sequences; views are what they are views of."""
    found: dict[int, int] = {}
    left = [one]
    while left:
        node = left.pop()
        if isinstance(node, np.ndarray):
            while isinstance(node.base, np.ndarray):
                node = node.base
            found[id(node)] = node.nbytes
        elif is_dataclass(node) and not isinstance(node, type):
            left += [getattr(node, field.name) for field in fields(node)]
        elif isinstance(node, Mapping):
            left += node.values()
        elif isinstance(node, (tuple, list)):
            left += node
        elif isinstance(size := getattr(node, "nbytes", None), int):  # on a device
            found[id(node)] = size
    return found
