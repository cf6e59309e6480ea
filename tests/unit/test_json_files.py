"""JSON from outside is a regular file of bounded size and depth; whatever else it is, is said in half a sentence."""

import json
import os

import pytest

from samkit.json_files import DEEPEST, parse_json, read_json, take_version


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" * 200_000, "nested more than 100 levels"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested more than 100 levels"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested more than 100 levels"),
        (b"\xff\xfe[\x00]\x00", "not in UTF-8"),
        (b"1" * 100_000, "a number has 100000 digits"),
        (b"<!DOCTYPE html><html></html>", "a page of HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "a pointer of Git LFS"),
        (b"", "Expecting value"),
        (b"[1, 2" + b" " * 1000, "more than|bytes, and 1000 are the most"),
    ],
)
def test_what_is_no_json_is_said(tmp_path, content, told):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_json(tmp_path / "a.json", *([1000] if b"  " in content else []))


def test_what_is_no_regular_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(ValueError, match="no regular file"):
            read_json(path)
    with pytest.raises(ValueError, match="can't be read: No such file"):
        read_json(tmp_path / "missing")


def test_what_is_not_too_deep_is_read():
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert json.dumps(parse_json(deep)) == deep


@pytest.mark.parametrize("version", [0, -1, float("nan"), 1.0, True, "1", None, [1]])
def test_a_schema_version_is_a_whole_number_from_1(version):
    assert take_version({"schema_version": 1, "a": 2}) == (1, {"a": 2})
    with pytest.raises(ValueError, match="schema_version"):
        take_version({"schema_version": version})
