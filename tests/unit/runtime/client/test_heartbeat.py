"""A heart beats beside a session's acts, goes on whatever one beat meets, and ends with its session."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from samkit.errors import ServerTimeout, ServingError, SessionExpired
from samkit.runtime.client.exchange import Exchange
from samkit.runtime.client.heartbeat import Heartbeat
from samkit.runtime.client.triton_transport import ConnectionLost
from samkit.runtime.protocol import wire


class Beaten:
    """A transport that answers, or raises what it was told to, in turn; it ends the waiting after the last one."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.beats = []
        self.is_done = threading.Event()

    def call(self, inputs, timeout):
        self.beats.append((wire.decode(inputs[wire.REQUEST], "request"), inputs[wire.TOKEN][0], timeout))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return {wire.ANSWER: wire.encode({}), wire.CHANGED: np.zeros((0, 0, 0), np.uint8)}

    def close(self):
        pass

    def beat(self, waits):
        """Have a heart beat once for each of `waits` that is no end, and return when its thread has ended."""
        before = set(threading.enumerate())
        go = threading.Event()
        waits = iter(waits)

        def wait(seconds):
            assert go.wait(60)
            return next(waits)

        heart = Heartbeat(Exchange(self, "there", sleep=None, clock=None), "t" * 64, 30.0, wait=wait)
        (thread,) = set(threading.enumerate()) - before
        assert thread.daemon
        go.set()
        thread.join(60)
        assert not thread.is_alive()
        return heart


ERRORS = [ConnectionLost("reset"), ServerTimeout("late"), ServingError("no"), ValueError("channel")]


def test_it_goes_on_until_it_is_told_to_end():
    transport = Beaten("", *ERRORS, "")
    transport.beat([False] * 6 + [True])
    assert transport.beats == [({"op": "alive"}, b"t" * 64, 5.0)] * 6


def test_it_ends_with_the_session():
    transport = Beaten("", SessionExpired("nobody"), "")
    transport.beat([False] * 3)
    assert len(transport.beats) == 2


@pytest.mark.parametrize("error", ERRORS)
def test_it_ends_with_the_connection(error):
    transport = Beaten(error, "")
    exchange = Exchange(transport, "there", sleep=None, clock=None)
    go = threading.Event()
    heart = Heartbeat(exchange, "t", 30.0, wait=lambda seconds: not go.wait(60))
    exchange.close()
    go.set()
    heart.stop()
    assert not transport.beats


def test_one_that_is_stopped_beats_no_more():
    transport = Beaten("")
    ended = threading.Event()
    heart = Heartbeat(Exchange(transport, "there", sleep=None, clock=None), "t", 3600.0)
    heart.stop()
    ended.set()
    assert not transport.beats
