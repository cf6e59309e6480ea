"""The documentation as tests read it: its pages, what they link to, the commands in them, and how a page is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")),
     *(ROOT / "docs").rglob("*.md"), *(ROOT / "container").glob("*.md")]
)  # fmt: skip
PORTS = {"8001": 1, "8000": 2}
"""Ports that pages name, and the line of `sam-serve start` that names the real one."""

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_OURS = re.compile(r"(sam-[a-z]+|make|pip|python -m|python \S+\.py)\b(?!\.)")


def name_of(page: Path) -> str:
    """Return the path of a page from the root, for test ids and messages."""
    return str(page.relative_to(ROOT))


def blocks(text: str) -> list[tuple[str, str]]:
    """Return language and text of every fenced block, in order."""
    return _BLOCK.findall(text)


def links(text: str) -> list[str]:
    """Return where a page links to, code left out."""
    prose = re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def headings(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.*)$", _BLOCK.sub("", text), re.M):
        slug = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{sum(one.startswith(slug) for one in found)}")
    return set(found)


def lines(text: str) -> list[str]:
    """Return the commands of a shell block, one a line, without comments."""
    return [line for raw in text.replace("\\\n", " ").splitlines() if (line := shlex.join(words(raw)))]


def words(line: str) -> list[str]:
    """Return the words of a command; what follows # is left out."""
    return shlex.split(line, comments=True)


def shell_commands(text: str) -> Iterator[str]:
    """Yield every line of the shell blocks and of indented blocks that begin with a command of ours."""
    for language, block in blocks(text):
        if language == "sh":
            yield from lines(block)
    for block in re.findall(r"(?:^    \S.*\n)+", _BLOCK.sub("", text), re.M):
        if _OURS.match(block.strip()):
            yield from lines(re.sub(r"^    ", "", block, flags=re.M))


def spoken_commands(text: str) -> Iterator[str]:
    """Yield the commands of ours in the middle of a text; they may be a part of one, a command and an option."""
    for span in re.findall(r"`([^`]+)`", _BLOCK.sub("", text)):
        if _OURS.match(span):
            yield " ".join(span.split())


@dataclass
class Worked:
    """A page that was run."""

    folder: Path
    left: list[dict[str, object]] = field(default_factory=list)
    """The names that each Python block left."""
    codes: list[int] = field(default_factory=list)
    """How each server ended."""


def run_page(page, found, folder, instead):
    """Run blocks of a page in `folder` as they stand, on free ports; servers are stopped at the end.

    `instead` says, by how a command begins, what is done in its place: a function, or None for nothing.
    """
    done, said, servers = Worked(folder), [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            for language, text in found:
                for port, line in PORTS.items():
                    if said:
                        text = text.replace(f"127.0.0.1:{port}", re.search(r"127\.0\.0\.1:\d+", said[line])[0])
                if language == "python":
                    done.left.append(_run_python(page, text))
                    continue
                for command in lines(text) if language == "sh" else ():
                    ours = [act for start, act in instead.items() if command.startswith(start)]
                    if ours:
                        if ours[0] is not None:
                            ours[0](command)
                    elif command.startswith("sam-serve start "):
                        servers.append(_start(command))
                        said += [servers[-1].stdout.readline() for _ in range(4)]
                        assert said[0] == "READY\n"
                    else:
                        run(command)
        finally:
            for server in servers:
                server.terminate()
                server.communicate(timeout=60)
    done.codes = [server.returncode for server in servers]
    return done


def run(command, *more):
    """Run a command line of ours in a process, tools as in the clone's root; what it prints goes into the failure."""
    program, *others = words(command)
    tools = {"PYTHONPATH": str(ROOT)} if command.startswith("python -m tools.") else {}
    line = [str(BIN / program), *others, *more]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **tools})
    assert done.returncode == 0, f"{command}: {done.stderr}"


def _start(command):
    ports = ("--grpc-port=0", "--http-port=0", "--metrics-port=0", "--quiet")
    program, *others = words(command)
    return subprocess.Popen([str(BIN / program), *others, *ports], stdout=subprocess.PIPE, text=True)


def _run_python(page, text):
    """Run a block and return its names; one that imports nothing of samkit runs where samkit can't be imported."""
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        if "import samkit" not in text and "from samkit" not in text:
            patch.setitem(sys.modules, "samkit", None)
        exec(compile(text, name_of(page), "exec"), names)  # noqa: S102 - our own page
    return names
