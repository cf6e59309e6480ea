"""Guards what stands beside a timing: limits of the machine, and why it was not settled. No timing is judged."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import namedtuple
from datetime import UTC, datetime

import pytest

from samkit.benchmarks.measure import machine
from samkit.benchmarks.measure.machine import Machine
from samkit.errors import MissingDependencyError


@pytest.fixture
def measured(monkeypatch):
    """A machine with limits of our own making, on an idle host that nobody stole from."""
    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda seconds: 0.0)
    monkeypatch.setattr(machine, "_stolen", lambda: (0.0, 10.0))
    with Machine(1) as found:
        found.products, found.copies = [0.1] * 20, [0.01] * 20
        yield found


def test_limits_follow_from_the_samples(measured):
    found = measured.describe()

    assert found["gemm_gflops"] == pytest.approx(2 * 2048**3 / 1e9 / 0.1, rel=1e-3)
    assert found["copy_gb_per_s"] == pytest.approx(51.2)
    assert found["settled"] is True
    assert found["threads"] == 1
    json.dumps(found)


def test_products_of_unequal_speed_are_called_unsettled_with_the_spread(measured):
    measured.products = [0.1] * 15 + [0.2] * 5

    assert measured.describe()["unsettled"] == [
        "the same matrix product took 100 to 200 ms, 100% apart, and a settled machine stays within 10%"
    ]


def test_other_processes_and_a_hypervisor_that_takes_time_are_told(measured, monkeypatch):
    measured._busy = 0.3
    monkeypatch.setattr(machine, "_stolen", lambda: (0.5, 20.0))

    first, second = measured.describe()["unsettled"]

    assert first.startswith("others used 30% of the processors before the first run")
    assert "5.0% of the processors' time" in second


def test_what_others_use_is_a_share_of_all_processors(monkeypatch):
    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda seconds: 25.0)

    with Machine(1) as found:
        assert found.describe()["busy_before"] == 0.25


def test_time_of_guests_is_in_the_users_and_counts_once(monkeypatch):
    times = {"user": 4.0, "nice": 1.0, "system": 1.0, "idle": 2.0, "steal": 0.5, "guest": 3.0, "guest_nice": 1.0}
    monkeypatch.setattr(machine.psutil, "cpu_times", lambda: namedtuple("Times", times)(**times))

    assert machine._stolen() == (0.5, 8.5)


def test_without_psutil_one_sentence_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, machine.__name__)

    with pytest.raises(MissingDependencyError, match=r"measuring needs psutil; pip install .*\[bench\]'"):
        importlib.import_module(machine.__name__)


def test_one_sample_takes_both_limits(measured):
    measured.products, measured.copies = [], []

    measured.sample()

    assert len(measured.products) == len(measured.copies) == 1
    assert min(*measured.products, *measured.copies) > 0


def test_a_run_names_the_commit_of_its_checkout_and_whether_that_is_clean(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))

    def commit():
        return machine.finished_run("latency", datetime.now(UTC), (), {}, (), ()).commit

    def git(*words):
        author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(
            ["git", "-C", tmp_path, *author, *words], capture_output=True, text=True, check=True
        ).stdout

    assert commit() is None
    (tmp_path / "machine.py").touch()
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    short = git("rev-parse", "--short", "HEAD").strip()
    assert commit() == short
    (tmp_path / "machine.py").write_text("changed")
    assert commit() == f"{short}+changes"


def test_packages_that_are_not_installed_have_no_version():
    assert set(machine.versions(["numpy", "no-such-package"])) == {"python", "numpy"}
