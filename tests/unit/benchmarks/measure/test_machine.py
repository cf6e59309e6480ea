"""Guards what stands beside a timing: limits of the machine, and why it was not settled. No timing is judged."""

from __future__ import annotations

import json

import pytest

from samkit.benchmarks.measure import machine
from samkit.benchmarks.measure.machine import Machine


@pytest.fixture
def measured(monkeypatch):
    """A machine with limits of our own making, on an idle host that nobody stole from."""
    monkeypatch.setattr(machine, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(machine, "_ticks", lambda: (500, 0, 1000))
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
    monkeypatch.setattr(machine, "_ticks", lambda: (600, 50, 2000))

    first, second = measured.describe()["unsettled"]

    assert first.startswith("others used 30% of the processors before the first run")
    assert "5.0% of the processors' time" in second


def test_who_waits_sees_what_others_use(monkeypatch):
    monkeypatch.setattr(machine, "LOOK_SECONDS", 0.0)
    ticks = iter([(500, 0, 1000), (575, 0, 1100)])
    monkeypatch.setattr(machine, "_ticks", lambda: next(ticks))

    assert machine._busy_share() == pytest.approx(0.25)


def test_one_sample_takes_both_limits(measured):
    measured.products, measured.copies = [], []

    measured.sample()

    assert len(measured.products) == len(measured.copies) == 1
    assert min(*measured.products, *measured.copies) > 0


def test_packages_that_are_not_installed_have_no_version():
    assert set(machine.versions(["numpy", "no-such-package"])) == {"python", "numpy"}
