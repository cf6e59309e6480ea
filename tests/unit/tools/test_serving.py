"""Guards the harness that measures serving: its figures, who has the turn, what it reads and refuses. No timing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from click.testing import CliRunner

from samkit.benchmarks.measure import turns
from samkit.benchmarks.record.statistics import median_difference
from samkit.errors import PromptError, SamkitError, ServingError
from samkit.geometry import Volume
from samkit.prompts import Point
from samkit.protocols.case import Case
from tools import serving

CLICKS = (Point((0, 0, 0), 1), Point((1, 1, 1), 0))
CASE = Case("two clicks", {"": Volume(np.ones((2, 2, 2)), np.eye(4))}, {}, clicks=CLICKS)
SECONDS = {**dict.fromkeys(serving.STAGES, 0.001), "total": 0.005}


@dataclass
class Step:
    seconds: dict
    crops: int = 1


@dataclass
class Update:
    mask: np.ndarray

    @property
    def change(self):
        return (), self.mask[:1]


@dataclass
class FakeSession:
    """Clicks set their voxel, or all of them where it is `wrong`; every call is told in `calls`."""

    way: str
    calls: list
    wrong: bool = False
    steps: list = field(default_factory=list)

    def set_image(self, volume):
        self._mask = np.zeros(volume.array.shape, bool)

    def reset(self):
        self._mask[:] = False

    def check(self, point):
        self.calls.append(f"{self.way} checks")

    def click(self, index, positive, structure=""):
        self.calls.append(f"{self.way} {'+' if positive else '-'}")
        self._mask[... if self.wrong else tuple(int(v) for v in index)] = True
        self.steps.append(Step(SECONDS))
        return self.last_update()

    def last_update(self):
        return Update(self._mask.copy())


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch):
    monkeypatch.setattr(turns, "QUIET_SECONDS", 0.0)


def sessions(calls, wrong=None):
    ways = (serving.IN_PROCESS, *serving.SERVED)
    return {way: FakeSession(way[:1], calls, wrong=way == wrong) for way in ways}


def measured_clicks(calls, wrong=None):
    return serving.measure_clicks(sessions(calls, wrong), CASE, 2, lambda: calls.append("product"))


def test_sessions_take_turns_click_by_click_and_who_begins_changes():
    calls = []

    record = measured_clicks(calls)

    warm_up = [f"{way} {label}" for way in "igH" for label in "+-"]
    rounds = ["product", "i +", "g +", "H +", "g checks", "H checks", "g -", "H -", "i -", "H checks", "g checks"]
    rounds += ["product", "g +", "H +", "i +", "H checks", "g checks", "H -", "i -", "g -", "g checks", "H checks"]
    assert calls == warm_up + rounds
    assert {way: len(values) for way, values in record["samples"].items()} == {
        "in-process": 4, "gRPC": 4, "HTTP": 4, "product": 2,
    }  # fmt: skip
    assert record["crops"] == [1, 1, 1, 1]
    assert record["changed"] == [4, 4, 4, 4]


def test_another_mask_ends_the_comparison():
    with pytest.raises(SamkitError, match="click 1 gives another mask over HTTP than in-process"):
        measured_clicks([], wrong=serving.HTTP)


def test_figures_are_percentiles_and_what_lies_between_them():
    stages = {way: [SECONDS] * 3 for way in ("in-process", "gRPC", "HTTP")}
    samples = {"in-process": [0.009, 0.010, 0.029], "gRPC": [0.015, 0.020, 0.025], "HTTP": [0.021, 0.021, 0.021]}

    figures = serving.click_figures(samples, stages, {"gRPC": [0.002] * 3, "HTTP": [0.003] * 3})

    assert figures["in-process"] == {
        "p50": 10.0, "p95": 27.1, "stages": {**dict.fromkeys(serving.STAGES, 1.0), "total": 5.0},
    }  # fmt: skip
    found = {way: [figures[way][key] for key in ("p50", "above_in_process", "around", "empty_call")]
             for way in serving.SERVED}  # fmt: skip
    assert found == {"gRPC": [20.0, 10.0, 15.0, 2.0], "HTTP": [21.0, 11.0, 16.0, 3.0]}


@pytest.mark.parametrize(
    ("served", "verdict"),
    [
        (lambda base, noise: base + 0.008, "met"),
        (lambda base, noise: base + 0.012, "missed"),
        (lambda base, noise: base + 0.008 + 0.2 * noise, "not decided: run again on an idle machine"),
        (lambda base, noise: base - 0.050 + 0.5 * noise, "not decided: run again on an idle machine"),
    ],
)
def test_goal_is_judged_only_where_chance_does_not_decide(served, verdict):
    rng = np.random.default_rng(5)
    base = 0.3 + 0.001 * rng.random(40)

    found = median_difference(1e3 * served(base, rng.standard_normal(40)), 1e3 * base)
    assert serving.judge((found.low, found.high)) == verdict


def readings(*megabytes):
    return [{"sessions": 20 * number, "rss": value} for number, value in enumerate(megabytes)]


@pytest.mark.parametrize(
    ("megabytes", "slope"),
    [
        ((100, 300, 400, 400, 400, 400), 0.0),  # what is kept for later is filled in the first half
        ((100, 110, 120, 130, 140, 150), 50.0),
        ((400, 390, 380, 370, 360, 350), -50.0),
        ((100, 200, 300, 400), None),
    ],
)
def test_slope_is_that_of_the_second_half(megabytes, slope):
    assert serving.growth(readings(*megabytes), "rss") == (None if slope is None else pytest.approx(slope, abs=0.01))


def test_encoder_runs_are_those_of_all_versions():
    stats = [{"inference_stats": {"success": {"count": str(number)}}} for number in (2, 40)]

    assert serving.count_runs(json.dumps({"model_stats": stats}).encode(), "m_sam_image_encoder") == 42


@pytest.mark.parametrize("answer", [b"", b'{"error": "unknown model"}', b'{"model_stats": [{}]}', b"[]"])
def test_statistics_of_another_form_are_refused(answer):
    with pytest.raises(ServingError, match="statistics of m_sam_image_encoder are not in the form of Triton's"):
        serving.count_runs(answer, "m_sam_image_encoder")


@pytest.mark.parametrize("texts", [("1,2,3,+", "4,5,+"), ("1,2,3", "1,2,3,+")])
def test_points_on_a_scan_have_three_indices_and_a_sign(texts, tmp_path):
    with pytest.raises(PromptError):
        serving.read_case(tmp_path / "scan.nii.gz", texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scan", "{here}"], "--scan and --point go together"),
        (["--point", "1,2,3,+"], "--scan and --point go together"),
        (["--export", "{here}", "--recipe", "{here}/recipe.py"], "--export brings its weights"),
        (["--method", "sam"], "'sam' is not"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message, tmp_path):
    (tmp_path / "recipe.py").write_text("")

    ended = CliRunner().invoke(serving.serving, [option.format(here=tmp_path) for option in options])

    assert ended.exit_code == 2
    assert message in " ".join(ended.output.replace("│", " ").split())
