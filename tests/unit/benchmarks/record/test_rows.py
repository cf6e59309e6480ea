"""Guards the rows of a run: they come back as they were written, and what no row has is refused in one sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from samkit.benchmarks.record.rows import (
    Absent,
    AccuracyRow,
    CaseClicks,
    ClickFigures,
    Growth,
    Identity,
    LatencyRow,
    LoadRow,
    Parity,
    Times,
    WorstSlice,
    read_row,
    summarise,
    to_dict,
)
from samkit.benchmarks.record.statistics import Estimate
from samkit.errors import SamkitError

WHO = Identity("m-sam", "onnxruntime", "cpu", "fp16", graph="mask_decoder", size="tiny", weights="random",
               manifest="ab", threads=2, batch=1)  # fmt: skip
TIMES = Times.of([0.001, 0.002, 0.003])
STEPS = (
    ClickFigures(1, {"dice": 0.5, "hd95_mm": math.inf}, {"dice": 1.0, "logit_difference": None}),
    ClickFigures(2, {"dice": 0.75}),
)
ROWS = (
    AccuracyRow(
        replace(WHO, graph=None, stage="masks", policy="trained", emulated=True),
        Parity(0.99, math.inf, 3, relative_error={"mask_decoder": 1e-6}),
        figures=summarise([STEPS[0]]),
        dice_by_click=((0.5,), (0.75,)), clicks_to={"0.80": (None, 2)}, click_drift={"0.80": None, "0.90": math.inf},
        clicks=2, clicks_done=(2,), cases=(CaseClicks("case 1", STEPS),), failures=("it broke",), failed_case=1,
        slices=(WorstSlice("case 1", 2, "axial", 4, "a", "b", "c", 3),), notes=("said",),
    ),
    LatencyRow(WHO, TIMES, relative_error=1e-6, gflop=1.5, limit_share=0.5, limit="product", scan=(2, 3, 4)),
    LoadRow(
        replace(WHO, graph=None, stage="click", threads=None, batch=None, mode="think", think_s=2.0, sessions=4),
        TIMES, errors={"AtCapacity": 3}, scaling=Growth("volume", "voxels", (1.0,), ((2.0, 3.0),), Estimate(1, 0, 2)),
    ),
    Absent("latency", WHO, "no GPU here", False),
    Absent("accuracy", WHO, "it failed", True, failures=("it failed",), failed_case=2, notes=("said",)),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_a_row_comes_back_from_json_as_it_was(row):
    text = json.dumps(to_dict(row), allow_nan=False)

    assert read_row(json.loads(text)) == row


def test_a_row_of_json_is_flat_and_names_what_it_goes_by():
    data = to_dict(ROWS[1])

    assert (data["kind"], data["method"], data["p50_ms"]) == ("latency", "m-sam", 2.0)
    assert data["identity"] == ["threads", "batch"]
    assert to_dict(ROWS[0])["parity_dice"] == 0.99
    assert (to_dict(ROWS[3])["not_run"], to_dict(ROWS[4])["error"]) == ("no GPU here", "it failed")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"p51_ms": 1.0}, "a row of latency has 'p51_ms', which nothing reads"),
        ({"p50_ms": "1"}, "p50_ms of a row of latency is '1', and a number is needed"),
        ({"threads": True}, "threads of a row of latency is 'True', and a whole number is needed"),
        ({"samples_ms": 1.0}, "samples_ms of a row of latency is '1.0', and a list is needed"),
        ({"kind": "speed"}, "a row is of kind 'speed', and accuracy, latency, load are known"),
        ({"stage": "click"}, "is of a graph or of a stage"),
    ],
)
def test_what_no_row_has_is_refused_in_one_sentence(change, sentence):
    with pytest.raises(SamkitError, match=sentence):
        read_row({**to_dict(ROWS[1]), **change})


@pytest.mark.parametrize("name", ["method", "backend", "device", "precision", "graph", "p95_ms", "kind"])
def test_a_row_without_what_tables_need_is_refused(name):
    with pytest.raises(SamkitError, match=r"lacks|of kind|of a graph or"):
        read_row({key: value for key, value in to_dict(ROWS[1]).items() if key != name})


def test_a_click_with_a_figure_that_is_no_metric_is_refused():
    data = to_dict(ROWS[0])
    data["cases"][0]["clicks"][0]["beauty"] = 1.0

    with pytest.raises(SamkitError, match="'beauty' of a click is no metric"):
        read_row(data)


def test_rows_that_differ_in_a_setting_are_not_the_same_row():
    eight = replace(WHO, batch=8)

    assert eight.key() != WHO.key()
    assert eight.key(without=("batch",)) == WHO.key(without=("batch",))
    assert replace(WHO, manifest="cd").key() == WHO.key()
    sam = Identity("sam", "triton", "cpu", "fp32", stage="click", sessions=4)
    assert sam.key(without=("backend", "precision")) == (
        ("method", "sam"), ("stage", "click"), ("device", "cpu"), ("sessions", 4),
    )  # fmt: skip


def test_percentiles_of_times_are_between_samples():
    times = Times.of(number / 1e3 for number in range(1, 102))

    assert (times.p50_ms, times.p95_ms, times.p99_ms, times.n) == (51.0, 96.0, 100.0, 101)
