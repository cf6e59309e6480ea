"""What a server lets its sessions take, and which Python model's config says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from samkit.errors import ServingError


@dataclass(frozen=True)
class Limits:
    """What a server lets its sessions take. It stands in the configs of the Python models, where it may be changed."""

    max_sessions: int = 16
    """Sessions open at once; one more is refused with "at capacity"."""
    idle_seconds: int = 900
    """A session that nobody asked anything for so long is closed, unless its client announced a heartbeat."""
    heartbeat_seconds: int = 45
    """A session whose client announced a heartbeat is closed where nothing was heard of that for so long, and stays
    where it rests."""
    unused_seconds: int = 60
    """A session without heartbeat that nobody asked anything since it was opened is closed after so long."""
    memory_bytes: int = 0
    """What all sessions of one name together may hold: scans, histories, answers [bytes]; 0 is half of what the machine
    or the container has, shared among the names. Beyond it no scan is opened, and no prompt taken."""
    cache_bytes: int = 2**30
    """Embeddings kept in memory for all sessions of one name together [bytes]."""
    max_voxels: int = 2**28
    """Largest volume tensor taken, over all its sequences [voxels]."""
    threads: int = 32
    """Requests of sessions that are worked on at once; further ones wait. One that waits for an encoder counts, too, so
    there should be as many as sessions."""

    def __post_init__(self) -> None:
        """Raise ServingError for a limit that lets nothing through."""
        for name, value in self.__dict__.items():
            least = 0 if name in ("cache_bytes", "memory_bytes") else 1  # no cache is a choice
            if value < least:
                raise ServingError(f"the limit {name} is {value} and nothing could be served with it; raise it")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self:
        """Return the limits that a config's `parameters` hold; raises ServingError for one that can't be read."""
        found = {}
        for name in (field.name for field in fields(cls) if field.name in parameters):
            try:
                found[name] = int(parameters[name])
            except ValueError as error:
                raise ServingError(
                    f"the limit {name} is '{parameters[name]:.40}', needed is a whole number; mend it in config.pbtxt"
                ) from error
        return cls(**found)


DEFAULTS = Limits()
MOST_RESTARTS = 5
"""How often in a row `sam-serve start` starts again what died at once."""
DRAIN_SECONDS = 30.0
"""How long requests that are worked on may take once the server was told to stop."""

LIMITS = {
    "preprocess": ("max_voxels",),
    "refine": ("max_voxels", "threads"),
    "postprocess": ("max_voxels",),
    "session": tuple(field.name for field in fields(Limits)),
}
"""Which limits each Python model's config holds."""
