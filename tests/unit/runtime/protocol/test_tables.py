"""What docs/reference/server.md says of requests, answers and errors is what the records say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from samkit.runtime.protocol.requests import REQUESTS
from samkit.runtime.protocol.tables import tables

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "server.md"


@pytest.mark.parametrize("name", sorted(tables()))
def test_page_has_the_table_that_the_records_make(name):
    assert f"\n\n{tables()[name]}\n\n" in PAGE.read_text(), (
        f"docs/reference/server.md differs in the table of {name}; python -m tools.pages writes it"
    )


def test_tables_tell_of_every_request_and_every_key():
    told = tables()
    for op, kind in REQUESTS.items():
        assert f"| `{op}` |" in told["requests"]
        for key in kind.keys():  # noqa: SIM118
            assert f"| `{key}` |" in told["keys of requests"]
        for key in kind.answer.keys():  # noqa: SIM118
            assert f"| `{key}` |" in told["keys of answers"]


def test_command_prints_them():
    done = subprocess.run([sys.executable, "-m", "samkit.runtime.protocol"], capture_output=True, text=True, check=True)
    assert all(table in done.stdout for table in tables().values())
