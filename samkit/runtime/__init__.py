"""Exports at work: `open_session(folder)`, and `sam-segment` on the command line. Imports no torch."""

from samkit.runtime.session import Session, open_session
from samkit.runtime.slice_session import SliceSession
from samkit.runtime.steps import SliceStep, Step

__all__ = ["Session", "SliceSession", "SliceStep", "Step", "open_session"]
