"""Guards the file of a run: it comes back as it was written, says what it is of, and anything else is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from samkit.benchmarks.record.rows import Identity, LatencyRow, Times
from samkit.benchmarks.record.run import Run, load_run
from samkit.errors import InputRefused

ROW = LatencyRow(Identity("m-sam", "torch", "cpu", "fp32", graph="mask_decoder"), Times(1.5, 1.95, 1.99, (1.0, 2.0)))
RUN = Run(
    kind="latency", command=("sam-bench", "latency", "--export", "a b"), started="2026-11-22T00:00:00+00:00",
    seconds=1.5, exports=({"method": "m-sam"},), machine={"settled": True}, versions={"python": "3.11"}, rows=(ROW,),
)  # fmt: skip


def test_a_run_comes_back_as_it_was_written(tmp_path):
    worst = replace(ROW, times=Times(1.5, 1.95, math.inf, (-math.inf,)))
    far = replace(RUN, rows=(worst,), machine={"settled": True, "limits": [math.inf]})
    RUN.save(tmp_path / "new" / "run.json")
    far.save(tmp_path / "inf.json")

    assert load_run(tmp_path / "new" / "run.json") == RUN
    assert load_run(tmp_path / "inf.json") == far


def test_nan_is_written_as_a_word_that_json_knows(tmp_path):
    replace(RUN, rows=(replace(ROW, times=Times(math.nan, 1.0, 1.0)),)).save(tmp_path / "run.json")

    text = (tmp_path / "run.json").read_text()

    assert "NaN" not in text
    assert math.isnan(load_run(tmp_path / "run.json").rows[0].times.p50_ms)


def test_command_line_can_be_pasted_into_a_shell():
    assert RUN.command_line == "sam-bench latency --export 'a b'"


@pytest.mark.parametrize(
    ("words", "data"),
    [
        ((), "phantoms"),
        (("--data=scans/knees",), "knees"),
        (("--data", "scans/knees/", "--cases", "2"), "knees"),
        (("--data", "."), "the working folder"),
    ],
)
def test_a_run_says_what_it_was_measured_on(words, data):
    assert replace(RUN, command=("sam-bench", "accuracy", *words)).data == data


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1, "kind": "latency"}', "not json"])
def test_a_file_that_is_no_run_is_refused_with_a_sentence(tmp_path, text):
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(InputRefused, match=r"holds no run of sam-bench .*; give a file"):
        load_run(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"exports": [{}]}, "an export has no method"),
        ({"exports": [{"method": 5}]}, "method of an export is '5', and text is needed"),
        ({"machine": {"load": 5}}, "load of the machine is '5', and an object is needed"),
        ({"machine": {"gpus": [1]}}, "gpus of the machine is '1', and an object is needed"),
        ({"machine": {"memory_gb": "8"}}, "memory_gb of the machine is '8', and a number is needed"),
    ],
)
def test_what_is_shown_of_exports_and_machine_has_its_type(tmp_path, facts, says):
    RUN.save(tmp_path / "run.json")
    data = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**data, **facts}))
    with pytest.raises(InputRefused, match=says):
        load_run(tmp_path / "run.json")


def test_a_run_of_a_newer_samkit_is_refused(tmp_path):
    RUN.save(tmp_path / "run.json")
    data = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**data, "schema_version": 99}))

    with pytest.raises(InputRefused, match="has schema 99"):
        load_run(tmp_path / "run.json")
