"""Guards how runs take turns: everyone in every round, who begins moves on, and every run is kept."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from functools import partial

import pytest

from samkit.benchmarks.measure import turns
from samkit.benchmarks.measure.turns import several, take_round, take_turns


@pytest.fixture(autouse=True)
def _no_quiet(monkeypatch):
    monkeypatch.setattr(turns, "QUIET_SECONDS", 0.0)


def test_runs_take_turns_and_who_begins_changes():
    calls = []

    samples = take_turns({name: several(partial(calls.append, name), 0.0) for name in "abc"}, rounds=3)

    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: [len(turn) for turn in of] for name, of in samples.items()} == {name: [1, 1, 1] for name in "abc"}


def test_rounds_that_do_not_count_come_first_and_each_round_begins_with_a_sample():
    calls = []
    begins = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}

    found = take_turns(begins, rounds=1, before=lambda: calls.append("-"), uncounted=1)

    assert "".join(calls) == "-ab" + "-ba"
    assert found == {"a": [6], "b": [5]}


def test_one_round_is_in_the_order_of_its_number():
    calls = []

    assert take_round({name: lambda name=name: calls.append(name) or name for name in "ab"}, 1) == {"a": "a", "b": "b"}
    assert calls == ["b", "a"]


def test_nobody_may_be_left_to_take_turns():
    assert take_turns({}, rounds=2) == {}


def test_cheap_run_is_repeated_in_its_turn_and_the_first_one_does_not_count(monkeypatch):
    monkeypatch.setattr(turns, "seconds_of", lambda run: run() or 0.1)
    calls = []

    turn = several(lambda: calls.append(0), turn_seconds=0.4)

    assert turn() == pytest.approx([0.1] * 4)
    assert len(calls) == 2 + 1 + 4


@pytest.mark.parametrize("fails", [False, True])
def test_no_garbage_is_collected_within_a_turn_and_it_is_afterwards(fails):
    seen = []
    one = several(lambda: seen.append(gc.isenabled()) or (1 / 0 if fails and len(seen) > 1 else 0), 0.0)

    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        take_turns({"one": one}, 1)

    assert seen == [True, False]
    assert gc.isenabled()
