"""How many threads of one operator make sense on this machine."""

from __future__ import annotations

import os

MOST_THREADS = 4 * (os.cpu_count() or 1)
"""More only wait for each other, and each takes memory: a hundred thousand end the process."""
