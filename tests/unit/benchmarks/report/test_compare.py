"""Guards `sam-bench compare`: what counts as worse, what is only noise, and how it ends."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from samkit.benchmarks.cli import main
from samkit.benchmarks.record.rows import LatencyRow
from samkit.benchmarks.report.compare import compare_runs
from samkit.errors import InputRefused


def changed(before, after, **options):
    """Return (figure, verdict) of all that is judged and not the same."""
    found = compare_runs(before, after, **options)
    return [(change.figure, change.verdict) for change in found if change.verdict not in ("unjudged", "same")]


@pytest.fixture
def ended(tmp_path, in_process):
    """Return a function that compares two runs as a user does."""

    def run(before, after, *words):
        before.save(tmp_path / "a.json")
        after.save(tmp_path / "b.json")
        return in_process(main, "sam-bench", "compare", tmp_path / "a.json", tmp_path / "b.json", *words)

    return run


@pytest.mark.parametrize("kind", ["accuracy", "latency", "load"])
def test_a_run_is_as_good_as_itself(kind, request):
    run = request.getfixturevalue(f"{kind}_run")

    changes = compare_runs(run, run)

    assert changes
    assert {change.verdict for change in changes} <= {"unjudged", "same"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.5, "worse"), (0.5, "better")])
def test_times_beyond_the_noise_count_with_their_tail(made, factor, verdict):
    runs = [
        made.run("latency", [made.latency("sam", "torch", ms, stage="click", count=30)]) for ms in (10, 10 * factor)
    ]

    assert set(changed(*runs)) == {("median [ms]", verdict), ("95th percentile [ms]", verdict)}


def test_times_within_the_noise_are_the_same(made):
    runs = [made.run("latency", [made.latency("sam", "torch", ms, stage="click", count=30)]) for ms in (10, 10.3)]

    assert changed(*runs) == []
    assert set(changed(*runs, noise=0.0)) == {("median [ms]", "worse"), ("95th percentile [ms]", "worse")}


@pytest.mark.parametrize(("count", "figures"), [(2, []), (19, ["median [ms]"])])
def test_too_few_samples_say_nothing(made, count, figures):
    runs = [made.run("latency", [made.latency("sam", "torch", ms, stage="click", count=count)]) for ms in (10, 90)]

    assert [figure for figure, _ in changed(*runs)] == figures
    assert sum(change.verdict == "unjudged" for change in compare_runs(*runs)) == 2 - len(figures)


def test_memory_rates_and_exponents_count_beyond_the_noise(made):
    before = [made.load(1, 30), made.scaling(1.0)]
    after = [made.load(1, 30) | {"server_rss_mb": 1800.0, "clicks_per_second": 90.0}, made.scaling(1.0)]
    after[1]["scaling"] = made.scaling(1.5)["scaling"]

    assert changed(made.run("load", before), made.run("load", after)) == [
        ("server memory, RSS [MB]", "worse"), ("exponent", "worse"), ("clicks per second", "better"),
    ]  # fmt: skip


def test_one_more_voxel_that_differs_is_worse(made):
    row = made.accuracy("sam", "onnxruntime")
    runs = [made.run("accuracy", [row | more]) for more in ({}, {"flipped_voxels": 1})]

    assert changed(*runs) == [("voxels that differ from PyTorch's", "worse")]


def test_rounding_of_a_logit_is_no_change(made):
    row = made.accuracy("sam", "onnxruntime")
    runs = [made.run("accuracy", [row | {"logit_difference": value}]) for value in (0.0, 1e-6)]

    assert changed(*runs) == []


def test_nan_is_worse_than_any_number(made):
    row = made.accuracy("sam", "onnxruntime")
    runs = [made.run("accuracy", [row | {"logit_difference": value}]) for value in (0.0, math.nan)]

    assert changed(*runs) == [("largest logit difference", "worse")]


def test_metrics_to_the_truth_are_compared_over_the_same_cases(made):
    before, after = (
        made.run("accuracy", [made.accuracy("sam", "torch", worse=worse, cases=cases)])
        for worse, cases in ((0.0, ("a", "b", "only before")), (0.01, ("a", "b")))
    )

    found = {c.figure: c for c in compare_runs(before, after)}

    assert found["Dice to the truth"].verdict == "worse"
    assert found["Dice to the truth"].words.startswith("mean of 2 cases 0.89 to 0.88, better by -0.01")
    assert found["HD95 [mm] to the truth"].verdict == found["volume error [mL] to the truth"].verdict == "worse"


def test_a_mean_that_some_cases_raise_and_some_lower_is_undecided(made):
    before, after = (made.accuracy("sam", "torch") for _ in range(2))
    for case, step in zip(after["cases"], (0.03, -0.02, 0.01), strict=True):
        case["clicks"][-1]["dice"] += step

    assert changed(*(made.run("accuracy", [row]) for row in (before, after))) == []


@pytest.mark.parametrize(("dice", "found"), [(0.6, [("Dice of each case", "worse")]), (0.8, [])])
def test_a_case_that_was_lost_is_worse_whatever_the_mean_says(made, dice, found):
    before, after = (made.accuracy("sam", "torch") for _ in range(2))
    after["cases"][1]["clicks"][-1]["dice"] = dice  # it was 0.88
    runs = [made.run("accuracy", [row]) for row in (before, after)]

    assert changed(*runs) == found
    assert any("phantom 2, 0.88 to 0." in change.words for change in compare_runs(*runs))


def test_a_step_of_a_mean_that_nobody_sees_is_no_change(made):
    runs = [made.run("accuracy", [made.accuracy("sam", "torch", worse=worse)]) for worse in (0.0, 1e-4)]

    assert changed(*runs) == []


def test_a_backend_that_stopped_sooner_is_compared_at_its_last_click(made):
    before, after = (made.accuracy("sam", "triton") for _ in range(2))
    for case in after["cases"]:
        del case["clicks"][2:]

    runs = [made.run("accuracy", [row]) for row in (before, after)]
    found = {change.figure: change for change in compare_runs(*runs)}

    assert found["Dice to the truth"].verdict == "same"
    assert found["worst Dice to PyTorch"].note == "of other cases or clicks"


def test_runs_on_two_sets_of_data_are_refused(accuracy_run):
    command = (*accuracy_run.command, "--data", "scans/knees")

    with pytest.raises(InputRefused, match="measured on phantoms, the other on knees"):
        compare_runs(accuracy_run, replace(accuracy_run, command=command))


@pytest.mark.parametrize(("turn", "verdict"), [(1, "worse"), (-1, "better")])
def test_a_distance_that_became_infinite_decides(made, turn, verdict):
    before, after = (made.accuracy("sam", "torch") for _ in range(2))
    after["cases"][1]["clicks"][-1]["hd95_mm"] = math.inf
    runs = [made.run("accuracy", [row]) for row in (before, after)]

    assert changed(*runs[::turn]) == [("HD95 [mm] to the truth", verdict)]


def test_a_target_that_no_case_reaches_any_more_is_worse(made):
    before, after = (made.accuracy("sam", "torch") for _ in range(2))
    after["clicks_to"]["0.80"] = [None, None, None]
    runs = [made.run("accuracy", [row]) for row in (before, after)]

    assert changed(*runs) == [("clicks to Dice 0.80", "worse")]


@pytest.mark.parametrize("why", ["not_run", "error"])
def test_a_row_that_lost_its_figures_is_worse(made, why):
    timed = made.latency("sam", "tensorrt", 5, stage="click")
    row = {key: value for key, value in timed.items() if not key.endswith("_ms")}
    before, after = (made.run("latency", [one]) for one in (timed, {**row, why: "no GPU here"}))

    assert changed(before, after) == [("", "worse")]
    assert changed(after, before) == [("", "new")]


def test_rows_of_one_run_alone_are_listed_and_those_of_a_whole_method_once(made):
    def rows(method, *stages):
        return [made.latency(method, "torch", 5, stage=stage) for stage in stages]

    before = made.run("latency", [*rows("sam", "load", "click"), *rows("medsam", "load", "click")])
    after = made.run("latency", [*rows("sam", "load"), *rows("m-sam", "load")])

    assert [change.line() for change in compare_runs(before, after) if change.verdict in ("gone", "new")] == [
        "gone   medsam small: only in the run before, in 2 rows",
        "gone   sam small click, PyTorch eager fp32, threads 2, batch 1, points 1: only in the run before",
        "new    m-sam small: only in the run after, in 1 row",
    ]


def test_worst_comes_first(made):
    rows = [[made.latency("sam", "torch", ms, stage=stage) for stage, ms in times] for times in (
        (("load", 10), ("click", 10), ("undo", 10)), (("load", 5), ("click", 20), ("undo", 40)))]  # fmt: skip

    found = compare_runs(*(made.run("latency", some) for some in rows))

    assert [change.row.split()[2].strip(",") for change in found[:3]] == ["undo", "click", "load"]


def test_runs_of_two_kinds_are_refused(accuracy_run, latency_run):
    with pytest.raises(InputRefused, match="give two runs of one kind"):
        compare_runs(accuracy_run, latency_run)


def test_rows_that_nothing_tells_apart_are_refused(made):
    run = made.run("latency", [made.latency("sam", "torch", 5, stage="click")] * 2)

    with pytest.raises(InputRefused, match="two rows of sam-bench latency"):
        compare_runs(run, run)


# --- The command ---


def test_exit_code_is_0_without_and_1_with_anything_worse(made, ended, tmp_path):
    fast, slow = (made.run("latency", [made.latency("sam", "torch", ms, stage="click")]) for ms in (5, 9))

    assert ended(fast, fast)[::2] == (0, "")
    assert ended(slow, fast)[0] == 0
    code, out, err = ended(fast, slow, "--json", tmp_path / "changes.json")

    assert code == 1
    assert out.startswith(
        "worse  sam small click, PyTorch eager fp32, threads 2, batch 1, points 1: median [ms]: 4.99 to "
    )
    assert out.endswith("1 worse, 1 unjudged (too few samples)\n")
    assert err == "sam-bench: 1 of 2 figures got worse from a.json to b.json\n"
    assert json.loads((tmp_path / "changes.json").read_text())["changes"][0]["verdict"] == "worse"


def test_timings_of_different_machines_are_usage_unless_asked_for(latency_run, accuracy_run, ended):
    def elsewhere(run):
        return replace(run, machine={**run.machine, "processor": "Other 2000"})

    assert ended(accuracy_run, elsewhere(accuracy_run))[0] == 0
    code, _, err = ended(latency_run, elsewhere(latency_run))
    assert code == 2
    assert "Fabricated 1000, family 6, model 1 and Other 2000" in err
    assert "or give --different-machines; see sam-bench --help" in err

    rows = [replace(row, peak_mb=900.0) if isinstance(row, LatencyRow) else row for row in latency_run.rows]
    slower = replace(elsewhere(latency_run), rows=tuple(rows))
    code, out, _ = ended(latency_run, slower, "--different-machines")
    assert code == 1
    assert all("(different machines: processor" in line for line in out.splitlines()[:-1])


def test_an_unsettled_run_is_said_first(latency_run, ended):
    busy = replace(latency_run, machine={**latency_run.machine, "settled": False, "unsettled": ["load was 3"]})

    assert ended(latency_run, busy)[1].startswith("NOT SETTLED: b.json: load was 3\n")
