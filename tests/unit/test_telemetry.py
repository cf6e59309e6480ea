"""What dependencies would send is switched off by `import samkit`; what they would leave goes with the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samkit.telemetry import CACHES, SWITCHES, own_caches, switch_off

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_import_switches_off_what_the_user_has_not_set(given, expected, monkeypatch):
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
    code = f"import os, samkit; print(*(os.environ[name] for name in {list(SWITCHES)}))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    switch_off()

    assert said.split() == [expected] * len(SWITCHES)
    assert [os.environ[name] for name in SWITCHES] == [expected] * len(SWITCHES)


def test_container_switches_off_the_same():
    for file in ("Containerfile", "compose.yaml"):
        text = (ROOT / "container" / file).read_text()
        assert all(name in text for name in SWITCHES)


def test_caches_go_with_the_command_and_stay_where_the_user_keeps_them(monkeypatch, tmp_path):
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(CACHES[0], str(tmp_path))
    with own_caches():
        places = [Path(os.environ[name]) for name in CACHES]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)

    assert places[0] == tmp_path
    assert [place.exists() for place in places] == [True, *[False] * len(CACHES[1:])]
    assert not places[1].parent.exists()
    assert [name for name in CACHES if name in os.environ] == [CACHES[0]]


def test_caches_that_nobody_made_are_no_folder(monkeypatch):
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    with own_caches():
        assert not Path(os.environ[CACHES[0]]).parent.exists()
