"""Between Triton and samkit: errors go out whole, bugs without what they may tell, counters only grow."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samkit import errors
from samkit.errors import (
    InputRefused,
    PromptError,
    ServerRestarting,
    ServerStopping,
    ServingError,
    TensorMismatchError,
)
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.failure import error_text, read_error
from samkit.triton_models import python_backend as backend
from samkit.triton_models.signs import Signs
from support import stand_ins as the


@pytest.fixture
def models():
    return {}


@pytest.fixture
def utils(models, monkeypatch):
    utils = the.fake_backend(models)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    return utils


def test_outside_of_a_server_there_is_no_backend(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", None)
    with pytest.raises(ServingError, match="sam-serve start"):
        backend.pb_utils()


# --- Requests ---


def test_inputs_are_read_by_name(utils):
    request = the.Request(volume=np.ones(3), request=wire.encode({"op": "open"}))

    assert backend.read_tensor(request, "volume").tolist() == [1, 1, 1]
    assert backend.read_tensor(request, "affine") is None
    assert backend.read_json(request, "request") == {"op": "open"}
    assert backend.read_json(request, "prompts", default=[]) == []
    with pytest.raises(TensorMismatchError, match="no tensor 'affine'"):
        backend.need_tensor(request, "affine")
    with pytest.raises(TensorMismatchError, match="not one text of JSON"):
        backend.read_json(the.Request(request=np.array([b"{"], object)), "request")


# --- Answers ---


def test_outputs_go_out_in_one_piece_of_memory(utils):
    array = np.arange(24).reshape(2, 3, 4)[:, ::-1].T
    response = backend.answer(lambda request: {"mask": array}, None)

    assert np.array_equal(response.array("mask"), array)
    assert response.array("mask").flags.c_contiguous


@pytest.mark.parametrize(
    "error", [PromptError("say it again"), InputRefused("air", "nothing there", "click elsewhere")]
)
def test_error_of_ours_goes_out_whole_and_is_not_logged(error, utils):
    def fail(request):
        raise error

    found = read_error(backend.answer(fail, None).error().message())

    assert type(found) is type(error)
    assert vars(found) == vars(error)
    assert str(found) == str(error)
    assert utils.lines == []


@pytest.mark.parametrize("bug", [KeyError("smith^john"), MemoryError("smith^john"), ValueError("smith^john.nii")])
def test_bug_goes_out_and_into_the_log_without_its_message(bug, utils):
    def fail(request):
        raise bug

    message = backend.answer(fail, None).error().message()
    found = read_error(message)

    assert type(found) is ServingError
    assert "a bug of samkit" in str(found)
    assert f"{type(bug).__name__} in test_python_backend.py:" in str(found)
    assert utils.lines == [str(found)]
    assert "smith" not in message
    assert str(Path(__file__).parent) not in message


def test_output_that_is_no_tensor_is_a_bug_and_an_answer(utils, monkeypatch):
    monkeypatch.setattr(utils, "Tensor", lambda name, array: 1 / 0)

    assert "ZeroDivisionError" in backend.answer(lambda request: {"mask": np.ones(1)}, None).error().message()


def test_requests_are_answered_from_threads_side_by_side(utils):
    threads, both = backend.Threads(2), threading.Barrier(2, timeout=60)
    requests = [the.Request(), the.Request()]

    def run(request):
        both.wait()  # neither ends before the other began
        return {"mask": np.ones(1)}

    for request in requests:
        threads.answer(run, request)
    threads.close()

    assert all(request.sender.response.array("mask") == 1 for request in requests)
    assert all(request.sender.flags == utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL for request in requests)


def test_closing_waits_for_the_answers(utils):
    threads, leave, request = backend.Threads(1), threading.Event(), the.Request()

    def run(request):
        assert leave.wait(60)
        raise PromptError("late")

    threads.answer(run, request)
    closing = threading.Thread(target=threads.close)
    closing.start()
    assert not request.sender.sent.is_set()
    leave.set()
    closing.join(60)

    assert str(read_error(request.sender.response.error().message())) == "late"


def test_request_that_was_given_up_is_not_worked_on(utils):
    threads, request, worked = backend.Threads(1), the.Request(), []
    request.gave_up = True
    threads.answer(worked.append, request)
    threads.close()

    assert worked == []
    assert "cancelled" in str(read_error(request.sender.response.error().message()))


class BrokenSender(the.Sender):
    """Fails to send the first so many responses."""

    def __init__(self, failures):
        super().__init__()
        self.failures = failures

    def send(self, response, flags):
        if self.failures:
            self.failures -= 1
            raise RuntimeError("smith^john")
        super().send(response, flags)


def test_answer_that_can_not_be_sent_is_an_error_instead(utils):
    sender = BrokenSender(1)
    backend.reply(lambda request: {"mask": np.ones(1)}, None, sender)
    message = sender.response.error().message()

    assert type(read_error(message)) is ServingError
    assert "RuntimeError while a request was answered" in message
    assert "smith" not in message + "".join(utils.lines)
    assert len(utils.lines) == 1


def test_nothing_that_fails_while_answering_ends_a_thread(utils, monkeypatch):
    silent = BrokenSender(2)
    backend.reply(lambda request: {"mask": np.ones(1)}, None, silent)  # raises nothing
    monkeypatch.setattr(utils.Logger, "log_error", lambda text: 1 / 0)
    sender = BrokenSender(0)
    backend.reply(lambda request: 1 / 0, None, sender)

    assert not silent.sent.is_set()
    assert "ZeroDivisionError while a request was answered" in sender.response.error().message()


# --- Other models ---


def test_call_returns_copies(utils, models):
    memory = {"scores": np.ones(3), "rest": np.ones(1)}
    models["decoder"] = lambda inputs: memory
    found = backend.call("decoder", {"x": np.zeros((3, 3)).T}, ["scores"])
    memory["scores"][:] = 7  # the server uses it again

    assert list(found) == ["scores"]
    assert found["scores"].tolist() == [1, 1, 1]
    assert found["scores"].base is None
    assert utils.calls == ["decoder"]


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """Somebody starts again what dies, and no wait is long."""
    signs = Signs(tmp_path)
    signs.say_watched()
    monkeypatch.setattr(backend._SIGNS, "found", signs)
    for name in ("_UNTIL_AWAY", "_PAUSE"):
        monkeypatch.setattr(backend, name, 0.0)
    return signs


DEAD, AWAY = "Stub process 'm_0_0' is not healthy.", "Failed for execute the inference request. Model 'm' is not ready."


def dying(models, *fates):
    """Have the model `m` fail in these words, one after the other, and then answer."""
    left = list(fates)

    def run(inputs):
        if left:
            raise RuntimeError(left.pop(0))
        return {"y": inputs["x"]}

    models["m"] = run


def test_call_waits_for_a_model_that_is_started_again(utils, models, watched):
    dying(models, DEAD, AWAY, AWAY)

    assert backend.call("m", {"x": np.ones(2)}, ["y"])["y"].tolist() == [1, 1]


def test_call_that_kills_a_model_twice_is_not_sent_again(utils, models, watched):
    dying(models, DEAD, AWAY, DEAD)

    with pytest.raises(ServerRestarting, match="model m died and is started again; try again in 10 s") as told:
        backend.call("m", {"x": np.ones(2)}, ["y"])
    assert told.value.seconds == 10


def test_call_does_not_wait_for_ever(utils, models, watched, monkeypatch):
    monkeypatch.setattr(backend, "REPAIR_SECONDS", 0.0)
    dying(models, *[AWAY] * 10)

    with pytest.raises(ServerRestarting):
        backend.call("m", {"x": np.ones(2)}, ["y"])


def test_call_waits_for_nobody_where_nobody_starts_anything_again(utils, models):
    dying(models, DEAD)

    with pytest.raises(ServingError, match="model m failed; see the server's log"):
        backend.call("m", {"x": np.ones(2)}, ["y"])


def test_nothing_new_begins_while_a_server_stops(watched):
    backend.check_open()
    watched.say_stopping()
    with pytest.raises(ServerStopping, match="try again at another server"):
        backend.check_open()


def test_call_raises_what_the_model_says(utils, models):
    def refuse(inputs):
        raise ValueError(f"in model decoder: {error_text(errors.WrongTurn('again'))}")

    models["decoder"] = refuse
    with pytest.raises(errors.WrongTurn, match="again"):
        backend.call("decoder", {}, [])
    with pytest.raises(ServingError, match="model encoder failed"):
        backend.call("encoder", {}, [])


def test_what_the_server_says_of_a_model_that_failed_stays_in_its_log(utils, models):
    def fail(inputs):
        raise ValueError("unable to find shared memory region: 'triton_python_backend_shm_region_7'")

    models["decoder"] = fail
    with pytest.raises(ServingError) as raised:
        backend.call("decoder", {}, [])

    assert str(raised.value) == "model decoder failed; see the server's log"
    assert utils.lines == [
        "model decoder failed: unable to find shared memory region: 'triton_python_backend_shm_region_7'"
    ]


# --- This process ---


def test_heap_keeps_what_it_frees_where_the_c_library_can(monkeypatch):
    asked = []
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *pair: asked.append(pair)))
    backend.keep_heap()
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name: SimpleNamespace())
    backend.keep_heap()

    assert dict(asked) == {-1: 512 << 20, -2: 64 << 20, -3: 32 << 20}


# --- Log and metrics ---


def test_log_goes_to_the_server(utils):
    backend.open_log()
    backend.open_log()  # of another model in the same process
    logging.getLogger("samkit.triton_models.session_host").info("%s", "one")
    logging.getLogger("samkit.imageio").info("smith^john.nii.gz")
    backend.log_error("two")
    backend.close_log()
    logging.getLogger("samkit.triton_models.session_host").info("nobody listens")

    assert utils.lines == ["one", "two"]


def test_counters_only_grow_and_gauges_go_anywhere(utils):
    metrics = backend.Metrics(name="m_sam")
    for clicks, open_now in ((2, 2), (5, 3), (4, 1), (5, 0), (6.5, 4)):  # figures of two threads may come out of order
        metrics.show("clicks", "counter", "Clicks", clicks)
        metrics.show("open", "gauge", "Sessions open", open_now)
    clicks, open_now = utils.families

    assert (clicks.name, clicks.kind, clicks.values) == ("clicks", "counter", {(("name", "m_sam"),): 6.5})
    assert (open_now.name, open_now.kind, open_now.values) == ("open", "gauge", {(("name", "m_sam"),): 4})


def test_stages_are_labels_of_one_family(utils):
    metrics = backend.Metrics(name="m_sam")
    for stage, seconds in (("encode", 1.0), ("decode", 2.0), ("encode", 1.5)):
        metrics.show("stage_seconds", "counter", "Time", seconds, stage=stage)
    (family,) = utils.families

    assert family.values == {
        (("name", "m_sam"), ("stage", "encode")): 1.5,
        (("name", "m_sam"), ("stage", "decode")): 2.0,
    }


def test_families_live_as_long_as_their_metrics(utils):
    metrics = backend.Metrics(name="m_sam")
    metrics.show("open", "gauge", "Sessions open", 1)
    (family,) = utils.families
    utils.families.clear()

    assert metrics._families == {"open": family}


def test_errors_are_counted_by_class_and_shown_for_the_model(utils):
    def fail_with(error):
        def fail(request):
            raise error

        return fail

    backend.begin("m_sam_session", "m_sam")
    for error in (
        PromptError("no"),
        InputRefused("air", "nothing", "click"),
        PromptError("no"),
        KeyError("smith^john"),
    ):
        backend.answer(fail_with(error), None)
    backend.answer(lambda request: {"mask": np.ones(1)}, None)
    (family,) = utils.families
    label = (("name", "m_sam"), ("model", "m_sam_session"))

    assert (family.name, family.kind) == ("samkit_errors_total", "counter")
    assert {dict(labels)["type"]: value for labels, value in family.values.items()} == {
        "PromptError": 2,
        "InputRefused": 1,
        "KeyError": 1,
    }
    assert all(set(label) < set(labels) for labels in family.values)


def test_page_that_can_not_be_written_keeps_no_answer_back(utils, monkeypatch):
    def fail(request):
        raise PromptError("no")

    backend.begin("m_sam_session")
    monkeypatch.setattr(utils, "MetricFamily", lambda **given: 1 / 0)

    assert isinstance(read_error(backend.answer(fail, None).error().message()), PromptError)


# --- Shared memory ---


@pytest.fixture
def shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "SHARED_MEMORY", tmp_path)
    return tmp_path


def test_memory_that_is_shared_with_the_server_is_its_users_alone(shared_memory):
    mine, other = shared_memory / "samkit_1", shared_memory / "of_somebody_else"
    for path in (mine, other):
        path.write_bytes(b"scan")
        path.chmod(0o644)
    maps = shared_memory / "maps"
    maps.write_text(
        f"7f821de00000-7f821ee00000 rw-s 00000000 00:1b 570   {mine}\n"
        "7f821ee00000-7f821ef00000 r-xp 00000000 00:1b 571   /usr/lib/libc.so.6\n"
        "7f821ef00000-7f821ff00000 rw-p 00000000 00:00 0 \n"
        f"7f821ff00000-7f8220e00000 rw-s 00000000 00:1b 572   {other} (deleted)\n"
    )
    backend.hide_memory(maps)

    assert mine.stat().st_mode & 0o777 == 0o600
    assert other.stat().st_mode & 0o777 == 0o644
