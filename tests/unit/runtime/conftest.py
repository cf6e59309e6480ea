"""Fixtures of the runtime's tests: what `open_session` opens, on a folder and on a server in this process."""

from __future__ import annotations

import pytest

import samkit
from samkit.runtime.client import remote_session

ADDRESS = "triton://localhost:8001/bright"


@pytest.fixture(params=["here", "there"])
def open_anywhere(request, serve, wired, monkeypatch):
    """Return `open_session` of an export folder, in this process and on a server that has it."""

    def open_there(folder, **options):
        monkeypatch.setattr(remote_session, "connect", lambda address: wired(serve(folder)))
        return samkit.open_session(ADDRESS, **options)

    return samkit.open_session if request.param == "here" else open_there


@pytest.fixture
def volumes(open_anywhere, bright_export):
    """A session on volumes, in this process and on a server."""
    with open_anywhere(bright_export) as session:
        yield session
