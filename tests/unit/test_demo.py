"""Guards the demo's beginning: a machine that can't run its last part, the server, hears so before anything is made."""

from __future__ import annotations

from samkit import demo
from samkit.errors import MissingDependencyError


def test_machine_without_a_server_is_refused_before_the_export(in_process, monkeypatch, tmp_path):
    def fail():
        raise MissingDependencyError("this Python has no shared libpython; use another")

    monkeypatch.setattr(demo, "find_server", fail)
    code, out, err = in_process(demo.main, "demo", "--out", tmp_path / "demo")

    assert (code, out) == (1, "")
    assert err == "demo: this Python has no shared libpython; use another\n"
    assert not (tmp_path / "demo").exists()
