"""What sam-serve and the models of its server tell each other by files."""

from __future__ import annotations

import threading

import pytest

from samkit.triton_models.signs import VARIABLE, Signs


@pytest.fixture
def ours(tmp_path):
    return Signs(tmp_path)


@pytest.fixture
def theirs(tmp_path):
    return Signs.of({VARIABLE: str(tmp_path)})


def test_nobody_gives_signs_in_a_container():
    assert Signs.of({}) is None


def test_signs_that_are_given_are_read(ours, theirs):
    assert not theirs.is_watched
    assert not theirs.is_stopping
    ours.say_watched()
    ours.say_stopping()
    assert theirs.is_watched
    assert theirs.is_stopping


def test_rest_is_waited_for_until_the_last_one_ends(ours, theirs):
    with theirs.at_work():
        with theirs.at_work():
            assert not ours.wait_for_rest(0)
        assert not ours.wait_for_rest(0)
    assert ours.wait_for_rest(60)


def test_failed_request_is_no_longer_at_work(ours, theirs):
    with pytest.raises(ValueError, match="bad"), theirs.at_work():
        raise ValueError("bad")
    assert ours.wait_for_rest(60)


def test_work_of_two_models_is_waited_for(ours, theirs, tmp_path):
    begun, ends = threading.Event(), threading.Event()

    def work():
        with Signs(tmp_path).at_work():
            begun.set()
            ends.wait(60)

    other = threading.Thread(target=work)
    other.start()
    assert begun.wait(60)
    with theirs.at_work():
        pass
    assert not ours.wait_for_rest(0)
    ends.set()
    assert ours.wait_for_rest(60)
    other.join()
