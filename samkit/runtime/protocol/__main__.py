"""Print what a session's requests and answers are, as docs/reference/server.md has them."""

from __future__ import annotations

from samkit.runtime.protocol.tables import tables

for name, table in tables().items():
    print(f"{name}\n\n{table}\n")  # noqa: T201
