"""No mutation of a good input makes a reader fail in a way that is not ours, and none takes memory for long.

The whole of it is `python -m tools.mutations --count 1000000`.
"""

import pytest

from samkit.errors import SamkitError
from tools.mutations import TARGETS, Target, mutated, run

COUNTS = {
    "request": 1500, "answer": 300, "clicks": 500, "words": 1500, "manifest": 400, "facts": 300, "repository": 200,
    "run": 200, "checkpoint": 200, "pickle": 150, "safetensors": 200, "nifti": 200, "nifti-gz": 200, "picture": 200,
    "mgh": 200,
}  # fmt: skip
"""Mutations of each reader here; a reader that is not named gets a hundred."""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", list(TARGETS))
def test_a_reader_raises_our_errors_alone(name):
    outcome = run(TARGETS[name], COUNTS.get(name, 100))
    assert not outcome.faults
    assert outcome.is_good
    assert outcome.refused


def read_badly(data, folder):
    if b"1" not in data:
        raise KeyError("1")
    if data == b"[1]":
        return data
    raise SamkitError("no")


def test_a_fault_is_told_and_can_be_repeated(tmp_path):
    bad = Target("bad", lambda: [b"[1]"], read_badly, is_json=True)
    outcome = run(bad, 50, keep=tmp_path)
    assert outcome.faults
    assert not outcome.is_good
    number, error = outcome.faults[0]
    assert "KeyError" in error
    assert (tmp_path / f"bad.{number}").read_bytes() == mutated(bad, bad.seeds(), number)
    assert run(bad, 1, first=number).faults == outcome.faults[:1]
