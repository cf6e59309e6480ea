"""Exports at work: `open_session(folder)`, or the address of a server, and `sam-segment` on the command line.

Names load when they are asked for: a client of a server has numpy, nibabel and tritonclient, and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samkit.runtime.opening import open_session
    from samkit.runtime.remote_session import RemoteSession
    from samkit.runtime.session import Session
    from samkit.runtime.slice_session import SliceSession
    from samkit.runtime.steps import SliceStep, Step

__all__ = ["RemoteSession", "Session", "SliceSession", "SliceStep", "Step", "open_session"]

_HOMES = {
    "RemoteSession": "remote_session",
    "Session": "session",
    "SliceSession": "slice_session",
    "SliceStep": "steps",
    "Step": "steps",
    "open_session": "opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
