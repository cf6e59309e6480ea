"""Guards how a backend is held against PyTorch's answers: same questions, its own errors after, failures noted."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from samkit.benchmarks.accuracy.candidates import BACKENDS, Candidate, Compared, Opened
from samkit.benchmarks.accuracy.comparison import CandidateRun, Expected, compare
from samkit.benchmarks.accuracy.outcome import SAME, Outcome
from samkit.benchmarks.accuracy.outputs import OutputCheck, Recording
from samkit.benchmarks.accuracy.settings import AccuracySettings
from samkit.benchmarks.record.rows import Identity
from samkit.errors import SamkitError
from samkit.geometry import Volume
from samkit.methods import get_method
from samkit.metrics import measure_mask
from samkit.protocols.case import Case
from samkit.protocols.simulated_user import SimulatedUser

SHAPE = (16, 16, 16)
TARGET = np.zeros(SHAPE, bool)
TARGET[3:13, 3:13, 3:13] = True
CASE = Case("case 7", {"": Volume(np.ones(SHAPE, np.float32), np.eye(4))}, {"": TARGET})
SETTINGS = AccuracySettings((), clicks=3, policies=("centre",), pictures=False)
IDENTITY = Identity("m-sam", "triton", "cpu", "fp32", stage="masks", policy="centre")


def cube(side):
    """Return a label map whose mask is a cube of that side within the target."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3 : 3 + side, 3 : 3 + side, 3 : 3 + side] = 1
    return labels


class Session:
    """Answers each click with the next of some masks, from the first again after a reset."""

    def __init__(self, *sides, refuses=None):
        self.sides, self.refuses, self.clicks = sides, refuses, []

    def set_image(self, volumes, automatic=True):
        self.clicks.clear()

    def reset(self):
        self.clicks.clear()

    def add(self, prompt, refine=False):
        if len(self.clicks) + 1 == self.refuses:
            raise SamkitError("the server is gone; start it again")
        self.clicks.append(prompt)

    def labels(self):
        return cube(self.sides[len(self.clicks) - 1])


def play(session, *sides, change=lambda click, prompting: prompting):
    """Return the outcome of a session on a server, where PyTorch's masks are cubes of `sides`."""
    method = get_method("m-sam")
    user = SimulatedUser.of(CASE, "centre", method, method.sizes["small"], None)
    outcome = Outcome(IDENTITY)
    check = OutputCheck(Recording(), {}, "fp32", sees_session=False)
    candidate = Candidate(BACKENDS["triton"], session, {}, {"centre": outcome}, check)
    run = CandidateRun(candidate, user, SETTINGS)
    labels, reached = np.zeros(SHAPE, np.uint8), []
    for click, side in enumerate(sides, start=1):
        prompting = change(click, user.prompt(click, labels))
        labels = cube(side)
        figures = measure_mask(labels > 0, TARGET, (1.0, 1.0, 1.0), tolerance_mm=SETTINGS.tolerance_mm)
        where = f"case 7, click {click} (centre)"
        expected = Expected(click, where, labels, np.zeros(SHAPE), {"": figures})
        reached.append(figures["dice"])
        run.answer(prompting, expected, {})
    run.end(reached)
    return outcome, reached


def test_backend_that_answers_as_pytorch_is_clicked_on_once():
    session = Session(6, 9, 10)
    outcome, reached = play(session, 6, 9, 10)
    assert len(session.clicks) == 3
    assert outcome.own_dice == {"case 7": reached}
    assert outcome.parities == [SAME | {"logit_difference": None}] * 3
    assert (outcome.failures, len(outcome.steps["case 7"])) == ([], 3)


def test_mask_that_moved_breaks_and_the_reader_then_clicks_on_its_errors():
    session = Session(6, 8, 10)
    outcome, reached = play(session, 6, 9, 10)
    assert [parity["flipped_voxels"] for parity in outcome.parities] == [0, 9**3 - 8**3, 0]
    (found,) = outcome.failures
    assert (found.where, found.graph) == ("case 7, click 2 (centre)", "the session")
    assert found.measure.startswith("the mask has 217 voxels other than PyTorch's 729")
    assert outcome.own_dice["case 7"][0] == reached[0]
    assert outcome.own_dice["case 7"][1] < reached[1]
    assert outcome.own_dice["case 7"][2] == 1.0


def test_failure_is_noted_and_ends_the_case():
    outcome, _ = play(Session(6, 9, 10, refuses=2), 6, 9, 10)
    (found,) = outcome.failures
    assert found.where == "case 7, click 2 (centre)"
    assert found.measure == "it failed where PyTorch did not: the server is gone; start it again"
    assert (len(outcome.steps["case 7"]), outcome.own_dice) == (1, {})


def test_server_stops_where_a_mask_prompt_is_wanted_and_that_is_no_failure():
    outcome, _ = play(Session(6, 9), 6, 9, change=lambda click, prompting: replace(prompting, refine=click > 1))
    assert (outcome.failures, len(outcome.steps["case 7"]), outcome.own_dice) == ([], 1, {})
    assert outcome.notes == [
        "case 7, click 2 (centre): a server takes no mask of its own as a prompt, so it stopped here"
    ]


@pytest.mark.parametrize(("anonymous", "name"), [(False, "case 7"), (True, "case 1")])
def test_anonymous_cases_are_numbered(anonymous, name):
    method = get_method("m-sam")
    weights = SimpleNamespace(kind="random")
    plan = SimpleNamespace(method="m-sam", size="small", weights=weights)
    export = SimpleNamespace(method=method, config=method.sizes["small"], specs=(), digest="ab", plan=plan)
    compared = Compared.of(export, replace(SETTINGS, anonymous=anonymous))
    session = Session(6, 9, 10)
    session.logits = lambda: np.zeros(SHAPE, np.float32)
    baseline = Opened(BACKENDS["torch"], session, {}, compared.outcomes(BACKENDS["torch"]))
    (row,), _ = compare(compared, baseline, [], [CASE])
    assert [unit.case for unit in row.cases] == [name]
