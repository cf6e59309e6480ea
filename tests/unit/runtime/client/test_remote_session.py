"""A session on a server does what one on the export folder does; lost answers, late ones and refusals are told apart.

The server here is the one that Triton runs (`SessionHost`), and what passes between is what passes on the wire. The
transports have tests of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import samkit
from samkit.errors import (
    AtCapacity,
    GeometryError,
    InputRefused,
    OptionError,
    PromptError,
    SamkitError,
    ServerRestarted,
    ServerRestarting,
    ServerStopping,
    ServerTimeout,
    ServerUnreachable,
    ServingError,
    SessionExpired,
    TensorMismatchError,
    WrongTurn,
)
from samkit.geometry import Volume
from samkit.methods.method import SliceMethod, VolumeMethod
from samkit.prompts import Box, Point, SliceBox, SlicePoint
from samkit.runtime.client import remote_session
from samkit.runtime.client.remote_session import RemoteSession
from samkit.runtime.client.triton_transport import Address, ConnectionLost
from samkit.runtime.opening import open_export
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.requests import read_request

ADDRESS = Address.parse("triton://localhost:8001/bright")


class Time:
    """A clock that only `sleep` moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


LOST = ConnectionLost("localhost:8001 can't be reached (reset)")
LATE = ServerTimeout("localhost:8001 gave no answer within 7 s; give more time")


@pytest.fixture
def connected(serve, wired):
    """Return a function that gives transport and session of an export folder that is served here."""
    sessions = []

    def connect(folder, *, limits=None, **options):
        transport, clock = wired(serve(folder, **(limits or {}))), Time()
        options = {"timeout": 7.0, **options}
        sessions.append(RemoteSession(transport, ADDRESS, clock=clock, sleep=clock.sleep, **options))
        return transport, sessions[-1]

    yield connect
    for session in sessions:
        session.close()


def scan(shape=(40, 44, 30), dtype=np.int16):
    """A bright ball in dimmer, slightly uneven tissue, on an oblique grid."""
    i, j, k = np.indices(shape)
    inside = (i - 20) ** 2 + (j - 22) ** 2 + (k - 15) ** 2 < 49
    affine = np.array([[0.9, -0.2, 0.1, -30.0], [0.25, 1.1, -0.1, 12.0], [-0.1, 0.2, 1.9, 5.0], [0, 0, 0, 1]])
    return Volume((50 + (i + j + k) % 7 + 200 * inside).astype(dtype), affine)


def check_same(here, there):
    """Compare two updates: of a session on the folder, and of one on the server."""
    assert np.array_equal(here.labels, there.labels)
    assert here.mask.dtype == there.mask.dtype == bool
    assert here.changed == there.changed
    assert np.array_equal(here.change[1], there.change[1])
    assert here.volume_ml == there.volume_ml
    assert here.iou == there.iou


def untimed(steps):
    """Steps without the seconds they took."""
    return [{key: value for key, value in vars(step).items() if key != "seconds"} for step in steps]


# --- The same as on the folder ---


def test_clicks_in_a_volume_are_those_of_the_folder(bright_export, connected):
    transport, there = connected(bright_export, spacing=(1.5, 1.0, 1.0))

    with open_export(bright_export, threads=1, spacing=(1.5, 1.0, 1.0)) as here:
        check_same(here.set_image(scan()), there.set_image(scan()))
        calls = [("click", (20, 22, 15)), ("click", (3, 3, 3), False), ("undo",), ("redo",), ("undo",)]
        calls += [("click", (20, 20, 15)), ("reset",), ("click", (21, 22, 16))]
        for call, *words in calls:
            check_same(getattr(here, call)(*words), getattr(there, call)(*words))
            assert untimed(here.steps) == untimed(there.steps)
            assert here.origins == there.origins
        check_same(here.click((1.0, 50.0, 30.0), world=True), there.click((1.0, 50.0, 30.0), world=True))
        assert np.array_equal(here.mask(), there.mask())
        assert np.array_equal(here.labels(), there.labels())
        assert here.spacing == there.spacing
    assert there.mask().any()
    assert transport.asked.count("open") == 1


def test_prompts_on_slices_are_those_of_the_folder(bright_slices, connected):
    _, there = connected(bright_slices, plane="coronal", intensities=(0.0, 255.0))

    with open_export(bright_slices, threads=1, plane="coronal", intensities=(0.0, 255.0)) as here:
        check_same(here.set_image(scan()), there.set_image(scan()))
        check_same(here.box((10, 22, 5), (30, 22, 25)), there.box((10, 22, 5), (30, 22, 25)))
        check_same(here.click((20, 22, 15), False), there.click((20, 22, 15), False))
        here.propagate()
        there.propagate()
        check_same(here.last_update(), there.last_update())
        assert untimed(here.steps) == untimed(there.steps)
        assert here.prompted == there.prompted
        assert here.plane == there.plane == "coronal"


def test_a_change_of_two_slices_leaves_those_between_as_they_are(bright_slices, connected):
    _, there = connected(bright_slices, plane="coronal")

    with open_export(bright_slices, threads=1, plane="coronal") as here:
        for session in (here, there):
            session.set_image(scan())
            session.box((10, 22, 5), (30, 22, 25))
            session.add(Box((10, 20, 5), (30, 20, 25)), Point((20, 24, 15), 1))
        check_same(here.last_update(), there.last_update())
        assert here.prompted == there.prompted == (20, 22, 24)


def test_a_picture_is_that_of_the_folder(bright_slices, connected):
    _, there = connected(bright_slices)
    picture = scan().array[:, :, 15].astype(np.float32) - 10

    with open_export(bright_slices, threads=1) as here:
        for shown in (picture, np.stack([picture, picture + 1, picture * 0.5], axis=-1)):
            here.set_image(shown)
            there.set_image(shown)
            check_same(here.last_update(), there.last_update())
            check_same(here.box((10, 8), (30, 33)), there.box((10, 8), (30, 33)))
            check_same(here.undo(), there.undo())
        here.add(SlicePoint(20.0, 21.0, 1))
        there.add(SlicePoint(20.0, 21.0, 1))
        check_same(here.last_update(), there.last_update())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, np.int32])
def test_every_dtype_gives_the_same_mask(bright_export, connected, dtype):
    _, there = connected(bright_export)

    with open_export(bright_export, threads=1) as here:
        here.set_image(scan(dtype=dtype))
        there.set_image(scan(dtype=dtype))
        check_same(here.click((20, 22, 15)), there.click((20, 22, 15)))


def test_it_knows_the_export_as_the_folder_does(bright_export, bright_slices, connected):
    for folder, kind in ((bright_export, VolumeMethod), (bright_slices, SliceMethod)):
        _, there = connected(folder)
        with open_export(folder, threads=1) as here:
            assert isinstance(there.method, kind)
            assert there.method is here.method
            assert there.config == here.config
            assert there.manifest.digest == here.manifest.digest
            assert there.manifest.plan == here.manifest.plan
            assert there.precision == here.precision
            assert there.warnings == here.warnings
            assert there.is_automatic == here.is_automatic
            assert set(there.providers) <= set(here.providers)
    assert there.structures == here.structures
    assert there.sequences == here.sequences
    assert there.plane == here.plane


@pytest.mark.parametrize(
    "prompt",
    [
        Point((99, 2, 2), 1),
        Box((1, 1, 1), (2, 2, 1)),
        SlicePoint(1, 1, 1),
        SliceBox(1, 1, 2, 2),
        Point((1, 1, 1), 1, "x"),
    ],
)
def test_refused_prompts_raise_what_the_folder_raises_and_change_nothing(bright_export, connected, prompt):
    _, there = connected(bright_export)
    there.set_image(scan())
    there.click((20, 22, 15))
    before = there.labels()

    with open_export(bright_export, threads=1) as here:
        here.set_image(scan())
        with pytest.raises(SamkitError) as expected:
            here.add(prompt)
    for call in (there.add, there.check):
        with pytest.raises(type(expected.value)) as raised:
            call(prompt)
        assert str(raised.value) == str(expected.value)
    assert np.array_equal(there.labels(), before)
    assert len(there.steps) == 1
    there.click((20, 20, 15))


def test_scans_that_do_not_lie_on_one_another_are_refused_before_they_travel(bright_slices, connected):
    transport, there = connected(bright_slices)
    moved = Volume(scan().array, scan().affine + np.eye(4)[:, 3:] * 0 + np.diag([0.5, 0, 0, 0]))

    with pytest.raises(InputRefused, match="not co-registered"):
        there.set_image({"a": scan(), "b": moved})
    with pytest.raises(InputRefused, match="not co-registered"):
        there.set_image({"a": scan(), "b": scan(shape=(40, 44, 31))})
    with pytest.raises(InputRefused, match="a slice, not a volume"):
        there.set_image(Volume(np.zeros((2, 2), np.uint8), np.eye(4)))
    assert "open" not in transport.asked


def test_a_scan_beyond_the_servers_limit_is_refused_before_it_travels(bright_slices, connected):
    transport, there = connected(bright_slices, limits={"max_voxels": 1000})

    with pytest.raises(InputRefused, match="limit is 1000"):
        there.set_image(scan())
    with pytest.raises(InputRefused, match="limit is 1000"):
        there.set_image(np.zeros((40, 40)))
    assert "open" not in transport.asked


def test_what_a_method_can_not_take_is_refused_before_it_travels(bright_export, connected):
    transport, there = connected(bright_export)

    with pytest.raises(PromptError, match="picture"):
        there.set_image(np.zeros((40, 40)))
    with pytest.raises(PromptError, match="no image is given"):
        there.set_image({})
    assert "open" not in transport.asked


def test_a_scan_that_the_server_refuses_leaves_the_one_before(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    there.click((20, 22, 15))
    before = there.labels()

    singular = Volume(scan().array, np.zeros((4, 4)))
    with pytest.raises(InputRefused, match="singular"):
        there.set_image(singular)
    with pytest.raises(GeometryError, match="singular"):
        there._take({"": singular})  # past the gate of this end
    assert np.array_equal(there.labels(), before)
    there.click((1.0, 50.0, 30.0), world=True)
    assert [step.number for step in there.steps] == [1, 2]

    there.set_image(scan())
    assert not there.mask().any()
    assert there.steps == ()
    assert len(transport.host._held) == 1


def test_a_picture_that_the_server_refuses_leaves_the_scan_before(bright_slices, connected):
    _, there = connected(bright_slices)
    there.set_image(scan())
    there.box((10, 8, 15), (30, 33, 15))
    before = there.labels()

    with pytest.raises(InputRefused):
        there.set_image(np.zeros((40, 40, 2)))
    assert np.array_equal(there.labels(), before)
    assert there.prompted == (15,)


def test_clicks_at_once_happen_all_or_not_at_all(bright_export, connected):
    _, there = connected(bright_export)
    there.set_image(scan())
    with pytest.raises(InputRefused, match="outside"):
        there.add(Point((20, 22, 15), 1), Point((99, 2, 2), 1))
    assert not there.mask().any()
    assert there.steps == ()

    with open_export(bright_export, threads=1) as here:
        here.set_image(scan())
        here.click((20, 22, 15))
        here.click((3, 3, 3), positive=False)
        step = there.add(Point((20, 22, 15), 1), Point((3, 3, 3), 0)).step
        assert np.array_equal(here.labels(), there.labels())
        assert untimed([step]) == untimed(there.steps) == untimed(here.steps[1:])  # of the first one nobody told
        check_same(here.undo(), there.undo())
        check_same(here.redo(), there.redo())
        check_same(here.undo(), there.undo())
        check_same(here.undo(), there.undo())
        check_same(here.redo(), there.redo())


def test_steps_are_taken_back_one_by_one_where_several_came_at_once(bright_export, connected):
    _, there = connected(bright_export)
    there.set_image(scan())
    first = there.add(Point((20, 22, 15), 1)).step
    last = there.add(Point((3, 3, 3), 0), Point((20, 20, 15), 1)).step

    assert there.steps == (first, last)
    there.undo()
    assert there.steps == (first,)
    there.undo()
    assert there.steps == (first,)
    there.undo()
    assert there.steps == ()
    for _ in range(3):
        there.redo()
    assert there.steps == (first, last)


def test_what_only_a_folders_session_does_is_refused(bright_slices, connected):
    _, there = connected(bright_slices)
    there.set_image(scan())

    with pytest.raises(PromptError, match="a server does not do it"):
        there.add(Point((20, 22, 15), 1), refine=True)
    with pytest.raises(PromptError, match="a server sends masks and no logits; open the export folder instead"):
        there.logits()


# --- Updates ---


def test_earlier_updates_stay_what_they_were(bright_export, connected):
    _, there = connected(bright_export)
    there.set_image(scan())
    first = there.click((20, 22, 15))
    seen = first.labels.copy()
    unseen = there.click((3, 3, 3))
    emptied = there.reset()
    again = there.click((20, 22, 15))

    assert np.array_equal(first.labels, seen)
    assert not emptied.mask.any()
    assert np.array_equal(again.labels, seen)
    with open_export(bright_export, threads=1) as here:
        here.set_image(scan())
        here.click((20, 22, 15))
        assert np.array_equal(here.click((3, 3, 3)).labels, unseen.labels)  # looked at after all that followed


def test_what_a_caller_does_to_a_mask_stays_with_him(bright_export, connected):
    _, there = connected(bright_export)
    there.set_image(scan())
    update = there.click((20, 22, 15))
    expected = update.labels.copy()

    there.labels()[:] = 7
    there.mask()[:] = True
    with pytest.raises(ValueError, match="read-only"):
        update.labels[:] = 7
    assert np.array_equal(there.labels(), expected)


def test_labels_that_do_not_fit_their_box_are_refused(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    right = transport.call
    transport.call = lambda inputs, timeout: {**right(inputs, timeout), wire.CHANGED: np.zeros((1, 2, 3), np.uint8)}

    with pytest.raises(TensorMismatchError, match="same version"):
        there.click((20, 22, 15))
    transport.call = right
    assert there.mask().any()  # it happened, whatever the answer was


def test_a_click_whose_answer_lacks_a_tensor_is_looked_into(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    right = transport.call
    transport.call = lambda inputs, timeout: {wire.ANSWER: right(inputs, timeout)[wire.ANSWER]}
    with pytest.raises(TensorMismatchError, match="no tensor 'changed'"):
        there.click((20, 22, 15))
    transport.call = right

    assert there.mask().any()
    assert len(there.steps) == transport.host.counters.clicks == 1


@pytest.mark.parametrize("folder", ["bright_export", "bright_slices"])
def test_labels_of_an_update_can_not_be_written_to_here_or_there(request, connected, folder):
    export = request.getfixturevalue(folder)
    _, there = connected(export)

    with open_export(export, threads=1) as here:
        for session in (here, there):
            session.set_image(scan())
            for update in (session.last_update(), session.click((20, 22, 15))):
                with pytest.raises(ValueError, match="read-only"):
                    update.labels[:] = 7
            session.labels()[:] = 7  # is the caller's own


# --- Lost and late answers ---


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_connection_clicks_once(bright_export, connected, when):
    transport, there = connected(bright_export)
    there.set_image(scan())
    for _ in range(3):
        transport.spoil(LOST, when)

    there.click((20, 22, 15))

    assert transport.asked[2:] == ["click"] * 4
    assert transport.host.counters.clicks == 1
    assert len(there.steps) == 1
    assert there.mask().any()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_connection_opens_once(bright_export, connected, when):
    transport, there = connected(bright_export)
    for _ in range(2):
        transport.spoil(LOST, when)
        there.set_image(scan())

    assert there.click((20, 22, 15)).mask.any()
    assert transport.asked.count("open") == 4
    assert transport.host.counters.opened == 2
    assert len(transport.host._held) == 1


def test_a_connection_lost_for_good_ends_within_the_time(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    begun = there._exchange._clock()
    for _ in range(100):
        transport.spoil(LOST, "before")

    with pytest.raises(
        ServerUnreachable, match=r"can't be reached \(reset\), tried \d+ times; check the address"
    ) as raised:
        there.click((20, 22, 15))

    assert type(raised.value) is ServerUnreachable
    assert there._exchange._clock() - begun <= 7.0
    assert transport.timeouts[2] == 7.0
    assert all(0 < timeout <= 7.0 for timeout in transport.timeouts)
    transport.plan.clear()
    assert there.click((20, 22, 15)).mask.any()  # it came back


def test_a_server_that_never_answered_is_given_up_soon(bright_export, serve, wired):
    transport, clock = wired(serve(bright_export)), Time()
    for _ in range(100):
        transport.spoil(LOST, "before")

    with pytest.raises(ServerUnreachable, match="sam-serve start"):
        RemoteSession(transport, ADDRESS, clock=clock, sleep=clock.sleep)
    assert clock.now <= 5.0


@pytest.mark.parametrize("when", ["before", "after"])
def test_after_a_late_answer_the_next_call_asks_what_happened(bright_export, connected, when):
    transport, there = connected(bright_export)
    there.set_image(scan())
    there.click((20, 22, 15))
    transport.spoil(LATE, when)

    with pytest.raises(ServerTimeout):
        there.click((3, 3, 3), positive=False)
    there.click((20, 20, 15))

    happened = when == "after"
    assert transport.asked[3:] == ["click", "state", *(["click"] if happened else []), "click"]
    assert transport.host.counters.clicks == (3 if happened else 2)
    assert [step.number for step in there.steps] == ([1, 2, 3] if happened else [1, 2])
    with open_export(bright_export, threads=1) as here:
        here.set_image(scan())
        here.click((20, 22, 15))
        if happened:
            here.click((3, 3, 3), positive=False)
        here.click((20, 20, 15))
        assert np.array_equal(here.labels(), there.labels())
        check_same(here.undo(), there.undo())


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_same_click_after_a_late_answer_is_another_try(bright_export, connected, when):
    transport, there = connected(bright_export)
    there.set_image(scan())
    transport.spoil(LATE, when)

    with pytest.raises(ServerTimeout):
        there.click((20, 22, 15))
    update = there.click((20, 22, 15))

    assert transport.host.counters.clicks == 1
    assert len(there.steps) == 1
    assert update.mask.any()


def test_the_mask_after_a_late_answer_is_the_servers(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    transport.spoil(LATE, "after")
    with pytest.raises(ServerTimeout):
        there.click((20, 22, 15))

    assert there.mask().any()
    assert len(there.steps) == 1


def test_late_undo_and_redo_happen_once(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    there.click((20, 22, 15))
    there.click((20, 20, 15))
    for call, left in (("undo", 1), ("redo", 2)):
        transport.spoil(LATE, "after")
        with pytest.raises(ServerTimeout):
            getattr(there, call)()
        there.last_update()
        assert len(there.steps) == left


@pytest.fixture
def hold_back():
    """Return a function that has the next request wait on the server, its sender without an answer, until the server
    answered a request of the kind `until`.
    """

    def start(transport, until):
        right, waiting = transport.call, []

        def call(inputs, timeout):
            if not waiting:
                waiting.append(inputs)
                raise LATE
            answer = right(inputs, timeout)
            if transport.asked[-1] == until:
                transport.call = right
                right(waiting[0], timeout)
            return answer

        transport.call = call

    return start


@pytest.mark.parametrize("again", [False, True])
def test_a_click_that_waits_on_the_server_when_the_next_one_asks_happens_once(
    bright_export, connected, hold_back, again
):
    transport, there = connected(bright_export)
    there.set_image(scan())
    hold_back(transport, until="state")
    with pytest.raises(ServerTimeout):
        there.click((20, 22, 15))
    there.click((20, 22, 15) if again else (3, 3, 3), positive=again)

    with open_export(bright_export, threads=1) as here:
        here.set_image(scan())
        here.click((20, 22, 15))
        if not again:
            here.click((3, 3, 3), positive=False)
        check_same(here.last_update(), there.last_update())
        assert untimed(here.steps) == untimed(there.steps)
        check_same(here.undo(), there.undo())
    assert transport.host.counters.clicks == (1 if again else 2)


def test_a_mask_shows_a_click_as_soon_as_it_happened(bright_export, connected, hold_back):
    transport, there = connected(bright_export)
    there.set_image(scan())
    hold_back(transport, until="state")
    with pytest.raises(ServerTimeout):
        there.click((20, 22, 15))

    assert not there.mask().any()
    assert there.mask().any()
    assert len(there.steps) == 1
    asked = len(transport.asked)
    there.mask()
    assert len(transport.asked) == asked


def test_several_clicks_without_an_answer_leave_the_one_that_happened(bright_export, connected, hold_back):
    transport, there = connected(bright_export)
    there.set_image(scan())
    hold_back(transport, until="state")
    with pytest.raises(ServerTimeout):
        there.click((20, 22, 15))
    transport.spoil(None, "")  # of its state
    transport.spoil(None, "")  # the click that waited
    transport.spoil(LATE, "before")
    with pytest.raises(ServerTimeout):
        there.click((3, 3, 3), positive=False)

    assert there.mask().any()
    assert [step.number for step in there.steps] == [1]
    there.click((20, 20, 15))
    assert transport.host.counters.clicks == 2


def test_another_program_is_told_of_once_and_what_it_did_is_taken_over(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    there.click((20, 22, 15))
    (token,) = transport.host._held
    click = {"op": "click", "turn": 2, "point": [3, 3, 3], "label": 0}
    transport.host.answer(read_request(click), token, {})

    with open_export(bright_export, threads=1) as here:
        here.set_image(scan())
        here.click((20, 22, 15))
        here.click((3, 3, 3), positive=False)
        with pytest.raises(WrongTurn, match="one program at a time"):
            there.click((20, 20, 15))
        check_same(here.last_update(), there.last_update())
        assert there.origins == here.origins
        assert there.steps == ()
        check_same(here.undo(), there.undo())
        check_same(here.redo(), there.redo())
        check_same(here.click((20, 20, 15)), there.click((20, 20, 15)))
        assert untimed(there.steps) == untimed(here.steps[2:])
        check_same(here.undo(), there.undo())
        check_same(here.undo(), there.undo())
        check_same(here.redo(), there.redo())
        assert there.steps == ()
        check_same(here.redo(), there.redo())
        assert untimed(there.steps) == untimed(here.steps[2:])


def test_deciding_on_a_scan_has_more_time_unless_the_user_says(bright_structures, connected):
    for timeout, of_a_call, of_deciding in ((None, 120.0, 3600.0), (7.0, 7.0, 7.0)):
        transport, there = connected(bright_structures, timeout=timeout)
        there.set_image(scan())
        times = dict(zip(transport.asked, transport.timeouts, strict=True))
        assert times == {"describe": of_a_call, "open": of_a_call, "segment_automatically": of_deciding}

        for _ in range(1000):
            transport.spoil(LOST, "before")
        begun = there._exchange._clock()
        with pytest.raises(ServerUnreachable):
            there.segment_automatically()
        assert there._exchange._clock() - begun <= of_a_call
        transport.plan.clear()


# --- Errors of the server ---


def test_too_many_sessions_are_told_apart(bright_export, connected, wired):
    transport, there = connected(bright_export, limits={"max_sessions": 1})
    there.set_image(scan())
    there.set_image(scan())  # the one before makes room
    with RemoteSession(wired(transport.host), ADDRESS) as other, pytest.raises(AtCapacity, match="close one"):
        other.set_image(scan())


def test_a_server_that_forgot_the_session_says_why_and_takes_a_new_one(bright_export, connected, serve):
    transport, there = connected(bright_export, restore=False)
    there.set_image(scan())
    transport.host = serve(bright_export)

    for _ in range(2):
        with pytest.raises(ServerRestarted, match="open the scan again"):
            there.click((20, 22, 15))
    there.set_image(scan())
    assert there.click((20, 22, 15)).mask.any()


def test_an_expired_session_is_told_apart(bright_export, connected):
    transport, there = connected(bright_export, restore=False, limits={"heartbeat_seconds": 600})
    there.set_image(scan())
    now = transport.host._clock()
    transport.host._clock = lambda: now + 601

    with pytest.raises(SessionExpired, match="nobody heard of this session's client for 600 s"):
        there.click((20, 22, 15))


def test_nothing_works_after_close(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    there.close()
    there.close()

    assert not transport.host._held
    assert not transport.is_open
    for call in (lambda: there.click((20, 22, 15)), lambda: there.set_image(scan()), there.undo, there.mask):
        with pytest.raises(ServingError, match="session is closed"):
            call()


def test_closing_does_not_wait_for_a_server_that_is_gone(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    transport.spoil(LOST, "before")
    there.close()

    assert transport.asked[-2:] == ["open", "close"]
    assert not transport.is_open


@pytest.mark.parametrize("has_scan", [False, True])
def test_closing_after_a_late_opening_lets_go(bright_export, connected, has_scan):
    transport, there = connected(bright_export)
    if has_scan:
        there.set_image(scan())
    transport.spoil(LATE, "after")
    with pytest.raises(ServerTimeout):
        there.set_image(scan())
    there.close()

    assert transport.asked[-2:] == (["close", "close"] if has_scan else ["open", "close"])
    assert max(transport.timeouts[3 if has_scan else 2 :], default=0) <= 5.0
    assert not transport.host._held
    assert not transport.is_open


def test_closing_lets_go_whatever_comes_back(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    transport.call = lambda inputs, timeout: {}
    there.close()
    assert not transport.is_open

    transport, there = connected(bright_export)
    there.set_image(scan())
    transport.spoil(KeyboardInterrupt(), "before")
    with pytest.raises(KeyboardInterrupt):
        there.close()
    assert not transport.is_open


def test_a_token_is_not_shown(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    (token,) = transport.host._held

    assert token not in repr(vars(there))


def test_calls_before_a_scan_say_what_is_missing(bright_export, connected, wired):
    _, there = connected(bright_export)

    for call in (lambda: there.click((1, 2, 3)), there.undo, there.mask, there.last_update):
        with pytest.raises(PromptError, match="no image is set"):
            call()
    for timeout in (0, -1, "5", float("nan"), float("inf"), True):
        with pytest.raises(OptionError, match=r"timeout is .*, needed is .* above 0 \[s\]; e\.g\. timeout=120$"):
            RemoteSession(wired(None), ADDRESS, timeout=timeout)


def test_a_description_of_another_kind_names_both_versions(wired):
    transport = wired(None)
    transport.call = lambda inputs, timeout: {wire.ANSWER: wire.encode({"samkit": "9"}), wire.CHANGED: np.zeros(0)}

    with pytest.raises(ServingError, match="install the same version"):
        RemoteSession(transport, ADDRESS)


@pytest.mark.parametrize(("spoken", "named"), [({"protocol": 9}, "protocol 9"), ({}, "no numbered protocol")])
def test_a_server_of_another_protocol_is_let_alone_at_once(bright_export, serve, wired, spoken, named):
    transport = wired(serve(bright_export))
    right = transport.call

    def other(inputs, timeout):
        answer = right(inputs, timeout)
        told = {**wire.decode(answer[wire.ANSWER], wire.ANSWER), "samkit": "9.1"}
        del told["protocol"]
        return {**answer, wire.ANSWER: wire.encode({**told, **spoken})}

    transport.call = other
    with pytest.raises(
        ServingError, match=rf"localhost:8001 runs samkit 9\.1 and speaks {named}, and samkit .* speaks "
    ):
        RemoteSession(transport, ADDRESS)
    assert transport.asked == ["describe"]


def test_a_client_of_another_protocol_hears_the_servers_sentence(bright_export, connected, monkeypatch):
    transport, there = connected(bright_export)
    monkeypatch.setattr(remote_session, "PROTOCOL", 9)
    with pytest.raises(ServingError, match=r"this client speaks protocol 9, and the server's samkit .* speaks 2; inst"):
        RemoteSession(transport, ADDRESS)
    there._asked = replace(there._asked, protocol=9)
    with pytest.raises(ServingError, match="this client speaks protocol 9"):
        there.set_image(scan())
    assert not transport.host._held


def test_options_of_a_refusal_arrive_as_data(bright_export, connected):
    _, there = connected(bright_export, plane="axial")
    with pytest.raises(OptionError) as raised:
        there.set_image(scan())
    assert raised.value.options == ("plane",)
    assert raised.value.sentence(lambda option: f"--{option}").startswith("--plane is for methods of slices")


# --- Sessions that the server forgot ---


def forget(transport, serve, folder, **limits):
    """Start the server again: it knows no session of before."""
    transport.host = serve(folder, **limits)


@pytest.fixture
def alone(bright_export):
    """A session on the folder, on the scan."""
    with open_export(bright_export, threads=1) as session:
        session.set_image(scan())
        yield session


HISTORY = [
    ("click", (20, 22, 15)),
    ("add", Point((3, 3, 3), 0), Point((20, 20, 15), 1)),
    ("click", (21, 22, 16)),
    ("undo",),
    ("undo",),
]
"""Two clicks that came at once, of which one is undone, and one after them that is, too."""


def test_session_of_a_server_that_was_started_again_goes_on_with_its_history(bright_export, connected, serve, alone):
    transport, there = connected(bright_export)
    there.set_image(scan())
    for act, *words in HISTORY:
        getattr(alone, act)(*words)
        assert not getattr(there, act)(*words).restored

    for act in (("redo",), ("redo",), ("undo",), ("undo",), ("undo",), ("undo",), ("redo",), ("click", (20, 24, 15))):
        forget(transport, serve, bright_export)
        here, update = (getattr(session, act[0])(*act[1:]) for session in (alone, there))
        assert update.restored
        check_same(here, update)
        check_same(alone.last_update(), there.last_update())
        assert not there.last_update().restored  # told once
    assert untimed(there.steps) == untimed(alone.steps)
    assert len(transport.host._held) == 1


def test_prompts_on_slices_are_sent_again(bright_slices, connected, serve):
    transport, there = connected(bright_slices, plane="coronal", intensities=(0.0, 255.0))
    with open_export(bright_slices, threads=1, plane="coronal", intensities=(0.0, 255.0)) as here:
        for session in (here, there):
            session.set_image(scan())
            session.box((10, 22, 5), (30, 22, 25))
            session.add(Box((10, 20, 5), (30, 20, 25)), Point((20, 24, 15), 1))
            session.propagate()
            session.undo()
        forget(transport, serve, bright_slices)

        check_same(here.redo(), there.redo())
        assert transport.asked[-7:] == ["describe", "open", "box", "add", "propagate", "undo", "redo"]
        assert untimed(here.steps)[-1] == untimed(there.steps)[-1]
        assert here.prompted == there.prompted


def test_pictures_and_what_was_decided_are_sent_again(bright_structures, bright_slices, connected, serve):
    transport, there = connected(bright_slices)
    there.set_image(scan().array[:, :, 15].astype(np.float32) - 10)
    before = there.box((10, 8), (30, 33))
    forget(transport, serve, bright_slices)
    there.undo()
    assert np.array_equal(there.redo().labels, before.labels)

    transport, there = connected(bright_structures)
    before = there.set_image({name: scan() for name in there.sequences} if there.sequences else scan())
    forget(transport, serve, bright_structures)
    update = there.undo()
    assert update.restored
    assert not update.mask.any()
    assert np.array_equal(there.redo().labels, before.labels)
    assert before.mask.any()


def test_after_a_reset_only_what_follows_is_sent_again(bright_export, connected, serve, alone):
    transport, there = connected(bright_export)
    there.set_image(scan())
    there.click((3, 3, 3), positive=False)
    there.reset()
    there.click((20, 22, 15))
    forget(transport, serve, bright_export)
    del transport.asked[:]

    alone.click((20, 22, 15))
    check_same(alone.click((20, 20, 15)), there.click((20, 20, 15)))
    assert transport.asked == ["click", "describe", "open", "click", "click"]


def test_expired_session_goes_on(bright_export, connected, alone):
    transport, there = connected(bright_export, limits={"heartbeat_seconds": 600})
    there.set_image(scan())
    there.click((20, 22, 15))
    now = transport.host._clock()
    transport.host._clock = lambda: now + 601

    alone.click((20, 22, 15))
    update = there.click((20, 20, 15))
    assert update.restored
    check_same(alone.click((20, 20, 15)), update)
    assert transport.host.counters.silent == 1


def test_check_alone_restores_and_the_next_update_says_so(bright_export, connected, serve):
    transport, there = connected(bright_export)
    there.set_image(scan())
    forget(transport, serve, bright_export)
    there.check(Point((20, 22, 15), 1))
    assert there.click((20, 22, 15)).restored


@pytest.mark.parametrize("when", ["before", "after"])
def test_click_that_ran_when_the_server_died_counts_once(bright_export, connected, serve, alone, when):
    transport, there = connected(bright_export)
    there.set_image(scan())
    there.click((20, 22, 15))
    right, died = transport.call, []

    def dying(inputs, timeout):
        if wire.decode(inputs[wire.REQUEST], wire.REQUEST)["op"] == "click" and not died:
            died.append(True)
            transport.spoil(LOST, when)
            try:
                return right(inputs, timeout)
            finally:
                forget(transport, serve, bright_export)
        return right(inputs, timeout)

    transport.call = dying
    alone.click((20, 22, 15))
    check_same(alone.click((3, 3, 3), False), there.click((3, 3, 3), False))
    assert transport.host.counters.clicks == 2
    assert [step.number for step in there.steps] == [1, 2]


def test_click_without_an_answer_of_a_server_that_died_is_done_once_when_asked_again(bright_export, connected, serve):
    transport, there = connected(bright_export)
    there.set_image(scan())
    transport.spoil(LATE, "after")
    with pytest.raises(ServerTimeout):
        there.click((20, 22, 15))
    forget(transport, serve, bright_export)

    assert there.click((20, 22, 15)).restored
    assert transport.host.counters.clicks == 1
    assert [step.number for step in there.steps] == [1]


def test_server_that_dies_while_a_session_is_restored_restores_it_after_that(bright_export, connected, serve, alone):
    transport, there = connected(bright_export)
    there.set_image(scan())
    there.click((20, 22, 15))
    there.click((20, 20, 15))
    forget(transport, serve, bright_export)
    right, dies = transport.call, ["open", "click", "click"]

    def dying(inputs, timeout):
        answer = right(inputs, timeout)
        if dies and wire.decode(inputs[wire.REQUEST], wire.REQUEST)["op"] == dies[0]:
            dies.pop(0)
            forget(transport, serve, bright_export)
        return answer

    transport.call = dying
    for place in ((20, 22, 15), (20, 20, 15)):
        alone.click(place)
    check_same(alone.click((3, 3, 3), False), there.click((3, 3, 3), False))
    assert not dies
    assert len(transport.host._held) == 1


def test_gateway_that_changes_nodes_for_ever_is_told_of(bright_export, connected, serve):
    transport, there = connected(bright_export)
    there.set_image(scan())
    nodes, right = [serve(bright_export) for _ in range(2)], transport.call

    def changing(inputs, timeout):
        transport.host = nodes[len(transport.asked) % 2]
        return right(inputs, timeout)

    there.click((20, 22, 15))
    transport.call = changing
    with pytest.raises(ServerRestarted):
        there.click((20, 20, 15))


def test_server_that_is_away_is_waited_for_within_the_time(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    for error in [ServerRestarting("the process died; try again in 10 s")] * 3 + [LOST] * 3:
        transport.spoil(error, "before")
    assert there.click((20, 22, 15)).mask.any()
    assert transport.host.counters.clicks == 1

    for _ in range(100):
        transport.spoil(ServerRestarting("the process died; try again in 10 s"), "before")
    begun = there._clock()
    with pytest.raises(ServerRestarting, match="try again in 10 s"):
        there.click((20, 20, 15))
    assert there._clock() - begun <= 7.0


def test_all_of_a_restoration_is_within_the_time_of_the_call(bright_export, connected, serve):
    transport, there = connected(bright_export)
    there.set_image(scan())
    for _ in range(3):
        there.click((20, 22, 15))
    forget(transport, serve, bright_export)
    right, begun = transport.call, there._clock()

    def slow(inputs, timeout):
        there._clock.now += 2.0
        return right(inputs, timeout)

    transport.call = slow
    with pytest.raises(ServerTimeout, match="was over before click was sent to"):
        there.click((20, 20, 15))
    assert there._clock() - begun <= 10.0  # the one that was on its way, and the farewell
    assert not transport.host._held  # half a session is let go

    transport.call = right
    assert there.click((20, 20, 15)).restored
    assert len(there.steps) == 4


def test_without_restoring_what_is_away_is_told_of_with_seconds(bright_export, connected):
    transport, there = connected(bright_export, restore=False)
    there.set_image(scan())
    transport.spoil(ServerRestarting("the process died; try again in 3 s", seconds=3.0), "before")
    with pytest.raises(ServerRestarting) as raised:
        there.click((20, 22, 15))
    assert raised.value.seconds == 3.0

    for _ in range(100):
        transport.spoil(LOST, "before")
    with pytest.raises(ServerRestarting, match=r"can't be reached \(reset\), tried .* try again in 10 s") as raised:
        there.click((20, 22, 15))
    assert raised.value.seconds == 10.0
    transport.plan.clear()
    assert there.click((20, 22, 15)).mask.any()


def click_by_another(transport, there):
    """Have another program use the session, which a client hears of with its next click."""
    (token,) = transport.host._held
    transport.host.answer(read_request({"op": "click", "turn": 1, "point": [3, 3, 3], "label": 0}), token, {})
    with pytest.raises(WrongTurn):
        there.click((20, 22, 15))


def test_history_that_another_program_added_to_is_not_made_up(bright_export, connected, serve):
    transport, there = connected(bright_export)
    there.set_image(scan())
    click_by_another(transport, there)
    there.click((20, 22, 15))
    forget(transport, serve, bright_export)
    with pytest.raises(ServerRestarted):
        there.click((20, 20, 15))


def test_history_is_known_again_from_a_reset_on(bright_export, connected, serve):
    transport, there = connected(bright_export)
    there.set_image(scan())
    click_by_another(transport, there)
    there.reset()
    forget(transport, serve, bright_export)
    assert there.click((20, 20, 15)).restored


def test_server_with_another_export_does_not_go_on_with_a_session(bright_export, bright_slices, connected, serve):
    transport, there = connected(bright_export)
    there.set_image(scan())
    forget(transport, serve, bright_slices)
    with pytest.raises(ServingError, match="serves another digest than when this session was opened"):
        there.click((20, 22, 15))
    assert not transport.host._held


def test_server_that_stops_is_told_of_at_once(bright_export, connected):
    transport, there = connected(bright_export)
    there.set_image(scan())
    transport.spoil(ServerStopping("this server is being stopped; try again at another server"), "before")
    with pytest.raises(ServerStopping):
        there.click((20, 22, 15))
    assert transport.asked[-1] == "click"


def test_mask_that_is_not_the_same_after_all_is_told_of(bright_export, connected, serve, caplog):
    transport, there = connected(bright_export)
    there.set_image(scan())
    there.click((20, 22, 15))
    forget(transport, serve, bright_export)
    there._set.mask.update.labels.setflags(write=True)
    there._set.mask.update.labels[0, 0, 0] = 1

    there.check(Point((20, 22, 15), 1))
    assert "the mask after the same prompts is not the same" in caplog.text


# --- Places that nobody holds ---


@pytest.mark.parametrize("when", ["before", "after"])
def test_opening_that_got_no_answer_in_time_holds_no_place(bright_export, connected, when):
    transport, there = connected(bright_export, limits={"max_sessions": 2})
    for _ in range(3):
        transport.spoil(LATE, when)
        with pytest.raises(ServerTimeout):
            there.set_image(scan())
        assert not transport.host._held
    there.set_image(scan())
    assert there.click((20, 22, 15)).mask.any()

    transport.spoil(LATE, when)
    with pytest.raises(ServerTimeout):
        there.set_image(scan())
    assert there.click((20, 20, 15)).mask.any()  # of the scan before
    assert [step.number for step in there.steps] == [1, 2]


def test_heart_beats_for_the_present_session_until_it_is_closed(bright_export, connected, monkeypatch):
    begun = []

    class Heart:
        def __init__(self, exchange, token, seconds):
            begun.append((token, seconds))
            self.stop = lambda: begun.remove((token, seconds))

    monkeypatch.setattr(remote_session, "Heartbeat", Heart)
    transport, there = connected(bright_export, limits={"heartbeat_seconds": 30})
    for _ in range(2):
        there.set_image(scan())
        assert begun == [(token, 10.0) for token in transport.host._held]
    transport.host.drop_idle()
    there.close()
    assert not begun

    transport, there = connected(bright_export, limits={"heartbeat_seconds": 30})
    there.set_image(scan())
    assert len(begun) == 1
    hearts = there._hearts
    remote_session._stop(hearts)  # what happens where nobody holds the session any more
    assert not begun


# --- Opening ---


@pytest.mark.parametrize("option", [{"backend": "torch"}, {"device": "cpu"}, {"precision": "fp32"}, {"threads": 1}])
def test_what_the_server_decides_is_refused_beside_an_address(option):
    with pytest.raises(OptionError, match=f"{next(iter(option))} can't be chosen for .*, the server decides"):
        samkit.runtime.open_session("triton://localhost:8001/m-sam", **option)


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(OptionError) as raised:
        samkit.runtime.open_session("triton://me:secret@localhost:8001/m-sam", device="cpu")
    assert "secret" not in str(raised.value)


def test_one_function_opens_folders_and_addresses(bright_export, serve, wired, monkeypatch):
    transport = wired(serve(bright_export))
    monkeypatch.setattr(remote_session, "connect", lambda address: transport)

    with samkit.runtime.open_session(str(bright_export), threads=1) as here:
        assert isinstance(here, samkit.runtime.Session)
    with samkit.runtime.open_session("triton+http://localhost:8000/bright", timeout=7.0) as there:
        assert isinstance(there, samkit.runtime.RemoteSession)
        there.set_image(scan())
    *others, closing = transport.timeouts
    assert all(5.0 < timeout <= 7.0 for timeout in others[:1])
    assert all(0.0 < timeout <= 7.0 for timeout in others)
    assert closing == 5.0  # it waits less


def test_a_connection_is_let_go_where_opening_fails(wired, monkeypatch):
    transport = wired(None)
    monkeypatch.setattr(remote_session, "connect", lambda address: transport)
    transport.spoil(AtCapacity("no room; wait"), "before")

    with pytest.raises(AtCapacity):
        samkit.runtime.open_session("triton://localhost:8001/m-sam")
    assert not transport.is_open
