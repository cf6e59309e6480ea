"""A server's sessions answer as each would alone, whatever others do, and say why when they can't."""

from __future__ import annotations

import gc
import json
import logging
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samkit.errors import (
    AtCapacity,
    GeometryError,
    InputRefused,
    OptionError,
    PromptError,
    SamkitError,
    ServerRestarted,
    ServingError,
    SessionExpired,
    TensorMismatchError,
    UnknownSession,
    WrongTurn,
)
from samkit.geometry import voxel_to_world
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point
from samkit.runtime.protocol.requests import ScanOptions
from samkit.triton_models.session_host import SessionHost
from support import stand_ins as the

KINDS = ("volume", "slices")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class User:
    """A client of a host: counts turns and puts the mask together from what changed."""

    def __init__(self, host, array, affine=None, **options):
        self.host = host
        tensors = {"volume_int16": array[None], "affine": np.eye(4) if affine is None else affine}
        self.opened, _ = the.ask(host, {"op": "open", **options}, None, tensors)
        self.token, self.turn = self.opened["token"], 0
        self.labels = np.zeros(array.shape, np.uint8)

    def ask(self, op, **words):
        answer, changed = the.ask(self.host, {"op": op, **words}, self.token, {})
        json.dumps(answer)
        assert changed.dtype == np.uint8
        return answer, changed

    def change(self, op, **words):
        answer, changed = self.ask(op, turn=self.turn + 1, **words)
        self.turn = answer["turn"]
        region = tuple(slice(*side) for side in answer["region"])
        assert changed.shape == self.labels[region].shape
        self.labels[region] = changed
        return answer

    def click(self, point, label=FOREGROUND, **words):
        return self.change("click", point=list(point), label=label, **words)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock):
    """Return a function that makes a host; its runners are its attribute `graphs`."""

    def make(kind="volume", **limits):
        graphs = the.runners(kind)
        host = SessionHost(the.served(kind, **limits), graphs, clock=clock)
        host.graphs, host.encoder = graphs, graphs["image_encoder"]
        return host

    return make


@pytest.fixture
def without_gc():
    """What is freed here is freed at once, not when a collector comes by."""
    gc.disable()
    yield
    gc.enable()


def steps_of(array, seed, count=10):
    """What a user does: clicks of both kinds, undo, redo, reset, in an order of chance that is always the same."""
    random = np.random.default_rng(seed)
    for number in range(count):
        act = str(random.choice(["on", "on", "off", "undo", "redo", "reset"], p=[0.3, 0.2, 0.2, 0.15, 0.1, 0.05]))
        place = the.bright_voxel(array, number + seed)
        if act == "off":
            place = [int(random.integers(0, side)) for side in array.shape]
        yield act, place


def apply_alone(session, act, place):
    if act in ("on", "off"):
        session.add(Point(tuple(place), FOREGROUND if act == "on" else BACKGROUND))
    else:
        getattr(session, act)()


def apply_served(user, act, place):
    if act in ("on", "off"):
        user.click(place, FOREGROUND if act == "on" else BACKGROUND)
    else:
        user.change(act)


def outcome(apply, *words):
    """The class and text of the error that `apply` raises, None without one."""
    try:
        apply(*words)
    except SamkitError as error:
        return type(error), str(error)
    return None


def expected_masks(kind, array, seed):
    session, masks = the.alone(kind, array), []
    for act, place in steps_of(array, seed):
        failed = outcome(apply_alone, session, act, place)
        masks.append((failed, session.labels()))
    return masks


# --- Whose mask it is ---


@pytest.mark.parametrize("kind", KINDS)
def test_interleaved_sessions_each_answer_as_alone(kind, make):
    scans = [the.scan(seed) for seed in range(16)]
    expected = [expected_masks(kind, array, seed) for seed, array in enumerate(scans)]
    host = make(kind)
    users = [User(host, array) for array in scans]
    waiting = [list(zip(steps_of(array, seed), expected[seed], strict=True)) for seed, array in enumerate(scans)]
    order = np.random.default_rng(7).permutation(np.repeat(np.arange(16), 10))
    for number in order:
        (act, place), (failed, labels) = waiting[number].pop(0)
        assert outcome(apply_served, users[number], act, place) == failed
        assert np.array_equal(users[number].labels, labels)
    assert not any(waiting)
    assert sum(labels.any() for one in expected for _, labels in one) > 80  # the masks are worth comparing


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_of_threads_each_answer_as_alone(kind, make):
    scans = [the.scan(seed % 3) for seed in range(6)]  # some share their embeddings
    host, wrong = make(kind, cache_bytes=6000), []

    def use(seed):
        try:
            user = User(host, scans[seed])
            for (act, place), (failed, labels) in zip(
                steps_of(scans[seed], seed), expected_masks(kind, scans[seed], seed), strict=True
            ):
                assert outcome(apply_served, user, act, place) == failed
                assert np.array_equal(user.labels, labels)
            user.ask("close")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert host.embeddings.nbytes == 0


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_the_whole_mask(kind, make):
    array = the.scan(3)
    user = User(make(kind), array)
    for number in range(3):
        user.click(the.bright_voxel(array, number))
    answer, labels = user.ask("state")
    whole = np.zeros(array.shape, np.uint8)
    whole[tuple(slice(*side) for side in answer["region"])] = labels

    assert np.array_equal(whole, user.labels)
    assert (answer["turn"], answer["step"]) == (3, None)
    assert answer["volume_ml"] == pytest.approx(np.count_nonzero(whole) / 1000)


@pytest.mark.parametrize(("kind", "keys"), [("volume", ("spacing",)), ("slices", ("plane",))])
def test_opening_tells_what_will_be_done(kind, keys, make):
    opened = User(make(kind), the.scan()).opened

    assert (opened["turn"], opened["shape"]) == (0, list(the.SHAPE))
    assert all(opened[key] is not None for key in keys)


def test_descriptions_need_no_session(make):
    for kind in ("volume", "slices"):
        described, _ = the.ask(make(kind), {"op": "describe"}, None, {})
        assert described["kind"] == kind
        json.dumps(described)


@pytest.mark.parametrize("affine", [the.oblique(), the.FLIPPED])
def test_millimetres_are_the_scans_own_even_when_the_requests_memory_is_used_again(affine, make):
    array, sent = the.scan(1), affine.copy()
    index = the.bright_voxel(array)
    (world,) = voxel_to_world(affine, np.array([index], float))
    user = User(make(), array, sent)
    sent[:] = 0  # the next request lies in the same memory
    user.click(world, world=True)
    expected = the.alone("volume", array, affine)
    expected.add(Point(tuple(index), FOREGROUND))

    assert np.array_equal(user.labels, expected.labels())
    assert user.labels.any()


def test_boxes_in_millimetres(make):
    array, affine = the.scan(1), the.FLIPPED
    first, last = (4.0, 5.0, 20.0), (30.0, 28.0, 20.0)
    corners = voxel_to_world(affine, np.array([first, last]))
    user = User(make("slices"), array, affine)
    user.change("box", box=[*corners[0], *corners[1]], world=True)
    expected = the.alone("slices", array, affine)
    expected.add(Box(first, last))

    assert np.array_equal(user.labels, expected.labels())


def test_pictures_have_two_axes_and_a_third_of_one(make):
    picture = the.scan(2)[:, :, 20].astype(np.float32)
    host = make("slices")
    opened, _ = the.ask(host, {"op": "open", "picture": True}, None, {"volume": picture[None, ..., None]})
    y, x = np.argwhere(picture > 100)[0]
    request = {"op": "click", "turn": 1, "point": [int(x), int(y)], "label": 1}
    answer, changed = the.ask(host, request, opened["token"], {})
    session = the.served("slices").session(the.runners("slices"), ScanOptions())
    session.set_image(picture)
    expected = session.click((x, y))

    assert opened["shape"] == list(picture.shape)
    assert answer["region"] == [*([side.start, side.stop] for side in expected.changed), [0, 1]]
    assert np.array_equal(changed[..., 0], expected.change[1])
    assert answer["volume_ml"] is None
    the.ask(host, {"op": "undo", "turn": 2}, opened["token"], {})
    nothing, labels = the.ask(host, {"op": "state"}, opened["token"], {})
    assert [last - first for first, last in nothing["region"]] == list(labels.shape) == [0, 0, 1]
    with pytest.raises(PromptError, match="a picture has none"):
        the.ask(host, {**request, "turn": 3, "world": True}, opened["token"], {})


def test_slab_is_no_picture(make):
    with pytest.raises(InputRefused, match="send a picture, or a scan without picture"):
        the.ask(make("slices"), {"op": "open", "picture": True}, None, {"volume_int16": the.scan()[None]})


# --- Turns ---


@pytest.mark.parametrize("kind", KINDS)
def test_same_turn_again_is_answered_and_happens_once(kind, make):
    array, host = the.scan(2), make(kind)
    user = User(host, array)
    request = {"op": "click", "turn": 1, "point": the.bright_voxel(array), "label": 1}
    first = the.ask(host, request, user.token, {})
    again = the.ask(host, dict(reversed(request.items())), user.token, {})

    assert again[0] == first[0]
    assert np.array_equal(again[1], first[1])
    assert host.counters.clicks == 1
    assert user.ask("state")[0]["turn"] == 1


@pytest.mark.parametrize("turn", [0, 1, 3, None, "2", -1, [2]])
def test_wrong_turn_changes_nothing(turn, make):
    array = the.scan(2)
    user = User(make(), array)
    user.click(the.bright_voxel(array))
    with pytest.raises(WrongTurn, match="the session's next one is 2"):
        user.ask("click", turn=turn, point=the.bright_voxel(array, 3), label=1)

    assert user.ask("state")[0]["turn"] == 1
    user.click(the.bright_voxel(array, 1))


@pytest.mark.parametrize(
    ("kind", "op", "words", "error"),
    [
        ("volume", "click", {"point": [40, 2, 2], "label": 1}, InputRefused),
        ("volume", "click", {"point": [2, 2], "label": 1}, PromptError),
        ("volume", "click", {"point": [2, 2, 2], "label": 2}, PromptError),
        ("volume", "click", {"point": [2, 2, 2]}, PromptError),
        ("volume", "click", {"point": [2, 2, 2], "label": 1, "structure": "liver"}, PromptError),
        ("volume", "click", {"point": [2, 2, 2], "label": 1, "world": "yes"}, PromptError),
        ("volume", "click", {}, PromptError),
        ("volume", "box", {"box": [1, 1, 1, 9, 9, 1]}, PromptError),
        ("volume", "segment_automatically", {}, PromptError),
        ("volume", "propagate", {}, PromptError),
        ("volume", "add", {"prompts": []}, PromptError),
        ("volume", "add", {}, PromptError),
        ("volume", "redo", {}, PromptError),
        ("slices", "segment_automatically", {}, PromptError),
        ("slices", "box", {"box": [1, 1, 1, 9, 9, 2]}, InputRefused),
        ("slices", "box", {"box": [1, 1, 9, 9]}, PromptError),
        ("slices", "add", {"prompts": []}, PromptError),
        ("slices", "add", {"prompts": "all"}, PromptError),
        ("slices", "redo", {}, PromptError),
    ],
)
def test_refused_call_changes_nothing_not_even_the_turn(kind, op, words, error, make):
    array = the.scan(2)
    user = User(make(kind), array)
    user.click(the.bright_voxel(array))
    with pytest.raises(error):
        user.change(op, **words)

    answer, labels = user.ask("state")
    assert answer["turn"] == 1
    assert np.array_equal(labels, user.labels[tuple(slice(*side) for side in answer["region"])])
    user.change("undo")
    assert not user.labels.any()


@pytest.mark.parametrize("kind", KINDS)
def test_several_prompts_are_one_request(kind, make):
    array = the.scan(5)
    places = [the.bright_voxel(array, number) for number in range(3)]
    user = User(make(kind), array)
    user.change("add", prompts=[{"point": place, "label": 1} for place in places])
    session = the.alone(kind, array)
    for place in places:
        session.add(Point(tuple(place), FOREGROUND))

    assert user.turn == 1
    assert np.array_equal(user.labels, session.labels())


@pytest.mark.parametrize("kind", KINDS)
def test_of_several_prompts_all_happen_or_none(kind, make):
    array = the.scan(5, (40, 36, 120))
    array[:, :, 60:] = 0  # air: refused when it is to be encoded, after the first prompt has gone through
    user = User(make(kind), array)
    user.click(the.bright_voxel(array))
    good = {"point": the.bright_voxel(array, 3), "label": 1}
    for bad in ([20, 20, 119], [20, 20, 120]):
        with pytest.raises(InputRefused):
            user.change("add", prompts=[good, {"point": bad, "label": 1}])
        answer, labels = user.ask("state")
        assert answer["turn"] == 1
        assert np.array_equal(labels, user.labels[tuple(slice(*side) for side in answer["region"])])
    user.change("add", prompts=[good])
    session = the.alone(kind, array)
    for number in (0, 3):
        session.add(Point(tuple(the.bright_voxel(array, number)), FOREGROUND))
    assert np.array_equal(user.labels, session.labels())


def test_prompts_that_were_refused_together_leave_nothing_to_redo(make):
    array = the.scan(5, (40, 36, 120))
    array[:, :, 60:] = 0
    user = User(make(), array)
    user.click(the.bright_voxel(array))
    good, air = ({"point": place, "label": 1} for place in (the.bright_voxel(array, 3), [20, 20, 119]))
    with pytest.raises(InputRefused):
        user.change("add", prompts=[good, air])
    with pytest.raises(PromptError, match="nothing to redo"):
        user.change("redo")


def test_check_raises_what_the_prompts_would_and_does_nothing(make):
    host = make("slices")
    user = User(host, the.scan())
    assert user.ask("check", prompts=[{"box": [1, 1, 1, 9, 9, 1]}])[0] == {}
    with pytest.raises(InputRefused, match="goes from k 1 to 2"):
        user.ask("check", prompts=[{"box": [1, 1, 1, 9, 9, 2]}])
    volume = User(make(), the.scan())
    with pytest.raises(InputRefused, match="lies outside the volume"):
        volume.ask("check", prompts=[{"point": [1, 1, 1], "label": 1}, {"point": [99, 1, 1], "label": 1}])

    assert user.ask("state")[0]["turn"] == 0
    assert host.encoder.calls == 0


def test_automatic_method_decides_and_slices_lead_on(make):
    array = the.scan(6)
    user, session = User(make("automatic"), array), the.alone("automatic", array)
    answer = user.change("segment_automatically")
    session.segment_automatically()
    assert np.array_equal(user.labels, session.labels())
    assert list(answer["step"]["slices"]) == list(range(44))
    _, _, k = the.bright_voxel(array)
    user.change("box", box=[0, 0, k, 39, 35, k])
    session.add(Box((0, 0, k), (39, 35, k)))
    answer = user.change("propagate")
    session.propagate()
    assert np.array_equal(user.labels, session.labels())
    assert answer["prompted"] == [k]


# --- Why there is no session ---


@pytest.mark.parametrize("request_json", [None, [], "open", 3, {}, {"op": 3}, {"op": None}])
def test_request_that_is_no_request_is_refused(request_json, make):
    with pytest.raises(PromptError, match="needed is a JSON object with an op"):
        the.ask(make(), request_json, None, {})


def test_unknown_op_is_refused(make):
    with pytest.raises(PromptError, match="'delete', known are add, alive, box, check, click"):
        the.ask(make(), {"op": "delete"}, None, {})


def test_closed_session_is_unknown(make):
    user = User(make(), the.scan())
    user.ask("close")
    for op, words in (("state", {}), ("close", {}), ("undo", {"turn": 1})):
        with pytest.raises(UnknownSession, match="closed or never opened"):
            user.ask(op, **words)


def test_token_of_another_start_says_that_the_server_was_restarted(make):
    user = User(make(), the.scan())
    with pytest.raises(ServerRestarted, match="open the scan again"):
        the.ask(make(), {"op": "state"}, user.token, {})


@pytest.mark.parametrize(
    "change", [str.upper, lambda t: t[:-1], lambda t: t + "0", lambda t: "x" + t[1:], lambda t: ""]
)
def test_what_is_no_token_of_ours_is_unknown(change, make):
    token = change(User(make(), the.scan()).token)
    with pytest.raises(UnknownSession):
        the.ask(make(), {"op": "state"}, token, {})
    with pytest.raises(UnknownSession):
        the.ask(make(), {"op": "state"}, None, {})


def test_well_formed_token_of_this_start_that_nobody_was_given_is_unknown(make):
    host = make()
    token = User(host, the.scan()).token
    with pytest.raises(UnknownSession):
        the.ask(host, {"op": "state"}, token[:-1] + ("0" if token[-1] != "0" else "1"), {})


def test_session_that_nobody_used_is_expired_and_its_scan_forgotten(make, clock):
    host = make(idle_seconds=60)
    array = the.scan()
    user = User(host, array)
    user.click(the.bright_voxel(array))
    clock.now += 59
    user.ask("state")
    clock.now += 59
    user.ask("state")
    clock.now += 61
    host.drop_idle()

    assert host.embeddings.nbytes == 0
    for _ in range(2):
        with pytest.raises(SessionExpired, match="nobody used this session for 60 s"):
            user.ask("state")
    assert host.counters.expired == 1


def test_expired_session_does_not_come_back_for_a_new_scan(make, clock):
    host = make(idle_seconds=60, max_sessions=1)
    old = User(host, the.scan(0))
    old.click(the.bright_voxel(the.scan(0)))
    clock.now += 61
    new = User(host, the.scan(1))
    with pytest.raises(SessionExpired):
        old.click(the.bright_voxel(the.scan(0)))
    new.click(the.bright_voxel(the.scan(1)))
    session = the.alone("volume", the.scan(1))
    session.add(Point(tuple(the.bright_voxel(the.scan(1))), FOREGROUND))

    assert np.array_equal(new.labels, session.labels())


def test_server_that_is_full_says_so_until_a_session_ends(make, clock):
    host = make(max_sessions=2, idle_seconds=60)
    first, _ = User(host, the.scan(0)), User(host, the.scan(1))
    with pytest.raises(AtCapacity, match="2 sessions of m-sam are open"):
        User(host, the.scan(2))
    first.ask("close")
    User(host, the.scan(2))
    clock.now += 61
    for seed in (3, 4):
        User(host, the.scan(seed))


@pytest.mark.parametrize(
    ("tensors", "words", "error"),
    [
        ({}, {}, TensorMismatchError),
        ({"volume": np.zeros((1, 2, 2, 2), np.float32), "volume_uint8": np.zeros((1, 2, 2, 2), np.uint8)}, {},
         TensorMismatchError),
        ({"volume_uint8": np.zeros((1, 2, 2, 2), np.uint8), "affine": None}, {}, GeometryError),
        ({"volume_uint8": np.zeros((1, 2, 2, 2), np.uint8), "affine": np.zeros((4, 4))}, {}, GeometryError),
        ({"volume_uint8": np.zeros((2, 2, 2), np.uint8)}, {}, InputRefused),
        ({"volume_uint8": np.zeros((1, 2, 2, 0), np.uint8)}, {}, InputRefused),
        ({"volume": np.full((1, 2, 2, 2), np.nan, np.float32)}, {}, InputRefused),
        ({"volume_uint8": np.zeros((1, 200, 200, 3), np.uint8)}, {}, InputRefused),
        ({"volume_uint8": np.zeros((2, 4, 4, 4), np.uint8)}, {"sequences": ["a", "b"]}, InputRefused),
        ({"volume_uint8": np.ones((1, 4, 4, 4), np.uint8)}, {"plane": "axial"}, OptionError),
        ({"volume_uint8": np.ones((1, 4, 4, 1), np.uint8)}, {"picture": True}, PromptError),
        ({"volume_uint8": np.ones((1, 4, 4, 4), np.uint8)}, {"spacing": [1, 1, 0]}, PromptError),
    ],
)  # fmt: skip
def test_scan_that_is_refused_holds_no_place_and_no_memory(tensors, words, error, make):
    host = make(max_sessions=1, max_voxels=100_000)
    for _ in range(3):
        with pytest.raises(error):
            the.ask(host, {"op": "open", **words}, None, {"affine": np.eye(4), **tensors})

    assert host.embeddings._holders == {}
    User(host, the.scan())


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
INDICES = st.lists(st.integers(-1, 44) | st.floats(), min_size=2, max_size=6)
CLICK = st.fixed_dictionaries(
    {}, optional={"point": INDICES | ANYTHING, "label": st.sampled_from([0, 1, 2]), "box": INDICES}
)
REQUEST = st.fixed_dictionaries(
    {
        "op": st.sampled_from(
            ["click", "box", "add", "check", "segment_automatically", "propagate", "undo", "redo", "reset"]
        )
        | st.sampled_from(["state", "describe", "open"])
        | ANYTHING
    },
    optional={
        "turn": st.just("next") | ANYTHING,
        "world": st.booleans() | ANYTHING,
        "prompts": st.lists(CLICK, max_size=3) | ANYTHING,
        "point": INDICES | ANYTHING,
        "label": st.sampled_from([0, 1]),
        "box": INDICES | ANYTHING,
        "structure": ANYTHING,
    },
)


@pytest.mark.parametrize("kind", [*KINDS, "automatic"])
def test_any_request_is_answered_or_refused_and_never_a_bug(kind):
    array = the.scan(1)

    @settings(deadline=None, max_examples=60, derandomize=True)
    @given(st.lists(REQUEST, max_size=5))
    def ask(requests):
        host = SessionHost(the.served(kind), the.runners(kind))
        user = User(host, array)
        for request in json.loads(json.dumps(requests)):
            if request.get("turn") == "next":
                request["turn"] = user.turn + 1
            before = user.ask("state")
            try:
                answer, _ = the.ask(host, request, user.token, {})
            except SamkitError:
                after = user.ask("state")
                assert after[0] == before[0]
                assert np.array_equal(after[1], before[1])
            else:
                json.dumps(answer)
                user.turn = answer.get("turn", user.turn)

    ask()


# --- Embeddings ---


@pytest.mark.parametrize("kind", KINDS)
def test_second_session_with_the_same_click_encodes_nothing(kind, make):
    array, host = the.scan(1), make(kind)
    place = the.bright_voxel(array)
    User(host, array).click(place)
    calls = host.encoder.calls
    second = User(host, array)
    second.click(place)

    assert host.encoder.calls == calls > 0
    assert (host.embeddings.hits, host.embeddings.misses) == (calls, calls)
    assert second.labels.any()


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("volume", {"affine": np.diag([1, 1, 1.01, 1])}),
        ("volume", {"options": {"spacing": [1.0, 1.0, 1.1]}}),
        ("volume", {"array": the.scan(1) + np.int16(1)}),
        ("slices", {"affine": np.diag([1, 1, 1.01, 1])}),
        ("slices", {"options": {"plane": "coronal"}}),
        ("slices", {"options": {"intensities": [0, 200]}}),
    ],
)
def test_what_an_embedding_depends_on_makes_another_one(kind, other, make):
    array, host = the.scan(1), make(kind)
    place = the.bright_voxel(array)
    User(host, array).click(place)
    calls = host.encoder.calls
    User(host, other.get("array", array), other.get("affine"), **other.get("options", {})).click(place)

    assert host.encoder.calls == 2 * calls


def test_other_export_makes_other_embeddings(make):
    array = the.scan(1)
    host, other = make(digest="one"), make(digest="two")
    other.embeddings = host.embeddings
    for each in (host, other):
        User(each, array).click(the.bright_voxel(array))

    assert other.encoder.calls == host.encoder.calls > 0


def test_closing_lets_go_of_scan_and_embeddings_at_once(make, without_gc):
    array, host = the.scan(1), make()
    user = User(host, array)
    user.click(the.bright_voxel(array))
    session = host._held[user.token].hosted.session
    held = [weakref.ref(session), weakref.ref(session._set.volume.array)]
    del session
    assert host.embeddings.nbytes > 0
    user.ask("close")

    assert host.embeddings.nbytes == 0
    assert [one() for one in held] == [None, None]


def test_refusal_that_is_remembered_holds_no_scan(make, without_gc):
    """The sessions share their embeddings; where one clicked on air, its frames must not live on with the other."""
    array = the.scan(1, (40, 36, 120))
    array[:, :, 60:] = 0
    host = make()
    one, other = User(host, array), User(host, array)
    with pytest.raises(InputRefused) as caught:
        one.click((20, 20, 119))
    del caught
    held = weakref.ref(host._held[one.token].hosted.session)
    one.ask("close")

    assert held() is None
    with pytest.raises(InputRefused):
        other.click((20, 20, 119))


@pytest.mark.parametrize("kind", KINDS)
def test_answer_that_is_kept_for_a_lost_connection_is_no_larger_than_what_changed(kind, make):
    array = the.scan(1)
    if kind == "volume":  # a slice of the stand-in is small
        array = np.concatenate([array, np.full((300, 36, 44), 12, np.int16), array])
    host = make(kind)
    user = User(host, array)
    user.click(the.bright_voxel(the.scan(1)))
    user.click((0, 0, 0), BACKGROUND)
    user.click(the.bright_voxel(array, 5))
    _, labels = host._held[user.token].hosted.last[1]

    assert labels.nbytes == (labels.nbytes if labels.base is None else labels.base.nbytes)


# --- At the same time ---


def in_thread(act):
    """Run `act` in a thread; the result's `outcome()` joins it and gives what it returned or raises what it raised."""
    found = []

    def run():
        try:
            found.append(act())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def outcome():
        thread.join()
        return found[0]

    return SimpleNamespace(outcome=outcome, thread=thread)


def hold_encoder(host):
    """Make the encoder wait from now on; return the events that say it was entered and that let it go on."""
    entered, leave = threading.Event(), threading.Event()

    def wait(image):
        entered.set()
        assert leave.wait(60)

    host.encoder.before = wait
    return entered, leave


@pytest.mark.parametrize("kind", KINDS)
def test_slow_encoder_of_one_session_keeps_no_other_waiting(kind, make):
    host, arrays = make(kind), (the.scan(0), the.scan(1))
    slow, quick = (User(host, array) for array in arrays)
    quick.click(the.bright_voxel(arrays[1]))
    entered, leave = hold_encoder(host)
    try:
        clicking = in_thread(lambda: slow.click(the.bright_voxel(arrays[0])))
        assert entered.wait(60)
        quick.click(the.bright_voxel(arrays[1]))
        quick.change("undo")
        opened = User(host, the.scan(2))
        opened.ask("close")
        host.drop_idle()
        host.figures()
        assert clicking.thread.is_alive()
    finally:
        leave.set()
    assert clicking.outcome()["turn"] == 1


def test_two_sessions_that_want_the_same_crop_encode_it_once(make):
    array, host = the.scan(0), make()
    users = [User(host, array) for _ in range(3)]
    entered, leave = hold_encoder(host)
    clicks = []
    try:
        clicks.append(in_thread(lambda: users[0].click(the.bright_voxel(array))))
        assert entered.wait(60)
        clicks += [in_thread(lambda user=user: user.click(the.bright_voxel(array))) for user in users[1:]]
    finally:
        leave.set()
    assert [click.outcome()["turn"] for click in clicks] == [1, 1, 1]
    assert all(np.array_equal(user.labels, users[0].labels) for user in users)
    assert host.encoder.calls == host.embeddings.misses


def test_session_at_work_does_not_expire(make, clock):
    host, array = make(idle_seconds=60), the.scan(0)
    user = User(host, array)

    def take_long(image):
        clock.now += 600
        host.drop_idle()

    host.encoder.before = take_long
    user.click(the.bright_voxel(array))
    clock.now += 59
    assert user.ask("state")[0]["turn"] == 1


class LastMoment:
    """A lock that lets something happen right before it is taken for the first time."""

    def __init__(self, happens):
        self._lock, self._happens = threading.Lock(), happens

    def acquire(self, blocking=True):
        return self._lock.acquire(blocking)

    def release(self):
        self._lock.release()

    def __enter__(self):
        happens, self._happens = self._happens, lambda: None
        happens()
        self._lock.acquire()

    def __exit__(self, *error):
        self._lock.release()


def test_click_that_waited_while_its_session_was_closed_finds_none(make):
    array, host = the.scan(0), make()
    user = User(host, array)
    host._held[user.token].lock = LastMoment(lambda: user.ask("close"))
    with pytest.raises(UnknownSession):
        user.click(the.bright_voxel(array))

    assert host.encoder.calls == 0
    assert host.embeddings.nbytes == 0


def test_click_that_waited_while_its_session_expired_is_told_so(make, clock):
    array, host = the.scan(0), make(idle_seconds=60)
    user = User(host, array)

    def expire():
        clock.now += 61
        host.drop_idle()

    host._held[user.token].lock = LastMoment(expire)
    with pytest.raises(SessionExpired):
        user.click(the.bright_voxel(array))


def test_closing_twice_at_once_lets_go_once(make):
    host = make()
    one, other = User(host, the.scan(0)), User(host, the.scan(0))
    host._held[one.token].lock = LastMoment(lambda: one.ask("close"))
    with pytest.raises(UnknownSession):
        one.ask("close")

    assert list(host.embeddings._holders.values()) == [1]
    other.click(the.bright_voxel(the.scan(0)))


# --- What is told outside ---


@pytest.mark.parametrize("kind", KINDS)
def test_log_names_no_token_scan_or_place(kind, make, clock, caplog):
    caplog.set_level(logging.INFO, "samkit.triton_models")
    array, host = the.scan(1), make(kind, idle_seconds=60)
    user = User(host, array, sequences=["smith^john.nii.gz"])
    place = the.bright_voxel(array)
    user.click(place)
    user.change("undo")
    with pytest.raises(PromptError):
        user.change("click", point=["smith^john"], label=1)
    User(host, array).ask("close")
    clock.now += 61
    host.drop_idle()
    lines = caplog.messages
    told = "\n".join(lines)

    assert [line.split()[1] for line in lines] == ["open", "click", "undo", "open", "close", "close"]
    assert user.token not in told
    assert user.token[16:] not in told
    assert "smith" not in told
    assert "40 x 36 x 44" in told
    assert str(place) not in told


@pytest.mark.parametrize("kind", KINDS)
def test_figures_count_sessions_clicks_and_stages(kind, make, clock):
    array, host = the.scan(1), make(kind, idle_seconds=60)
    for _ in range(2):
        user = User(host, array)
        user.click(the.bright_voxel(array))
    user.change("undo")
    user.ask("close")
    figures = {(name, stage): value for name, _, _, value, stage in host.figures()}

    assert figures["samkit_sessions_open", ""] == 1
    assert figures["samkit_sessions_total", ""] == 2
    assert figures["samkit_clicks_total", ""] == 2
    assert figures["samkit_cache_hits_total", ""] == figures["samkit_cache_misses_total", ""] == host.encoder.calls
    assert figures["samkit_cache_bytes", ""] == host.embeddings.nbytes > 0
    stages = {stage for _, stage in figures if stage}
    assert "decode" in stages
    assert "total" not in stages  # the sum of the others
    clock.now += 61
    host.drop_idle()
    assert {name: value for name, _, _, value, _ in host.figures()}["samkit_sessions_expired_total"] == 1


# --- Memory ---


def held(host):
    return {name: value for name, _, _, value, _ in host.figures()}["samkit_sessions_bytes"]


def test_what_sessions_hold_is_counted_and_shown(make):
    array, host = the.scan(0), make()
    first, second = User(host, array), User(host, array)
    assert held(host) == 2 * array.nbytes
    first.click(the.bright_voxel(array))
    after_one = held(host)
    assert after_one > 2 * array.nbytes
    first.click(the.bright_voxel(array, 1))
    after_two = held(host)
    assert after_two > after_one
    first.change("undo")
    first.change("reset")
    assert held(host) < after_two
    first.ask("close")
    second.ask("close")
    assert held(host) == 0


def test_scan_beyond_the_memory_of_all_is_refused_with_the_reason(make):
    array = the.scan(0)
    host = make(memory_bytes=2 * array.nbytes)
    users = [User(host, array) for _ in range(2)]
    with pytest.raises(AtCapacity, match=r"hold 0 MiB, and may hold 0: this scan of 0 does not fit; close one"):
        User(host, array)
    users[0].ask("close")
    User(host, array).ask("close")
    replacing = User(host, array, replaces=users[1].token)
    assert replacing.token != users[1].token


def test_failed_opening_keeps_no_memory(make):
    array = the.scan(0)
    host = make(memory_bytes=array.nbytes)
    for _ in range(3):
        with pytest.raises(PromptError):
            User(host, array, sequences=["a", "b"])
    User(host, array)


def test_prompt_beyond_the_memory_of_all_is_refused_and_undo_is_not(make):
    array = the.scan(0)
    host = make(memory_bytes=array.nbytes + 1)
    user = User(host, array)
    user.click(the.bright_voxel(array))
    with pytest.raises(AtCapacity, match="this session takes nothing more; undo, reset, close one"):
        user.click(the.bright_voxel(array, 1))
    user.change("undo")
    user.change("reset")
    user.ask("close")


# --- Opening again ---


def test_open_that_is_sent_again_opens_no_second_session(make):
    host, array = make(max_sessions=1), the.scan()
    first = User(host, array, nonce="a" * 32)
    again = User(host, array, nonce="a" * 32)

    assert again.opened == first.opened
    assert host.counters.opened == 1


def test_nonce_of_a_closed_session_opens_a_new_one(make):
    host, array = make(), the.scan()
    first = User(host, array, nonce="a" * 32)
    first.ask("close")

    assert User(host, array, nonce="a" * 32).token != first.token


def test_nonce_that_is_used_twice_never_leads_to_another_scan(make):
    host = make()
    User(host, the.scan(0), nonce="a" * 32)
    with pytest.raises(WrongTurn, match="opened another scan"):
        User(host, the.scan(1), nonce="a" * 32)
    with pytest.raises(PromptError, match="the nonce has 1 letters"):
        User(host, the.scan(1), nonce="1")


def test_open_that_failed_can_be_sent_again(make):
    host, array = make(), the.scan()
    with pytest.raises(GeometryError):
        User(host, array, np.zeros((4, 4)), nonce="a" * 32)

    assert User(host, array, nonce="a" * 32).token


def test_repeat_that_comes_while_the_first_is_at_work_waits_for_it(make, monkeypatch):
    host, array = make(), the.scan()
    begun, may_end = threading.Event(), threading.Event()
    hold = host._hold

    def slowly(*given):
        begun.set()
        assert may_end.wait(60)
        return hold(*given)

    monkeypatch.setattr(host, "_hold", slowly)
    found = []
    threads = [threading.Thread(target=lambda: found.append(User(host, array, nonce="n" * 16).token)) for _ in range(2)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    may_end.set()
    for thread in threads:
        thread.join(60)

    assert len(found) == 2
    assert len(set(found)) == host.counters.opened == 1


# --- Places that nobody holds ---


def test_session_that_was_only_opened_ends_sooner_than_one_that_rests(make, clock):
    host = make(idle_seconds=900, unused_seconds=60)
    asked, opened = User(host, the.scan(0)), User(host, the.scan(1))
    clock.now += 59
    asked.ask("state")
    host.drop_idle()
    assert len(host._held) == 2

    clock.now += 2
    host.drop_idle()
    assert list(host._held) == [asked.token]
    with pytest.raises(SessionExpired, match="nobody used this session for 60 s, so its scan was forgotten"):
        opened.ask("state")
    clock.now += 890
    asked.ask("state")
    assert (host.counters.expired, host.counters.unused, host.counters.silent) == (1, 1, 0)


def test_reader_who_rests_keeps_the_place_while_the_heart_beats(make, clock):
    host = make(idle_seconds=60, heartbeat_seconds=45)
    user = User(host, the.scan(0), heartbeat=True)
    assert user.opened["alive_seconds"] == 15.0
    for _ in range(100):
        clock.now += 44
        user.ask("alive")
        host.drop_idle()
    user.click(the.bright_voxel(the.scan(0), 1))

    clock.now += 46
    host.drop_idle()
    assert not host._held
    with pytest.raises(SessionExpired, match="nobody heard of this session's client for 45 s"):
        user.ask("alive")
    assert (host.counters.expired, host.counters.unused, host.counters.silent) == (1, 0, 1)


def test_client_without_a_heart_is_told_of_no_beats(make):
    assert User(make(), the.scan(0)).opened.get("alive_seconds") is None


def test_heart_beats_while_its_session_is_at_work(make):
    array, host = the.scan(0), make()
    user = User(host, array, heartbeat=True)
    entered, leave = hold_encoder(host)
    try:
        clicking = in_thread(lambda: user.click(the.bright_voxel(array, 1)))
        assert entered.wait(60)
        for _ in range(10):
            assert user.ask("alive")[0] == {}
        assert clicking.thread.is_alive()
    finally:
        leave.set()
    assert clicking.outcome()["turn"] == 1


NONCE = "n" * 16


def test_opening_is_taken_back_by_its_nonce(make):
    host = make(max_sessions=1)
    user = User(host, the.scan(0), nonce=NONCE)
    the.ask(host, {"op": "close", "nonce": "m" * 16}, None, {})
    user.ask("state")
    the.ask(host, {"op": "close", "nonce": NONCE}, None, {})
    assert not host._held
    with pytest.raises(UnknownSession):
        user.ask("state")
    User(host, the.scan(0), nonce=NONCE)
    assert host.counters.cancelled == 1


def test_opening_that_comes_after_it_was_taken_back_is_refused(make):
    host = make()
    the.ask(host, {"op": "close", "nonce": NONCE}, None, {})
    with pytest.raises(ServingError, match="taken back by its client"):
        User(host, the.scan(0), nonce=NONCE)
    assert not host._held


def test_opening_that_is_taken_back_while_it_is_at_work_holds_no_place_and_ends_no_other(make, monkeypatch):
    host, array = make(max_sessions=1), the.scan(0)
    before = User(host, array)
    entered, goes_on, right = threading.Event(), threading.Event(), host._hold

    def hold(request, tensors):
        entered.set()
        assert goes_on.wait(60)
        return right(request, tensors)

    monkeypatch.setattr(host, "_hold", hold)
    try:
        opening = in_thread(lambda: User(host, array, nonce=NONCE, replaces=before.token))
        assert entered.wait(60)
        the.ask(host, {"op": "close", "nonce": NONCE}, None, {})
    finally:
        goes_on.set()

    assert str(opening.outcome()) == "this opening was taken back by its client; draw another nonce"
    assert list(host._held) == [before.token]
    before.click(the.bright_voxel(array, 1))
    monkeypatch.setattr(host, "_hold", right)
    User(host, array, replaces=before.token)
    assert host.counters.cancelled == 1


def test_replaced_session_makes_room_and_ends_once_the_new_one_is_open(make):
    host, array = make(max_sessions=1), the.scan()
    old = User(host, array)
    with pytest.raises(GeometryError):
        User(host, array, np.zeros((4, 4)), replaces=old.token)
    old.click(the.bright_voxel(array, 0))  # a scan that is refused takes nothing away
    new = User(host, array, replaces=old.token)

    new.click(the.bright_voxel(array, 0))
    with pytest.raises(UnknownSession):
        old.ask("state")


def test_two_that_replace_their_scans_at_once_find_room_on_a_full_server(make, monkeypatch):
    host = make(max_sessions=2)
    one, other = User(host, the.scan(0)), User(host, the.scan(1))
    hold, meanwhile = host._hold, []

    def hold_after_another(request, tensors):
        if not meanwhile:
            meanwhile.append("began")
            meanwhile.append(User(host, the.scan(3), replaces=other.token))
        return hold(request, tensors)

    monkeypatch.setattr(host, "_hold", hold_after_another)
    User(host, the.scan(2), replaces=one.token)
    with pytest.raises(AtCapacity):
        User(host, the.scan(4))
    for gone in (one, other):
        with pytest.raises(UnknownSession):
            gone.ask("state")


@pytest.mark.parametrize(
    ("op", "words"),
    [("click", {"turn": 1, "point": [1, 2, 3], "label": 1, "World": True}), ("undo", {"turn": 1, "n": 2}),
     ("state", {"turn": 1}), ("check", {"prompts": [], "turn": 1})],
)  # fmt: skip
def test_word_that_nobody_reads_is_refused(op, words, make):
    user = User(make(), the.scan())
    with pytest.raises(PromptError, match=f"{op} does not know '"):
        user.ask(op, **words)
    with pytest.raises(PromptError, match="open does not know 'propogate'"):
        User(user.host, the.scan(), propogate=True)


def test_history_has_an_end(make, monkeypatch):
    monkeypatch.setattr("samkit.triton_models.hosted_session.MOST_STEPS", 2)
    array = the.scan()
    user = User(make(), array)
    for number in range(2):
        user.click(the.bright_voxel(array, number))
    with pytest.raises(PromptError, match="2 steps, as many as a server remembers"):
        user.click(the.bright_voxel(array, 0))
    user.change("undo")
    user.click(the.bright_voxel(array, 0))


def test_impatient_client_keeps_only_a_few_threads(make, monkeypatch):
    host, array = make(), the.scan()
    user = User(host, array)
    (held,) = host._held.values()
    held.requests = 4
    with pytest.raises(WrongTurn, match="4 requests of this session wait already"):
        user.ask("state")
    held.requests = 0
    user.ask("state")
