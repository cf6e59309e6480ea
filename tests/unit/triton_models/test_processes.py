"""Processes that end or stand still are noticed, and who belongs to a group is found."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from samkit.triton_models.processes import Death, Vigil, members, stubs

ENOUGH = 60
"""Seconds after which something would never happen."""


@pytest.fixture
def child():
    """A process, in a group of its own, that does nothing."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"], process_group=0)
    yield child
    child.kill()
    child.wait()


def test_processes_of_a_group_are_found_and_the_dead_do_not_count(child):
    assert members(child.pid, patience=0) == [child.pid]
    assert stubs(child.pid) == {}
    child.kill()
    assert members(child.pid, patience=ENOUGH) == []  # nobody has waited for it yet


def test_process_that_ends_is_noticed(child):
    with Vigil() as vigil:
        vigil.watch(child.pid, "m_sam_session")
        assert vigil.wait(0) is None
        child.kill()
        assert vigil.wait(ENOUGH) == Death("m_sam_session", "ended")
        vigil.forget("m_sam_session")
        assert vigil.wait(0) is None


def test_process_that_stands_still_is_noticed(child):
    with Vigil() as vigil:
        vigil.watch(child.pid)
        child.send_signal(signal.SIGSTOP)
        assert vigil.wait(ENOUGH) == Death("", "stands still")


def test_process_that_ended_before_is_noticed(child):
    child.kill()
    child.wait()
    with Vigil() as vigil:
        vigil.watch(child.pid, "m_sam_session")
        assert vigil.wait(ENOUGH) == Death("m_sam_session", "ended")
