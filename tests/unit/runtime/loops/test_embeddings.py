"""What was encoded is kept within its budget, made once whoever asks, and gone with the last who held it."""

from __future__ import annotations

import gc
import threading
import traceback
import weakref

import numpy as np
import pytest

from samkit.errors import InputRefused
from samkit.runtime.loops.embeddings import Embeddings, own_embeddings

KIB = np.zeros(1024, np.uint8)


class Made:
    """Makes embeddings of a KiB, and counts."""

    def __init__(self, sides=1):
        self.count, self.sides = 0, sides

    def __call__(self):
        self.count += 1
        return np.full(1024 * self.sides, self.count, np.uint8)


def refuse():
    raise InputRefused("no-contrast", "the crop holds one value", "click elsewhere")


def in_threads(*acts):
    """Start `acts` in threads; return a function that joins them and gives what each returned or raised."""
    found = [None] * len(acts)

    def run(number, act):
        try:
            found[number] = act()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(acts)]
    for thread in threads:
        thread.start()

    def join():
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return found

    return join


def test_what_is_there_is_not_made_again():
    made, scan = Made(), own_embeddings()
    first = scan.find_or_make((0, 0, 0), made)

    assert scan.find_or_make((0, 0, 0), made) is first
    assert scan.find_or_make((0, 0, 4), made) is not first
    assert made.count == 2


def test_budget_drops_what_was_used_longest_ago():
    made, store = Made(), Embeddings(3 * 1024)
    scan = store.open("scan")
    for place in (1, 2, 3, 1, 4):  # 2 was used longest ago when 4 came
        scan.find_or_make(place, made)
    assert (made.count, store.nbytes) == (4, 3 * 1024)
    for place in (1, 3, 4):
        scan.find_or_make(place, made)
    assert made.count == 4
    scan.find_or_make(2, made)
    assert made.count == 5


def test_budget_counts_over_all_scans():
    made, store = Made(), Embeddings(2 * 1024)
    one, other = store.open("one"), store.open("other")
    for scan in (one, other, other):
        scan.find_or_make(made.count, made)

    assert store.nbytes == 2 * 1024


@pytest.mark.parametrize("budget", [0, 1000])
def test_newest_is_kept_even_beyond_the_budget(budget):
    made, store = Made(2), Embeddings(budget)
    scan = store.open("scan")
    for place in (1, 1, 2, 2, 1):
        scan.find_or_make(place, made)

    assert made.count == 3
    assert store.nbytes == 2048


def test_scans_of_one_key_share_and_those_of_another_do_not():
    made, store = Made(), Embeddings()
    one, same, other = store.open("scan"), store.open("scan"), store.open("other")
    assert one.find_or_make(1, made) is same.find_or_make(1, made)
    assert other.find_or_make(1, made) is not one.find_or_make(1, made)

    assert (store.hits, store.misses) == (2, 2)


def test_last_holder_takes_the_embeddings_with_it():
    made, store = Made(), Embeddings()
    one, same, other = store.open("scan"), store.open("scan"), store.open("other")
    one.find_or_make(1, made)
    other.find_or_make(1, made)
    one.close()
    one.close()
    same.find_or_make(1, made)
    assert made.count == 2
    same.close()
    assert store.nbytes == 1024
    store.open("scan").find_or_make(1, made)
    assert made.count == 3


def test_what_is_made_after_its_scan_was_closed_is_not_kept():
    store = Embeddings()
    scan = store.open("scan")

    def make():
        scan.close()
        return KIB

    assert scan.find_or_make(1, make) is KIB
    assert store.nbytes == 0


def test_what_nobody_asks_for_is_dropped():
    now = [0.0]
    made, store = Made(), Embeddings(clock=lambda: now[0])
    scan = store.open("scan")
    for place, now[0] in ((1, 0.0), (2, 50.0)):
        scan.find_or_make(place, made)
    now[0] = 60.0
    store.drop_unused(60)
    assert store.nbytes == 2048
    now[0] = 61.0
    store.drop_unused(60)
    assert store.nbytes == 1024
    scan.find_or_make(2, made)
    assert made.count == 2


def test_what_is_being_made_is_not_dropped_for_being_old():
    now = [0.0]
    store = Embeddings(clock=lambda: now[0])
    scan = store.open("scan")

    def make():
        now[0] = 1000.0
        store.drop_unused(60)
        return KIB

    scan.find_or_make(1, make)
    assert scan.find_or_make(1, Made()) is KIB


# --- Refusals and failures ---


def test_refusal_is_remembered():
    store, counts = Embeddings(), []
    scan = store.open("scan")
    for _ in range(3):
        with pytest.raises(InputRefused, match="the crop holds one value; click elsewhere") as caught:
            scan.find_or_make(1, lambda: (counts.append(1), refuse()))
        assert caught.value.code == "no-contrast"

    assert len(counts) == 1
    assert store.nbytes == 0


def test_remembered_refusal_holds_nothing_of_who_met_it():
    """An exception holds the frames it went through, and those of a session hold a scan."""
    store = Embeddings()
    scan = store.open("scan")
    gc.disable()
    try:

        def meet():
            voxels = np.zeros(8)
            held = weakref.ref(voxels)

            def make():
                assert voxels.size
                refuse()

            with pytest.raises(InputRefused) as caught:
                scan.find_or_make(1, make)
            del caught
            return held

        assert meet()() is None
        depths = []
        for _ in range(3):
            with pytest.raises(InputRefused) as caught:
                scan.find_or_make(1, Made())
            depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert len(set(depths)) == 1
    finally:
        gc.enable()


def test_failure_lets_the_next_one_try():
    scan, made = own_embeddings(), Made()
    with pytest.raises(ZeroDivisionError):
        scan.find_or_make(1, lambda: 1 // 0)

    assert scan.find_or_make(1, made)[0] == 1


def test_late_failure_takes_nothing_away_from_who_opened_the_scan_again():
    store, made = Embeddings(), Made()
    old = store.open("scan")

    def fail():
        old.close()
        store.open("scan").find_or_make(1, made)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        old.find_or_make(1, fail)
    store.open("scan").find_or_make(1, made)
    assert made.count == 1


# --- Threads ---


def test_two_that_want_the_same_at_once_have_it_made_once():
    scan, made = own_embeddings(), Made()
    entered, leave = threading.Event(), threading.Event()

    def slowly():
        entered.set()
        assert leave.wait(60)
        return made()

    first = in_threads(lambda: scan.find_or_make(1, slowly))
    assert entered.wait(60)
    others = in_threads(*[lambda: scan.find_or_make(1, made)] * 3)
    leave.set()

    (one,) = first()
    assert all(found is one for found in others())
    assert made.count == 1


def test_different_places_do_not_wait_for_each_other():
    scan = own_embeddings()
    entered, leave = threading.Event(), threading.Event()

    def slowly():
        entered.set()
        assert leave.wait(60)
        return KIB

    slow = in_threads(lambda: scan.find_or_make(1, slowly))
    assert entered.wait(60)
    assert scan.find_or_make(2, Made())[0] == 1
    leave.set()
    assert slow()[0] is KIB


def test_whoever_waited_for_a_failure_tries_itself():
    scan, made = own_embeddings(), Made()
    entered, leave = threading.Event(), threading.Event()

    def fail():
        entered.set()
        assert leave.wait(60)
        raise ZeroDivisionError

    first = in_threads(lambda: scan.find_or_make(1, fail))
    assert entered.wait(60)
    others = in_threads(*[lambda: scan.find_or_make(1, made)] * 3)
    leave.set()

    assert isinstance(first()[0], ZeroDivisionError)
    assert [int(found[0]) for found in others()] == [1, 1, 1]


def test_whoever_waited_for_a_refusal_gets_one_of_its_own():
    scan, made = own_embeddings(), Made()
    entered, leave = threading.Event(), threading.Event()

    def slowly():
        entered.set()
        assert leave.wait(60)
        refuse()

    first = in_threads(lambda: scan.find_or_make(1, slowly))
    assert entered.wait(60)
    others = in_threads(*[lambda: scan.find_or_make(1, made)] * 2)
    leave.set()
    errors = [*first(), *others()]

    assert [str(error) for error in errors] == ["the crop holds one value; click elsewhere"] * 3
    assert len({id(error) for error in errors}) == 3
    assert made.count == 0
