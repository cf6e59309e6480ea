"""Guards the file of a run: it comes back as it was written, says what it is of, and anything else is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from samkit.benchmarks.record.run import Run, check_row, identity, load_run
from samkit.errors import InputRefused, SamkitError

ROW = {
    "kind": "latency", "method": "m-sam", "graph": "mask_decoder", "backend": "torch", "device": "cpu",
    "precision": "fp32", "samples_ms": [1.0, 2.0], "p50_ms": 1.5, "p95_ms": 1.95, "p99_ms": 1.99,
}  # fmt: skip
RUN = Run(
    kind="latency", command=("sam-bench", "latency", "--export", "a b"), started="2026-11-22T00:00:00+00:00",
    seconds=1.5, exports=({"method": "m-sam"},), machine={"settled": True}, versions={"python": "3.11"}, rows=(ROW,),
)  # fmt: skip


def test_a_run_comes_back_as_it_was_written(tmp_path):
    worst = {**ROW, "p99_ms": math.inf, "figures": [{"x": -math.inf}]}
    RUN.save(tmp_path / "new" / "run.json")
    replace(RUN, rows=(worst,)).save(tmp_path / "inf.json")

    assert load_run(tmp_path / "new" / "run.json") == RUN
    assert load_run(tmp_path / "inf.json").rows == (worst,)


def test_nan_is_written_as_a_word_that_json_knows(tmp_path):
    replace(RUN, rows=({**ROW, "p50_ms": math.nan},)).save(tmp_path / "run.json")

    text = (tmp_path / "run.json").read_text()

    assert "NaN" not in text
    assert math.isnan(load_run(tmp_path / "run.json").rows[0]["p50_ms"])


def test_command_line_can_be_pasted_into_a_shell():
    assert RUN.command_line == "sam-bench latency --export 'a b'"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1, "kind": "latency"}', "not json"])
def test_a_file_that_is_no_run_is_refused_with_a_sentence(tmp_path, text):
    (tmp_path / "x.json").write_text(text)

    with pytest.raises(InputRefused, match=r"holds no run of sam-bench .*; give a file"):
        load_run(tmp_path / "x.json")


def test_a_run_of_a_newer_samkit_is_refused(tmp_path):
    RUN.save(tmp_path / "run.json")
    data = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**data, "schema_version": 99}))

    with pytest.raises(InputRefused, match="has schema 99"):
        load_run(tmp_path / "run.json")


@pytest.mark.parametrize("key", ["method", "backend", "device", "precision", "graph", "p95_ms", "kind"])
def test_a_row_without_what_tables_need_is_a_bug(key):
    with pytest.raises(SamkitError, match="lacks"):
        check_row({name: value for name, value in ROW.items() if name != key})


@pytest.mark.parametrize("key", ["not_run", "error"])
def test_a_row_may_say_why_it_has_no_figures(key):
    bare = {name: value for name, value in ROW.items() if not name.endswith("_ms")}

    check_row({**bare, key: "no GPU here"})


def test_rows_that_differ_in_what_they_name_are_not_the_same_row():
    four, eight = ({**ROW, "points": points, "identity": ["points"]} for points in (4, 8))

    assert identity(four) != identity(eight)
    assert identity(four) == identity({**four, "p50_ms": 7.0})
