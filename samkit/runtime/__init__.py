"""Exports at work: `open_session(folder)`, and `sam-segment` on the command line. Imports no torch."""

from samkit.runtime.session import Session, Step, open_session
from samkit.runtime.slice_session import SliceSession, SliceStep

__all__ = ["Session", "SliceSession", "SliceStep", "Step", "open_session"]
