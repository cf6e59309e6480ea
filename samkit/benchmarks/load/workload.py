"""What readers are to do in `sam-bench load`. Nothing heavy is imported here: the command's help reads it."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("think", "closed")
VOLUME, SLICES, SESSIONS, CLICKS = SCALINGS = ("volume", "slices", "sessions", "clicks")
"""What cost may be fitted over."""


@dataclass(frozen=True)
class Workload:
    """What readers are to do, and over what the growth of cost is fitted, as the options of the command say it."""

    sessions: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Readers of each level, in turn."""
    modes: tuple[str, ...] = MODES
    think_s: float = 2.0
    """Mean time between two calls of a reader in the mode `think`."""
    seconds: float = 20.0
    """How long a level takes."""
    limit_ms: float = 1000.0
    scaling: tuple[str, ...] = SCALINGS
    rounds: int = 5
