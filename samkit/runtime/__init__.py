"""Exports at work: `open_session(folder)`, and `sam-segment` on the command line. Imports no torch."""

from samkit.runtime.session import Session, Step, open_session

__all__ = ["Session", "Step", "open_session"]
