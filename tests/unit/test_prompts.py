"""Clicks are read as they were written, and anything else is refused with the form they should have."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samkit.errors import PromptError
from samkit.prompts import Point, parse_point, read_clicks, write_clicks

NUMBER = st.floats(-1e4, 1e4)


@given(index=st.tuples(NUMBER, NUMBER, NUMBER), label=st.sampled_from([0, 1]))
def test_point_is_parsed_as_written(index, label):
    text = ",".join(repr(v) for v in index) + (",+" if label else ",-")

    assert parse_point(text) == Point(index, label)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4", "1,2,3,+,+", "a,2,3,+", "1,2,inf,+", "1;2;3;+", "1,2,3,1"])
def test_malformed_point_is_refused_with_an_example(text):
    with pytest.raises(PromptError, match="60,70"):
        parse_point(text)


def test_clicks_survive_the_file(tmp_path):
    points = [Point((1.5, 2.0, -0.25), 1), Point((3.0, 4.0, 5.0), 0)]
    write_clicks(tmp_path / "clicks.json", points)

    assert read_clicks(tmp_path / "clicks.json") == points


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        '{"point": [1, 2, 3], "label": 1}',
        "[[1, 2, 3]]",
        '[{"point": [1, 2, 3]}]',
        '[{"point": [1, 2], "label": 1}]',
        '[{"point": "123", "label": 1}]',
        '[{"point": [1, 2, 3], "label": 2}]',
        '[{"point": [1, 2, 3], "label": "1"}]',
        '[{"point": [1, 2, NaN], "label": 1}]',
        '[{"point": [1, 2, null], "label": 1}]',
        '[{"point": [1, 2, 3], "label": 1, "name": "x"}]',
        "[" * 100_000,
    ],
)
def test_malformed_clicks_are_refused(content, tmp_path):
    path = tmp_path / "clicks.json"
    path.write_text(content)

    with pytest.raises(PromptError, match=r"clicks\.json"):
        read_clicks(path)


def test_binary_clicks_file_is_refused(tmp_path):
    path = tmp_path / "clicks.json"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(PromptError, match="no JSON"):
        read_clicks(path)


def test_missing_clicks_file_is_named_without_its_folder(tmp_path):
    with pytest.raises(PromptError) as refused:
        read_clicks(tmp_path / "gone.json")

    assert str(tmp_path) not in str(refused.value)


def test_empty_list_is_no_error_here(tmp_path):
    path = tmp_path / "clicks.json"
    path.write_text(json.dumps([]))

    assert read_clicks(path) == []
