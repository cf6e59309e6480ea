"""Guards what virtual readers do and count: order of calls, thinking, errors, and that they stop and let go."""

from __future__ import annotations

import os
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from samkit.benchmarks.load.readers import MOST_CALLS, VirtualReader, run_level
from samkit.errors import AtCapacity, ServerUnreachable
from samkit.geometry import Volume
from samkit.prompts import Point
from samkit.protocols.case import Case

SCAN = Volume(np.array([[[0.0, 5.0]]]), np.eye(4))
CASE = Case("two voxels", {"": SCAN}, {}, clicks=tuple(Point((0, 0, v), 1) for v in (0, 1, 1)))


class Server:
    """A clock, and what was called when; each call takes a second, and those called `failing` fail."""

    def __init__(self, failing=""):
        self.now, self.calls, self.scans, self.failing, self.open = 0.0, [], [], failing, 0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def call(self, name):
        self.calls.append(name)
        self.now += 1.0
        if name == self.failing:
            raise AtCapacity("the server holds as many sessions as it may")

    def session(self):
        self.call("open")
        self.open += 1
        return Session(self)


class Session:
    def __init__(self, server):
        self._server = server

    def set_image(self, volumes):
        self._server.call("scan")
        self._server.scans.append(volumes[""].array.tobytes())

    def click(self, index, positive, structure=""):
        self._server.call(f"click {index[2]:g}")
        return SimpleNamespace(mask=None)

    def undo(self):
        self._server.call("undo")

    def close(self):
        self._server.open -= 1


def reader(server, *, case=CASE, think_s=None, number=0, scans=None):
    return VirtualReader(
        number, case, server.session, scans or count(1), think_s, sleep=server.sleep, clock=server.clock
    )


def test_a_reader_opens_a_scan_clicks_where_the_study_says_and_takes_the_next():
    server = Server()
    one = reader(server)

    one.work(9.0)

    assert server.calls == ["open", "scan", "click 0", "click 1", "click 1", "scan", "click 0", "click 1", "click 1"]
    assert {stage: len(of) for stage, of in one.samples.items()} == {
        "open": 1, "scan": 2, "first_click": 2, "click": 4, "undo": 0,
    }  # fmt: skip
    assert all(second == 1.0 for of in one.samples.values() for second in of)


def test_a_click_that_was_taken_back_is_made_again():
    server = Server()

    reader(server).work(300.0)

    at = server.calls.index("undo")
    assert server.calls[at - 1] == server.calls[at + 1] == "click 1"


def test_without_points_scan_follows_scan():
    server = Server()

    reader(server, case=Case("air", {"": SCAN}, {})).work(4.0)

    assert server.calls == ["open", "scan", "scan", "scan"]


def test_every_scan_is_another_one():
    server, scans = Server(), count(1)

    for number in range(2):
        reader(server, number=number, scans=scans).work(12.0)

    assert len(server.scans) == server.calls.count("scan") == 6
    assert len(set(server.scans)) == 6


def test_thinking_is_drawn_around_its_mean_and_the_same_again():
    calls = []
    for _ in range(2):
        server = Server()
        reader(server, think_s=4.0).work(1000.0)
        calls.append(server.calls)

    assert calls[0] == calls[1]
    assert 150 < len(calls[0]) < 250  # a second of work after four of thought


def test_readers_do_not_think_alike():
    servers = Server(), Server()
    for number, server in enumerate(servers):
        reader(server, think_s=4.0, number=number).work(1000.0)

    assert servers[0].calls != servers[1].calls


@pytest.mark.parametrize("failing", ["open", "scan", "click 1"])
def test_a_call_that_fails_is_counted_and_the_reader_pauses_and_begins_anew(failing):
    server = Server(failing)
    one = reader(server)

    one.work(30.0)

    failures = server.calls.count(failing)
    assert one.errors == {"AtCapacity": failures}
    assert failures > 3
    after = [server.calls[at + 1] for at, name in enumerate(server.calls[:-1]) if name == failing]
    assert set(after) == {"open"}
    assert server.now >= len(server.calls) + failures - 1
    one.leave()
    assert server.open == 0


def test_what_is_no_failure_of_a_server_is_raised_and_nobody_else_goes_on():
    broken = Case("no volumes", {}, {})
    working = VirtualReader(1, CASE, Server().session, count(1), 0.01)  # by the real clock

    with pytest.raises(KeyError):
        run_level([reader(Server(), case=broken), working], 1e9)

    assert not working.holds_a_scan


def test_calls_are_bounded_however_fast_they_are():
    server = Server()

    reader(server).work(1e9)

    assert len(server.calls) == MOST_CALLS


def test_a_level_adds_up_its_readers_and_closes_every_session():
    servers = [Server(), Server("scan")]

    level = run_level([reader(server) for server in servers], 9.0, os.getpid())

    assert level.readers == 2
    assert level.figures["sessions_held"] == 1
    assert len(level.samples["click"]) == 4
    assert len(level.samples["open"]) == 1 + servers[1].calls.count("open")
    assert level.errors == {"AtCapacity": servers[1].calls.count("scan")}
    assert level.clicks_per_second == pytest.approx(6 / level.seconds)
    assert level.figures["server_rss_mb"] >= level.figures["server_pss_mb"] > 0
    assert [server.open for server in servers] == [0, 0]


def test_of_a_server_elsewhere_memory_and_processors_are_not_known():
    level = run_level([reader(Server())], 3.0)

    assert level.figures.keys() == {"sessions_held", "client_cpu_share"}


def test_a_session_that_can_not_be_closed_is_left():
    one = reader(Server())
    one.work(2.0)
    one._session.close = lambda: (_ for _ in ()).throw(ServerUnreachable("nothing answers"))

    one.leave()

    assert not one.holds_a_scan
