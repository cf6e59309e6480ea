"""Exports at work: `open_session(folder)`, or the address of a server, gives a Session to click in.

Names load when they are asked for: a client of a server has numpy, nibabel and tritonclient, and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samkit.runtime.client.remote_session import RemoteSession
    from samkit.runtime.opening import open_export, open_session
    from samkit.runtime.session.base import Session
    from samkit.runtime.session.slice_session import SliceSession
    from samkit.runtime.session.steps import Step
    from samkit.runtime.session.updates import MaskUpdate
    from samkit.runtime.session.volume_session import VolumeSession

__all__ = [
    "MaskUpdate",
    "RemoteSession",
    "Session",
    "SliceSession",
    "Step",
    "VolumeSession",
    "open_export",
    "open_session",
]

_HOMES = {
    "MaskUpdate": "session.updates",
    "RemoteSession": "client.remote_session",
    "Session": "session.base",
    "SliceSession": "session.slice_session",
    "Step": "session.steps",
    "VolumeSession": "session.volume_session",
    "open_export": "opening",
    "open_session": "opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
