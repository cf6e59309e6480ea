"""JSON from outside: a regular file of bounded size and depth, or half a sentence on what it is instead."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 64 * 2**20
"""Of a file that is read at all; the largest that samkit writes, a benchmark with all its samples, has a few."""
DEEPEST = 100
"""Levels of lists and objects: Python's own functions on JSON end in a RecursionError some way beyond."""
_TOO_DEEP = f"it is nested more than {DEEPEST} levels deep"
_LONGEST = 400
"""Digits of a whole number; float64 ends at 309."""


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Return what a file of JSON holds; a byte order mark is passed over.

    Raises ValueError, half a sentence without the path, for whatever is no such file.
    """
    try:
        # A FIFO would keep an ordinary open waiting.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError("it is no regular file")
            if facts.st_size > most:
                raise ValueError(f"it has {facts.st_size} bytes, and {most} are the most that are read")
            data = file.read(most + 1)
    except OSError as error:  # its own text holds the whole path
        raise ValueError(f"it can't be read: {error.strerror}") from error
    if len(data) > most:  # it grows, or does not tell its size, as files of /proc
        raise ValueError(f"it has more than {most} bytes, the most that are read")
    if what := what_it_is(data):
        raise ValueError(f"it is {what}")
    return parse_json(data)


def parse_json(data: str | bytes) -> Any:
    """Return what a text of JSON says; raises ValueError, half a sentence, for whatever is none."""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        found = json.loads(text, parse_int=_whole_number)
    except UnicodeDecodeError:
        raise ValueError("it is not in UTF-8") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [found]
    for _ in range(DEEPEST):
        level = [
            held
            for node in level
            for held in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
            if isinstance(held, (dict, list))
        ]
        if not level:
            return found
    raise ValueError(_TOO_DEEP)


def take_version(data: object) -> tuple[int, dict[str, Any]]:
    """Return the schema version of a JSON object, from 1, and the rest of it; raises ValueError where it has none."""
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"its schema_version is {version!r:.40}, needed is a whole number from 1")
    return version, {name: value for name, value in data.items() if name != "schema_version"}


def what_it_is(data: bytes) -> str:
    """Return what a file is that downloads often leave in the place of another, by its first bytes; "" for others.

    >>> what_it_is(b"<!DOCTYPE html><html>")
    'a page of HTML: the address led to a web page and not to the file'
    """
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: the file itself was not fetched; run git lfs pull"
    if data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a page of HTML: the address led to a web page and not to the file"
    return ""


def _whole_number(digits: str) -> int:
    if len(digits) > _LONGEST:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)
