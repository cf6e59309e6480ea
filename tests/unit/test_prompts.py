"""Prompts are read as they were written, and anything else is refused with the form they should have."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samkit.errors import PromptError
from samkit.prompts import (
    Box,
    Point,
    SliceBox,
    SlicePoint,
    parse_box,
    parse_point,
    parse_structure,
    prompt_json,
    read_prompts,
    write_clicks,
)

NUMBER = st.floats(-1e4, 1e4)


@given(index=st.tuples(NUMBER, NUMBER, NUMBER), label=st.sampled_from([0, 1]))
def test_point_is_parsed_as_written(index, label):
    text = ",".join(repr(v) for v in index) + (",+" if label else ",-")

    assert parse_point(text) == Point(index, label)


@given(numbers=st.lists(NUMBER, min_size=6, max_size=6), structure=st.sampled_from(["", "caudate_left"]))
def test_box_is_parsed_as_written(numbers, structure):
    text = ",".join(repr(v) for v in numbers)

    assert parse_box(text, structure) == Box(tuple(numbers[:3]), tuple(numbers[3:]), structure)


def test_two_indices_are_of_a_picture():
    assert parse_point("3, 4.5, -") == SlicePoint(3, 4.5, 0)
    assert parse_box("8,40,12,5") == SliceBox(8, 5, 12, 40)  # any two opposite corners


def test_structure_is_named_before_its_point_or_box():
    assert parse_structure("caudate_left = 1,2,3,+") == Point((1, 2, 3), 1, "caudate_left")
    assert parse_structure("caudate_left=1,2,3,4,2,6") == Box((1, 2, 3), (4, 2, 6), "caudate_left")
    for text in ("1,2,3,+", "=1,2,3,+", "caudate_left="):
        with pytest.raises(PromptError, match="is written"):
            parse_structure(text)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "1,2,3,4,5,x", "1,2,3,4,5,nan", "1,2,3,+"])
def test_malformed_box_is_refused_with_an_example(text):
    with pytest.raises(PromptError) as refused:
        parse_box(text)
    assert refused.value.sentence({"boxes": "--box"}.get).endswith(("e.g. --box 40,52,30,88,97,30", "e.g. 60,70.5,30"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,+",
        "1,2,3",
        "1,2,3,4",
        "1,2,3,+,+",
        "a,2,3,+",
        "1_5,2,3,+",
        "\u0661,2,3,+",
        "1,2,inf,+",
        "1;2;3;+",
        "1,2,3,1",
    ],
)
def test_malformed_point_is_refused_with_an_example(text):
    with pytest.raises(PromptError) as refused:
        parse_point(text)
    assert refused.value.sentence({"points": "--point"}.get).endswith(("e.g. --point 60,70,30,+", "e.g. 60,70.5,30"))


@pytest.mark.parametrize(
    ("parse", "example"),
    [
        (parse_point, "a point is written x,y,+ or x,y,- and this one is '1'; e.g. --points 60,70,+"),
        (parse_box, "a box is written x0,y0,x1,y1 and this one is '1'; e.g. --boxes 40,52,88,97"),
        (parse_structure, "is written NAME=x,y,+ and this one is '1'; e.g. --structures caudate_left=60,70,+"),
    ],
)
def test_an_example_for_a_picture_has_two_indices(parse, example):
    with pytest.raises(PromptError) as refused:
        parse("1", picture=True)
    assert example in refused.value.sentence(lambda name: f"--{name}")


def test_a_point_of_a_hundred_thousand_digits_is_not_told_whole():
    for text in ("1" * 100_000 + ",2,3,+", "1" * 100_000, "1,2,3,+," * 20_000):
        for parse in (parse_point, parse_box, parse_structure):
            with pytest.raises(PromptError) as refused:
                parse(text)
            assert len(str(refused.value)) < 300


def test_clicks_survive_the_file(tmp_path):
    points = [Point((1.5, 2.0, -0.25), 1), Point((3.0, 4.0, 5.0), 0)]
    write_clicks(tmp_path / "clicks.json", points)

    assert read_prompts(tmp_path / "clicks.json") == points


def test_every_prompt_survives_the_file(tmp_path):
    prompts = [
        Point((1.5, 2.0, -0.25), 1, "caudate_left"),
        Box((1.0, 2.0, 3.0), (4.0, 5.0, 3.0)),
        SlicePoint(3.0, 4.0, 0),
        SliceBox(1.0, 2.0, 3.0, 4.0, "lesion"),
    ]
    (tmp_path / "clicks.json").write_text(json.dumps([prompt_json(prompt) for prompt in prompts]))

    assert read_prompts(tmp_path / "clicks.json") == prompts


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        '{"point": [1, 2, 3], "label": 1}',
        "[[1, 2, 3]]",
        '[{"point": [1, 2, 3]}]',
        '[{"point": [1], "label": 1}]',
        '[{"point": "123", "label": 1}]',
        '[{"point": [1, 2, 3], "label": 2}]',
        '[{"point": [1, 2, 3], "label": "1"}]',
        '[{"point": [1, 2, NaN], "label": 1}]',
        '[{"point": [1, 2, null], "label": 1}]',
        '[{"point": [1, 2, 3], "label": 1, "name": "x"}]',
        '[{"point": [1, 2, 3], "label": 1, "structure": 7}]',
        '[{"point": [1, 2, 3], "label": 1, "box": [1, 2, 3, 4, 5, 6]}]',
        '[{"point": ["1_5", 2, 3], "label": 1}]',
        '[{"point": ["1", 2, 3], "label": 1}]',
        '[{"point": [true, 2, 3], "label": 1}]',
        '[{"point": [1, 2, 3], "label": true}]',
        '[{"point": [1, 2, 3], "label": 1.0}]',
        '[{"point": [1, 2, 1e999], "label": 1}]',
        f'[{{"point": [1, 2, 1{"0" * 350}], "label": 1}}]',
        '[{"box": [1, 2, 3]}]',
        '[{"box": [1, 2, 3, 4, 5, 6], "label": 1}]',
        '[{"box": [1, 2, 3, 4, 5, Infinity]}]',
        "[{}]",
        "[" * 100_000,
    ],
)
def test_malformed_clicks_are_refused(content, tmp_path):
    path = tmp_path / "clicks.json"
    path.write_text(content)

    with pytest.raises(PromptError, match=r"clicks\.json"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"point": [1, 2, 3], "label": 1, "Mueller": 1},
            "click 1 of {} has 1 key(s) of 3 that no prompt has, number 3;",
        ),
        ({"Mueller": 1, "box": [1], "Anna": 2}, "has 2 key(s) of 3 that no prompt has, number 1 and 3;"),
        (
            {f"Mueller {n}": 1 for n in range(50)},
            "has 50 key(s) of 50 that no prompt has, number 1, 2, 3, 4, 5, 6, 7, ",
        ),
        ({"point": "Mueller", "label": 1}, "has a point of no list, needed are 2 or 3 numbers;"),
        ({"box": ["Mueller"] * 3}, "has a box of 3 elements, needed are 4 or 6 numbers;"),
        ({"point": [1, 2, 3], "label": "Mueller"}, "is a point without a label that is 1 or 0;"),
        ({"point": [1, 2, 3], "label": 1, "structure": ["Mueller"]}, "has a structure that is no text;"),
        ({"box": [1, 2, 3, 4], "label": "Mueller"}, "is a box with a label;"),
        ({"point": [1, 2], "box": ["Mueller"]}, "has a point and a box;"),
        ({"label": "Mueller"}, "has neither a point nor a box;"),
        (["Mueller"], "is a list and no object;"),
    ],
)
def test_what_a_clicks_file_holds_besides_is_not_told(entry, said, tmp_path):
    path = tmp_path / "clicks.json"
    path.write_text(json.dumps([{"point": [1, 2, 3], "label": 1}, entry]))

    with pytest.raises(PromptError) as refused:
        read_prompts(path)
    assert said.format("clicks.json") in str(refused.value)
    assert "Mueller" not in str(refused.value)
    assert "Anna" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_binary_clicks_file_is_refused(tmp_path):
    path = tmp_path / "clicks.json"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(PromptError, match="no JSON"):
        read_prompts(path)


def test_missing_clicks_file_is_named_without_its_folder(tmp_path):
    with pytest.raises(PromptError) as refused:
        read_prompts(tmp_path / "gone.json")

    assert str(tmp_path) not in str(refused.value)


def test_empty_list_is_no_error_here(tmp_path):
    path = tmp_path / "clicks.json"
    path.write_text(json.dumps([]))

    assert read_prompts(path) == []
