"""Guards how a backend is held against PyTorch's answers: same questions, its own errors after, failures noted."""

from types import SimpleNamespace

import numpy as np
import pytest

from samkit.benchmarks.accuracy.candidates import BACKENDS, Contender
from samkit.benchmarks.accuracy.comparison import Rival, Settings, Shot
from samkit.benchmarks.accuracy.gate import CallJudge, CallTape, Limits
from samkit.benchmarks.accuracy.rows import SAME, Book
from samkit.benchmarks.cases.case import Case
from samkit.benchmarks.cases.simulated_user import Question, ask, make_task
from samkit.errors import SamkitError
from samkit.geometry import Volume
from samkit.methods import get_method

SHAPE = (16, 16, 16)
TARGET = np.zeros(SHAPE, bool)
TARGET[3:13, 3:13, 3:13] = True
SUBJECT = Case("case 7", {"": Volume(np.ones(SHAPE, np.float32), np.eye(4))}, {"": TARGET})
SETTINGS = Settings(3, Limits(), 2.0, ("centre",), pictures=False, anonymous=False)
IDENTITY = {"method": "m-sam", "backend": "triton", "device": "cpu", "precision": "fp32"}


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

    def add(self, prompt):
        if len(self.clicks) + 1 == self.refuses:
            raise SamkitError("the server is gone; start it again")
        self.clicks.append(prompt)

    def labels(self):
        return cube(self.sides[len(self.clicks) - 1])


def play(session, *sides, name="m-sam"):
    """Return the book of a session on a server, where PyTorch's masks are cubes of `sides`."""
    method = get_method(name)
    task = make_task(0, SUBJECT, "centre", method, method.sizes["small"], "small")
    book = Book(dict(IDENTITY), "centre")
    reference = SimpleNamespace(tape=CallTape(), runners={})
    judge = CallJudge(reference.tape, {}, "fp32", is_watching=False)
    rival = Rival(Contender("triton", BACKENDS["triton"], session, judge, {}), book, task, "case 7", SETTINGS)
    rival.begin()
    labels, reached = np.zeros(SHAPE, np.uint8), []
    for click, side in enumerate(sides, start=1):
        question = ask(task, click, labels > 0)
        labels = cube(side)
        shot = Shot(task, "case 7", click, labels, 2.0)
        reached.append(shot.dice)
        rival.answer(question, shot, reference)
    rival.end(reached, "axial")
    return book, reached


def test_backend_that_answers_as_pytorch_is_clicked_on_once():
    session = Session(6, 9, 10)
    book, reached = play(session, 6, 9, 10)
    assert len(session.clicks) == 3
    assert book.own_dice == {"case 7": reached}
    assert book.parities == [SAME | {"logit_difference": None}] * 3
    assert (book.breaks, len(book.units["case 7"])) == ([], 3)


def test_mask_that_moved_breaks_and_the_reader_then_clicks_on_its_errors():
    session = Session(6, 8, 10)
    book, reached = play(session, 6, 9, 10)
    assert [parity["flipped_voxels"] for parity in book.parities] == [0, 9**3 - 8**3, 0]
    (found,) = book.breaks
    assert (found.where, found.graph) == ("case 7, click 2 (centre)", "the session")
    assert found.measure.startswith("the mask has 217 voxels other than PyTorch's 729")
    assert book.own_dice["case 7"][0] == reached[0]
    assert book.own_dice["case 7"][1] < reached[1]
    assert book.own_dice["case 7"][2] == 1.0


def test_failure_is_noted_and_ends_the_case():
    book, _ = play(Session(6, 9, 10, refuses=2), 6, 9, 10)
    (found,) = book.breaks
    assert found.where == "case 7, click 2 (centre)"
    assert found.measure == "it failed where PyTorch did not: the server is gone; start it again"
    assert (len(book.units["case 7"]), book.own_dice) == (1, {})


def test_server_stops_where_a_mask_prompt_is_wanted_and_that_is_no_failure(monkeypatch):
    monkeypatch.setattr(
        f"{__name__}.ask", lambda task, click, mask, real=ask: Question(real(task, click, mask).prompts, click > 1)
    )
    book, _ = play(Session(6, 9), 6, 9)
    assert (book.breaks, len(book.units["case 7"]), book.own_dice) == ([], 1, {})
    assert book.notes == ["case 7, click 2 (centre): a server takes no mask of its own as a prompt, so it stopped here"]


@pytest.mark.parametrize(("anonymous", "name"), [(False, "case 7"), (True, "case 1")])
def test_anonymous_cases_are_numbered(anonymous, name):
    settings = Settings(3, Limits(), 2.0, ("centre",), pictures=False, anonymous=anonymous)
    assert settings.case(SUBJECT, 0) == name
