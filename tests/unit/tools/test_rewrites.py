"""Guards the harness that times exported graphs: what it compares, how it judges, how it ends. No timing is judged."""

from __future__ import annotations

import json
import math

import pytest
from click.testing import CliRunner

from samkit.errors import SamkitError
from samkit.runtime.backends.runner import check_inputs
from tools import rewrites
from tools.rewrite_goals import CASES, FIGURES, FORMULATIONS, Goal

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("benchmarks")]  # so that the record is made once


@pytest.fixture(scope="module")
def record():
    """A record of the case with most parts: a graph before it, and a decoder that stands for another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrites, "TURN_SECONDS", 0.0)  # one run a turn
        return rewrites.measure(CASES["m-sam-click-anchored"].at("tiny"), rounds=2, threads=1, size="tiny", eager=True)


@pytest.mark.parametrize("size", ["full", "tiny"])
@pytest.mark.parametrize("name", CASES)
def test_every_case_names_graphs_that_exist_and_feeds_them(name, size):
    case = CASES[name].at(size)

    check_inputs(case.graph("official"), case.inputs())
    known = set(case.inputs())
    if case.before is not None:
        before = case.find(case.before)
        assert known >= {tensor.name for tensor in before.inputs}
        known |= {tensor.name for tensor in before.outputs}
    assert known >= {tensor.name for tensor in case.graph("folded").inputs}
    assert all(goal.figure in FIGURES for goal in case.goals)


def test_formulations_give_equal_outputs(record):
    assert set(record["relative_error"]) == {"low_res_masks", "iou_predictions", "updated_embeddings"}
    assert max(record["relative_error"].values()) < rewrites.EQUAL
    assert record["misses"] == []


def test_every_timing_has_its_machine_and_all_samples(record):
    assert set(record["samples"]) == {"product", "folded", "official", "eager"}
    assert all(len(values) == record["rounds"] for values in record["samples"].values())
    assert record["machine"]["processor"]
    assert record["machine"]["threads"] == 1
    assert record["machine"]["gemm_gflops"] > 0


def test_memory_is_that_of_a_process_of_its_own(record):
    for form in FORMULATIONS:
        memory = record["memory"][form]
        assert 0 < memory["loaded_mb"] <= memory["peak_mb"]
        assert memory["above_session_mb"] == pytest.approx(memory["peak_mb"] - memory["loaded_mb"], abs=0.1)


@pytest.mark.parametrize(
    ("goal", "value", "sentence"),
    [
        (Goal("ratio", least=4.0), 3.9, "is 3.9 times as fast as --no-fold, wanted is at least 4"),
        (Goal("above_session_mb", most=250), 251.0, "adds 251.0 MB to the loaded session, wanted is at most 250"),
        (Goal("ratio", least=4.0), math.nan, "is nan times as fast as --no-fold, wanted is at least 4"),
        (Goal("ratio", above=1.0, aim=1.2), 1.0, "is 1.0 times as fast as --no-fold, wanted is more than 1"),
        (Goal("ratio", above=1.0), math.nan, "is nan times as fast as --no-fold, wanted is more than 1"),
        (Goal("ratio", above=1.0), 1.001, None),
        (Goal("ratio", least=4.0, aim=5.0), 4.0, None),  # an aim is not judged
        (Goal("peak_of_official", most=0.45), 0.45, None),
    ],
)
def test_missed_goal_is_a_sentence(goal, value, sentence):
    assert goal.miss(value) == sentence


@pytest.mark.parametrize("error", [2e-5, math.nan])
def test_other_outputs_are_a_miss(record, error):
    case = CASES["m-sam-click-anchored"].at("tiny")

    (sentence,) = rewrites.find_misses(case, {**record, "relative_error": {"low_res_masks": error}})

    assert sentence.startswith("m-sam-click-anchored gives another low_res_masks than --no-fold")


def test_command_names_each_miss_and_fails(record, monkeypatch, tmp_path):
    monkeypatch.setattr(
        rewrites, "measure", lambda case, **options: {**record, "misses": ["one is slow", "two is big"]}
    )

    ended = CliRunner().invoke(
        rewrites.rewrites,
        ["--case", "m-sam-click-anchored", "--size", "tiny", "--json", str(tmp_path / "records.json")],
    )

    assert isinstance(ended.exception, SamkitError)
    assert ended.exception.exit_code == 1
    assert "one is slow\ntwo is big\n" in ended.stderr
    assert "m-sam-click-anchored" in ended.stdout
    assert json.loads((tmp_path / "records.json").read_text())[0]["samples"] == record["samples"]


def test_command_ends_well_where_every_goal_is_met(record, monkeypatch):
    monkeypatch.setattr(rewrites, "measure", lambda case, **options: record)

    ended = CliRunner().invoke(rewrites.rewrites, ["--case", "m-sam-click-anchored", "--size", "tiny"])

    assert ended.exit_code == 0
