"""PROTOCOL: the number of what client and server agree on; it grows with every change of a request or an answer."""

from __future__ import annotations

PROTOCOL = 2
