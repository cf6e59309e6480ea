"""Stubs for mypy, made of the lists of NVIDIA's APIs that `compact_api` writes: names, arguments and results."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping
from typing import Any

_PLAIN = {"None", "bool", "int", "str", "float"}
_PROTOCOLS = {
    "IHostMemory": "    def __buffer__(self, flags: int, /) -> memoryview: ...\n",
    "Dims": "    def __iter__(self) -> Iterator[int]: ...\n",
}
"""What the lists leave out: how Python reads bytes of the one, and sizes of the other."""


def stub_of(api: Mapping[str, Any]) -> str:
    """Return the text of a .pyi file for a whole list."""
    known = {name for name, entry in api.items() if "enum" in entry or "members" in entry}
    imports = "from collections.abc import Iterator\nfrom enum import IntEnum\nfrom typing import Any, overload\n"
    parts = [f"{imports}\n__version__: str\n"]
    parts += ["".join(_entry(name, entry, known)) for name, entry in api.items() if name != "__version__"]
    return "\n".join(parts)


def _entry(name: str, entry: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    if "enum" in entry:
        yield _enum(name, entry["enum"].split(), "")
    elif "function" in entry:
        yield from _methods(name, entry["function"], known, "")
    elif "members" not in entry:
        yield f"{name}: Any\n"
    else:
        yield f"class {name}{'({})'.format(', '.join(entry['bases'])) if entry['bases'] else ''}:\n"
        members = entry["members"]
        nested = [member for member, facts in members.items() if facts == {"constant": "class"}]
        for inner in nested:
            yield _enum(inner, [one for one, facts in members.items() if facts == {"constant": inner}], "    ")
        for member, facts in members.items():
            if facts == "set":
                yield f"    {member}: Any\n"
            elif facts == "get":
                yield f"    @property\n    def {member}(self) -> Any: ...\n"
            elif isinstance(facts, list):
                yield from _methods(member, facts, known, "    ")
            elif member not in nested:
                kind = facts["constant"]
                yield f"    {member}: {kind if kind in nested else 'Any'}\n"
        yield _PROTOCOLS.get(name, "    ...\n")


def _enum(name: str, members: list[str], indent: str) -> str:
    lines = [f"{indent}class {name}(IntEnum):", *(f"{indent}    {one} = {at}" for at, one in enumerate(members))]
    return "\n".join([*lines, f"{indent}    ...", ""])


def _methods(name: str, signatures: list[str], known: set[str], indent: str) -> Iterator[str]:
    own = ["self"] if indent else []
    forms = list(dict.fromkeys(signatures))
    for form in forms:
        arguments, _, result = form.rpartition("->")
        words, may_be_left = [], False
        for word in arguments.split():
            may_be_left |= word.endswith("?")  # behind one that may be left out, what may not has to be named
            argument = word.rstrip("?")
            argument = f"{argument}_" if keyword.iskeyword(argument) else argument
            words.append(f"{argument}: Any{' = ...' if may_be_left else ''}")
        kind = result.strip()
        if len(forms) > 1:
            yield f"{indent}@overload\n"
        yield f"{indent}def {name}({', '.join([*own, *words])}) -> {kind if kind in known | _PLAIN else 'Any'}: ...\n"
