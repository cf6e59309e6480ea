"""Guards how runs take turns: everyone in every round, who begins moves on, and every run is kept."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import pytest

from samkit.benchmarks.measure import turns
from samkit.benchmarks.measure.turns import Turns, take_turns


def test_runs_take_turns_and_who_begins_changes(monkeypatch):
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    calls = []

    samples = take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3)

    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: [len(turn) for turn in of] for name, of in samples.items()} == {name: [1, 1, 1] for name in "abc"}


def test_nobody_may_be_left_to_take_turns():
    assert take_turns({}, rounds=2) == {}


def test_cheap_run_is_repeated_in_its_turn_and_the_first_one_does_not_count(monkeypatch):
    monkeypatch.setattr(turns, "seconds_of", lambda run: run() or 0.1)
    calls = []

    several = Turns({"cheap": lambda: calls.append(0)}, turn_seconds=0.4)
    several.take()

    assert several.samples == {"cheap": [pytest.approx([0.1] * 4)]}
    assert len(calls) == 2 + 1 + 4


@pytest.mark.parametrize("fails", [False, True])
def test_no_garbage_is_collected_within_a_turn_and_it_is_afterwards(fails, monkeypatch):
    monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
    seen = []
    one = Turns({"one": lambda: seen.append(gc.isenabled()) or (1 / 0 if fails and len(seen) > 1 else 0)})

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        one.take()

    assert seen == [True, False]
    assert gc.isenabled()
