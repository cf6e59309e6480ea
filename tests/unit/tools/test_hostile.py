"""No hostile file gets past a command, ends it without a sentence, writes, or costs much: `python -m tools.hostile`."""

from __future__ import annotations

import itertools
import sys

import pytest

from samkit.training import cli
from tools.hostile.cases import cases, shown
from tools.hostile.doors import DOORS, Goods, training, write_cases

QUICK = ("sam-segment", "session", "sam-serve")
"""What needs no torch."""
MOST = 60
"""Files at each door here; the tool shows all of them."""
CASES = tuple(cases(seed=0))


@pytest.fixture(scope="module")
def good_exports(bright_export, bright_slices, tmp_path_factory):
    """Good exports, and where a run may be."""
    return Goods(bright_export, bright_slices, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def good_run(good_exports):
    """The run of a training, beside good exports."""
    root = good_exports.run.parent
    write_cases(root)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", list(map(str, training("sam-med3d", root / "data", good_exports.run))))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    return good_exports


def test_there_are_many():
    assert len(CASES) > 1500
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.door for case in CASES} == {door.name for door in DOORS}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "door",
    [pytest.param(door.name, id=door.name, marks=[] if door.program in QUICK else pytest.mark.slow) for door in DOORS],
)
def test_every_hostile_file_is_answered_as_it_should_be(door, request, tmp_path):
    takes = next(one.takes for one in DOORS if one.name == door)
    chosen = [case for case in CASES if case.door == door]
    goods = request.getfixturevalue("good_run" if takes == "resumed" else "good_exports")
    wrong = [
        f"{case.name}: {'; '.join(problems)} | {' | '.join(found.lines[-3:]):.500}"
        for case, found, problems in shown(chosen[:: -(-len(chosen) // MOST)], goods, tmp_path)
        if problems
    ]
    assert not wrong


def test_the_same_seed_makes_the_same_files(tmp_path):
    def made(folder, seed):
        folder.mkdir()
        chosen = itertools.islice((case for case in cases(seed) if " cut." in case.name), 9)
        return [case.kind.make(_new(folder, number), case.chance).read_bytes() for number, case in enumerate(chosen)]

    first = made(tmp_path / "a", 0)
    assert made(tmp_path / "b", 0) == first
    assert made(tmp_path / "c", 1) != first


def _new(folder, number):
    (folder / str(number)).mkdir()
    return folder / str(number)
