"""What a server must not lose is told, one sentence each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from samkit.prompts import Point
from tools.outages import acts_on, find_misses

DEATH = {"model": "m_sam_session", "at": 1.0, "last_ready": 0.01, "back": 4.0}
RECORD = {
    "deaths": {"deaths": [DEATH], "acts": 900, "wrong": 0, "restored": 8, "errors": [], "memory_mb": [400.0, 410.0]},
    "clients": {"most": 40, "left": 0, "free_after": 46.0},
    "sessions": {"memory_mb": [500.0, 500.0]},
}


def test_nothing_lost_is_no_sentence():
    assert find_misses(RECORD) == []


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("deaths", {"wrong": 2}, "2 of 900 masks are not those of the same acts in-process"),
        ("deaths", {"errors": ["ServerRestarted: gone"]}, "a reader got ServerRestarted: gone"),
        ("deaths", {"deaths": [{**DEATH, "back": None}]}, "60 s after m_sam_session died nothing was ready again"),
        (
            "deaths",
            {"deaths": [{**DEATH, "last_ready": 0.4}]},
            "0.40 s after m_sam_session died a probe heard that all is ready",
        ),
        ("deaths", {"memory_mb": [400.0, 480.0]}, "memory grew from 400 to 480 MB"),
        ("clients", {"left": 2}, "46 s after their clients were killed 2 places are taken"),
        ("clients", {"free_after": 71.0}, "71 s after their clients were killed 0 places are taken"),
        ("sessions", {"memory_mb": [500.0, 600.0]}, "memory grew from 500 to 600 MB"),
    ],
)
def test_each_loss_is_one_sentence(part, change, sentence):
    assert find_misses({**RECORD, part: {**RECORD[part], **change}}) == [sentence]


def test_undo_and_redo_come_before_the_last_click():
    said = []
    session = SimpleNamespace(
        click=lambda place, positive, structure: said.append(place),
        undo=lambda: said.append("undo"),
        redo=lambda: said.append("redo"),
    )
    places = [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0), (7.0, 8.0, 9.0)]
    list(acts_on(session, tuple(Point(place, 1) for place in places)))
    assert said == [*places[:2], "undo", "redo", places[2]]
