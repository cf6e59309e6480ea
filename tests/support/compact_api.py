"""Make the API lists of this folder from listings of NVIDIA's Python bindings: names, kinds, argument names, returns.

    python tests/support/compact_api.py LISTING.json tests/unit/tensorrt/api-11.4.json

A listing maps each name of the module `tensorrt` to its kind and members, with the signatures of the bindings' own
docstrings. What is left is facts alone: per enum its members; per class its bases and its own members, a property as
`get` or `set`, a method as one string per overload, `name? other -> Type`, where `?` marks what may be left out.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

_NAMED_OTHERWISE = {"IParserError": "ParserError"}
"""C++ names that slip into docstrings, and the Python class meant."""


def compact(listing: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a whole listing."""
    return {name: _compact_entry(name, entry, listing) for name, entry in sorted(listing.items())}


def _compact_entry(name: str, entry: dict[str, Any], listing: dict[str, Any]) -> Any:
    if entry["kind"] == "enum":
        return {"enum": " ".join(entry["members"])}
    if entry["kind"] == "class":
        inherited: dict[str, Any] = {}
        for base in entry["bases"]:
            inherited |= listing.get(base, {}).get("members", {})
        own = {
            member: _compact_member(facts)
            for member, facts in entry["members"].items()
            if member not in inherited or member == "__init__" or inherited[member] != facts
        }
        return {"bases": entry["bases"], "members": own}
    if entry["kind"] == "method":
        return {"function": _signatures(entry["signature"], is_method=False)}
    return {"constant": entry["kind"]}


def _compact_member(facts: dict[str, Any]) -> Any:
    if facts["kind"] == "property":
        return "set" if facts["settable"] else "get"
    if facts["kind"] == "method":
        return _signatures(facts["signature"], is_method=True)
    return {"constant": facts["kind"]}


def _signatures(lines: list[str], *, is_method: bool) -> list[str]:
    """Return one string per overload; the first line of several is `*args, **kwargs` and says nothing."""
    return [_signature(line, is_method) for line in (lines[1:] if len(lines) > 1 else lines)]


def _signature(line: str, is_method: bool) -> str:
    arguments, result = re.fullmatch(r"(?:\d+\. )?\w+\((.*)\)(?: -> (.*))?", line).groups()  # type: ignore[union-attr]
    names = []
    for part in _split(arguments):
        name = part.split(":")[0].split("=")[0].strip()
        names.append(f"{name}?" if "=" in part.split("<")[0] or "= <" in part else name)
    if is_method and names[:1] == ["self"]:
        names = names[1:]
    return f"{' '.join(names)} -> {_type_name(result or '')}".strip()


def _split(arguments: str) -> list[str]:
    """Return the arguments, split at commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(arguments):
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append(arguments[start:index])
            start = index + 1
    return [part for part in (*parts, arguments[start:]) if part.strip()]


def _type_name(text: str) -> str:
    short = re.sub(r"(?:nvinfer1|nvonnxparser)::|tensorrt\.|collections\.abc\.", "", text)
    return _NAMED_OTHERWISE.get(short, short)


if __name__ == "__main__":
    facts = compact(json.loads(Path(sys.argv[1]).read_text()))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in facts.items())
    Path(sys.argv[2]).write_text("{\n" + lines + "\n}\n")
