"""What dies is started again, later and later where it dies at once, and not for ever."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from samkit.errors import ServingError
from samkit.triton_models.processes import Death
from samkit.triton_models.supervisor import Supervisor

GRAPH, SESSION = "m_sam_mask_decoder", "m_sam_session"


class Ended(Exception):
    """There is no further death in the test."""


class FakeServer:
    """Parts of it die as a test says: seconds after the last start, and what."""

    def __init__(self, deaths, broken=()):
        self.deaths, self.broken, self.now = list(deaths), set(broken), 0.0
        self.done = []
        self.signs = SimpleNamespace(say_watched=lambda: self.done.append("say watched"))

    def wait(self, seconds):
        if not self.deaths:
            raise Ended
        after, model = self.deaths.pop(0)
        self.now += after
        return Death(model, "ended")

    def do(self, what):
        self.done.append(what)
        if what in self.broken:
            raise ServingError(f"no {what}")

    def unload(self, model):
        self.do(f"unload {model}")

    def load(self, model):
        self.do(f"load {model}")

    def start(self):
        self.do("start")

    def stop(self, at_once):
        assert at_once
        self.do("stop")

    def sleep(self, seconds):
        self.now += seconds
        if seconds:
            self.done.append(seconds)


def look_after(server, ends=Ended, most=5):
    supervisor = Supervisor(server, most=most, lived=10, sleep=server.sleep, clock=lambda: server.now)
    with pytest.raises(ends) as ended:
        supervisor.run()
    return server.done[1:], str(ended.value)


def test_graph_is_loaded_again_alone():
    done, _ = look_after(FakeServer([(100, GRAPH)]))

    assert done == [f"unload {GRAPH}", f"load {GRAPH}"]


@pytest.mark.parametrize("part", [SESSION, "m_sam_refine", ""])
def test_server_is_started_again_for_what_answers_from_threads(part):
    done, _ = look_after(FakeServer([(100, part)]))

    assert done == ["stop", "start", "say watched"]


@pytest.mark.parametrize(
    ("broken", "then"),
    [("unload", ["stop", "start", "say watched"]), ("load", ["stop", 0.5, "start", "say watched"])],
)
def test_server_is_started_again_where_a_graph_can_not_be(broken, then):
    done, _ = look_after(FakeServer([(100, GRAPH)], {f"{broken} {GRAPH}"}))

    assert done[done.index("stop") :] == then
    assert done[: done.index("stop")][-1] == f"{broken} {GRAPH}"


def test_what_dies_at_once_is_started_later_and_later_and_then_no_more():
    done, said = look_after(FakeServer([(100, SESSION)] + [(1, SESSION)] * 5), ServingError)

    assert [step for step in done if isinstance(step, float)] == [0.5, 1.0, 2.0, 4.0]
    assert done.count("start") == 5
    assert done[-1] == "stop"
    assert said.startswith("the process of m_sam_session ended, and 5 starts in a row did not help; see ")


def test_server_that_never_starts_again_is_given_up():
    done, said = look_after(FakeServer([(100, "")], {"start"}), ServingError, most=3)

    assert done.count("start") == 3
    assert "does not start again (no start)" in said


def test_what_lived_long_enough_begins_anew():
    done, _ = look_after(FakeServer([(10, SESSION)] * 20))

    assert done.count("start") == 20
    assert not [step for step in done if isinstance(step, float)]


def test_deaths_of_others_do_not_count():
    done, _ = look_after(FakeServer([(1, GRAPH), (1, f"{GRAPH}_no_mask"), (1, "m_sam_preprocess")], ()), most=1)

    assert not [step for step in done if isinstance(step, float)]
