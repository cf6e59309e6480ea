"""Guards how growth is measured and fitted: sizes, content that stays, exponents of fabricated times."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from samkit.benchmarks.cases.phantom_scans import padded, repeated
from samkit.benchmarks.load import scaling
from samkit.benchmarks.load.readers import STAGES, LoadLevel
from samkit.benchmarks.load.scaling import growth_row
from samkit.benchmarks.load.workload import CLICKS, SLICES, Workload
from samkit.benchmarks.record.rows import Identity, read_row, to_dict
from samkit.errors import SamkitError
from samkit.geometry import Volume, voxel_to_world
from samkit.manifest import Export
from samkit.prompts import Point
from samkit.protocols.case import Case

IDENTITY = Identity("m-sam", "onnxruntime", "cpu", "fp32")
VALUES = np.arange(1.0, 1 + 4 * 4 * 4).reshape(4, 4, 4)
TARGET = np.zeros((4, 4, 4), bool)
TARGET[1:3, 1:3, 2] = True
CASE = Case(
    "small", {"": Volume(VALUES, np.diag([2.0, 3.0, 4.0, 1.0]))}, {"": TARGET}, "axial", clicks=(Point((1, 2, 2), 1),)
)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
def test_the_exponent_is_that_of_the_times(exponent):
    noise = np.random.default_rng(3)
    samples = {x: [0.01 * x**exponent * noise.uniform(0.95, 1.05) for _ in range(20)] for x in (1.0, 2.0, 4.0, 8.0)}

    row = growth_row(IDENTITY, "click", "sessions", samples)

    found = row.scaling.exponent
    assert found.low <= exponent <= found.high
    assert found.high - found.low < 0.1
    assert row.times.p50_ms == pytest.approx(10 * 8**exponent, rel=0.05)
    assert row.scaling.x == (1.0, 2.0, 4.0, 8.0)


def test_a_size_with_many_samples_counts_no_more_than_others(monkeypatch):
    samples = {1.0: [0.01] * 5000, 2.0: [0.02] * 200, 4.0: [0.03] * 200}
    monkeypatch.setattr(scaling, "MOST_SAMPLES", 300)

    row = growth_row(IDENTITY, "click", "sessions", samples)

    assert row.scaling.exponent.value == pytest.approx(np.log2(3) / 2, abs=0.01)
    assert [len(values) for values in row.scaling.y_ms] == [100, 100, 100]
    assert row.times.n == 5400


@pytest.mark.parametrize("samples", [{}, {8.0: [0.1, 0.2]}])
def test_of_one_size_there_is_no_exponent(samples):
    row = growth_row(IDENTITY, "propagate", "slices", samples)

    assert row.reason.startswith("an exponent of propagate needs two sizes of slices")


def test_thinning_keeps_the_ends_and_the_middle():
    values = np.random.default_rng(0).permutation(np.arange(10_001.0)).tolist()

    kept = scaling.spread(values, 2000)

    assert len(kept) == 2000
    assert (kept[0], kept[-1]) == (0.0, 10_000.0)
    assert np.median(kept) == pytest.approx(np.median(values), abs=3)
    assert np.percentile(kept, 95) == pytest.approx(9500, abs=10)
    assert scaling.spread([2.0, 1.0], 2000) == [1.0, 2.0]


def test_levels_with_few_calls_of_a_stage_do_not_count_for_it():
    def level(readers, **samples):
        return LoadLevel(readers, dict.fromkeys(STAGES, ()) | samples, 1.0, {}, {})

    levels = [level(n, click=(0.1 * n,) * 9, scan=(0.1,) * 9 * (n == 1), undo=(0.1,)) for n in (1, 2, 4)]

    found = {stage: scaling.over_sessions(levels, stage) for stage in ("click", "scan", "undo")}

    click = growth_row(replace(IDENTITY, mode="closed"), "click", "sessions", found["click"])
    assert click.identity.stage == "click over sessions, closed"
    assert click.scaling.exponent.value == pytest.approx(1.0)
    assert [len(found[stage]) for stage in ("scan", "undo")] == [1, 0]


def test_air_around_a_scan_moves_nothing_in_the_world():
    larger = padded(CASE, (7, 8, 9))

    (volume,), (point,) = larger.volumes.values(), larger.clicks
    before = voxel_to_world(CASE.volumes[""].affine, np.array([CASE.clicks[0].index]))
    place = tuple(int(v) for v in point.index)
    assert volume.array.shape == larger.target.shape == (7, 8, 9)
    assert volume.array.sum() == VALUES.sum()
    assert volume.array[place] == VALUES[1, 2, 2]
    assert larger.target[place]
    np.testing.assert_allclose(voxel_to_world(volume.affine, np.array([point.index])), before)


def test_a_stack_is_the_targets_slice_over_and_over():
    stack = repeated(CASE, 5)

    assert stack.volumes[""].array.shape == (4, 4, 5)
    assert (stack.volumes[""].array == VALUES[:, :, 2:3]).all()
    assert stack.clicks[0].index == (1, 2, 2.0)
    assert repeated(CASE, 1).clicks[0].index == (1, 2, 0.0)


def test_a_study_of_volumes_has_no_slices():
    with pytest.raises(SamkitError, match="no slices to repeat"):
        repeated(Case("volume", {}, {"": TARGET}), 3)


class FakeSession:
    """Tells what was done to it; a stack of slices is answered but for its last one."""

    def __init__(self, *, automatic):
        self.is_automatic, self.calls = automatic, []

    def set_image(self, volumes, automatic=True):
        self._shape = volumes[""].array.shape
        self.calls.append(f"{'open' if automatic else 'set'} {self._shape[2]}")

    def reset(self):
        self.calls.append("reset")

    def click(self, index, positive, structure=""):
        self.calls.append("click")
        return self

    mask = None

    def segment_automatically(self):
        self.calls.append("decide")

    def propagate(self):
        self.calls.append("propagate")

    @property
    def steps(self):
        return [type("Step", (), {"slices": range(self._shape[2] - 1)})]


def test_volumes_take_turns_and_the_first_round_does_not_count():
    session = FakeSession(automatic=False)
    case = Case("two clicks", CASE.volumes, {"": TARGET}, clicks=CASE.clicks * 2)

    found = scaling.over_volume(session, case, rounds=2)

    assert list(found) == ["scan", "first_click", "click"]
    sides = (4, 5, 7, 10)
    for samples in found.values():
        assert {x: len(times) for x, times in samples.items()} == {s**3: 2 for s in sides}
    opened = [call for call in session.calls if call.startswith("open")]
    assert opened == [f"open {side}" for side in (*sides, *sides[1:], sides[0], *sides[2:], *sides[:2])]


@pytest.mark.parametrize(
    ("automatic", "stage", "calls"),
    [
        (True, "decide", ["set 2", "decide", "set 4", "decide"]),
        (False, "propagate", ["open 2", "click", "propagate", "open 4", "click", "propagate"]),
    ],
)
def test_slices_are_those_that_were_answered(automatic, stage, calls):
    session = FakeSession(automatic=automatic)

    found = scaling.over_slices(session, CASE, rounds=1)

    assert session.calls[: len(calls)] == calls
    assert list(found) == [stage]
    assert {x: len(times) for x, times in found[stage].items()} == {1: 1, 3: 1, 7: 1, 15: 1}


def test_clicks_are_timed_where_embeddings_are_there():
    session = FakeSession(automatic=False)
    case = Case("three clicks", CASE.volumes, {"": TARGET}, clicks=CASE.clicks * 3)

    found = scaling.over_clicks(session, case, rounds=2)

    assert session.calls == ["open 4", *["reset", "click", "click", "click"] * 3]
    assert {x: len(times) for x, times in found["click"].items()} == {1: 2, 2: 2, 3: 2}


def test_figures_make_a_row():
    row = growth_row(IDENTITY, "first_click", "volume", {1.0: [0.1], 8.0: [0.2]})

    assert read_row(to_dict(row)) == row
    assert row.identity.stage == "first click over volume"
    assert (row.scaling.over, row.scaling.unit) == ("volume [voxels]", "voxels")


def test_a_real_session_takes_the_stacks_that_growth_is_measured_on(bright_slices):
    """The gate judges what lies in memory, too: a stack of one slice would be refused there."""
    work = Workload(scaling=(SLICES, CLICKS), rounds=1)

    rows = list(scaling.growth_rows(Export.open(bright_slices), work, SimpleNamespace(sample=lambda: None)))

    assert [row.identity.stage for row in rows] == ["propagate over slices", "click over clicks"]
    assert all(row.scaling is not None for row in rows)
