"""A request is read as it was meant, or refused in one sentence, whatever a stranger sends."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import samkit
from samkit.errors import PromptError, ServingError
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, SliceBox, SlicePoint
from samkit.runtime.protocol.requests import (
    REQUESTS,
    Add,
    BoxCorners,
    Check,
    Click,
    Close,
    Describe,
    EnsembleOptions,
    Open,
    ScanOptions,
    Undo,
    read_request,
    request_of,
)
from samkit.runtime.protocol.version import PROTOCOL

ALL = [
    Describe(),
    Describe(protocol=PROTOCOL),
    Open(),
    Open(
        sequences=("t1c", "t2w"), plane="coronal", intensities=(-160.0, 240.0), nonce="n" * 16, replaces="t" * 64,
        heartbeat=True, protocol=PROTOCOL,
    ),
    Open(spacing=(1.0, 1.5, 2.0), picture=True),
    Click(turn=1, point=(60.0, 70.0, 30.0), label=FOREGROUND),
    Click(turn=2, point=(6.0, 7.0), label=BACKGROUND, structure="liver", world=True),
    BoxCorners(turn=3, box=(1.0, 2.0, 3.0, 4.0, 5.0, 3.0), structure="liver"),
    BoxCorners(turn=3, box=(1.0, 2.0, 4.0, 5.0)),
    Add(turn=4, prompts=(Point((1.0, 2.0, 3.0), FOREGROUND), Box((1.0, 2.0, 3.0), (4.0, 5.0, 3.0), "liver"))),
    Check(prompts=(SlicePoint(1.0, 2.0, FOREGROUND),), world=True),
    *(kind(turn=5) for op, kind in REQUESTS.items() if op in ("segment_automatically", "propagate")),
    *(kind(turn=6) for op, kind in REQUESTS.items() if op in ("undo", "redo", "reset")),
    *(REQUESTS[op]() for op in ("state", "alive", "close")),
    Close(nonce="n" * 16),
]  # fmt: skip


@pytest.mark.parametrize("request_", ALL, ids=lambda request: request.op)
def test_every_request_arrives_as_it_was_sent(request_):
    assert read_request(json.loads(json.dumps(request_.to_json()))) == request_


def test_every_request_is_tried():
    assert {request.op for request in ALL} == set(REQUESTS)


@pytest.mark.parametrize("data", [None, [], "open", 3, {}, {"op": 3}, {"op": None}])
def test_what_is_no_request_is_refused(data):
    with pytest.raises(PromptError, match="needed is a JSON object with an op"):
        read_request(data)


@pytest.mark.parametrize("op", ["delete", "decide", "prompts", "Click", ""])
def test_unknown_op_is_refused_with_those_there_are(op):
    with pytest.raises(
        PromptError, match=f"the request's op is '{op}', known are add, alive, box, check, click, close, desc"
    ):
        read_request({"op": op})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"op": "click", "turn": 1, "point": [1, 2, 3], "label": 1, "World": True}, "click does not know 'World', it"),
        ({"op": "undo", "turn": 1, "n": 2}, "undo does not know 'n', it knows op, turn; send those"),
        ({"op": "state", "turn": 1}, "state does not know 'turn', it knows op; send those"),
        ({"op": "open", "propogate": True}, "open does not know 'propogate'"),
        ({"op": "click", "turn": 1, "label": 1}, "click has no 'point', which it needs; send point as"),
        ({"op": "click", "turn": 1, "point": [1, 2, 3]}, "click has no 'label', which it needs"),
        ({"op": "box", "turn": 1}, "box has no 'box', which it needs"),
        ({"op": "add", "turn": 1}, "add has no 'prompts', which it needs"),
        ({"op": "check"}, "check has no 'prompts', which it needs"),
        ({"op": "click", "point": [1], "label": 1}, "point is .*, needed are 3 or 2 numbers"),
        ({"op": "click", "point": ["a", 2, 3], "label": 1}, "point is .*, needed are 3 or 2 numbers"),
        ({"op": "click", "point": [True, 2, 3], "label": 1}, "point is .*, needed are 3 or 2 numbers"),
        ({"op": "click", "point": [1, 2, float("nan")], "label": 1}, "point is .*, needed are 3 or 2 numbers"),
        ({"op": "click", "point": [1, 2, 10**400], "label": 1}, "point is .*, needed are 3 or 2 numbers"),
        ({"op": "click", "point": [1, 2, 3], "label": 2}, "label is 2, needed is 1 on the object or 0 on background"),
        ({"op": "click", "point": [1, 2, 3], "label": True}, "label is True, needed is 1 on the object or 0"),
        ({"op": "click", "point": [1, 2, 3], "label": 1, "structure": None}, "structure is None, needed is a text"),
        ({"op": "click", "point": [1, 2, 3], "label": 1, "world": "yes"}, "world is 'yes', needed is true or false"),
        ({"op": "box", "box": [1, 2, 3, 4, 5]}, "box is .*, needed are 6 or 4 numbers"),
        ({"op": "add", "prompts": "all"}, "the request holds a str"),
        ({"op": "open", "nonce": "1"}, "the nonce has 1 letters, needed are 16 and more"),
        ({"op": "open", "nonce": "n" * 129}, "nonce is .*, needed is a text of at most 128 letters"),
        ({"op": "open", "replaces": 3}, "replaces is 3, needed is a text of at most 128 letters"),
        ({"op": "describe", "protocol": "1"}, "protocol is '1', needed is a whole number"),
        ({"op": "click", "protocol": 2}, "click does not know 'protocol'"),
    ],
)
def test_request_of_a_wrong_kind_is_refused_in_one_sentence(data, words):
    with pytest.raises(PromptError, match=words) as caught:
        read_request(data)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("turn", [None, "2", [2], 1.5, True, 10**400])
def test_turn_that_is_no_number_is_none_for_the_session_to_refuse(turn):
    assert read_request({"op": "undo", "turn": turn}) == Undo(turn=None)


@pytest.mark.parametrize("op", ["describe", "open"])
@pytest.mark.parametrize("spoken", [0, PROTOCOL + 1, 7])
def test_client_of_another_protocol_is_told_both_numbers_whatever_else_it_says(op, spoken):
    with pytest.raises(ServingError) as caught:
        read_request({"op": op, "protocol": spoken, "of_the_future": True})
    assert str(caught.value) == (
        f"this client speaks protocol {spoken}, and the server's samkit {samkit.__version__} speaks {PROTOCOL}; "
        "install the same version of samkit on both sides"
    )


# --- Prompts ---


@pytest.mark.parametrize(
    ("prompt", "request_"),
    [
        (Point((1, 2.5, 3), FOREGROUND), Click(turn=7, point=(1.0, 2.5, 3.0), label=1)),
        (SlicePoint(4, 5, BACKGROUND, "liver"), Click(turn=7, point=(4.0, 5.0), label=0, structure="liver")),
        (Box((1, 2, 3), (4, 5, 3)), BoxCorners(turn=7, box=(1.0, 2.0, 3.0, 4.0, 5.0, 3.0))),
        (SliceBox(1, 2, 3, 4, "liver"), BoxCorners(turn=7, box=(1.0, 2.0, 3.0, 4.0), structure="liver")),
    ],
)
def test_one_prompt_has_a_request_of_its_own(prompt, request_):
    assert request_of([prompt], 7) == request_
    assert request_.prompts == (prompt,)
    assert request_of([prompt, prompt], 7) == Add(turn=7, prompts=(prompt, prompt))


def test_numbers_of_numpy_travel():
    i, j, k = np.array([1.25, 2, 3], np.float32)
    for prompts in ([Point((i, j, k), FOREGROUND)], [Point((i, j, k), FOREGROUND)] * 2):
        sent = request_of(prompts, 1)
        assert read_request(json.loads(json.dumps(sent.to_json()))).prompts == tuple(prompts)


def test_prompts_stay_bit_for_bit():
    entries = [
        {"point": [0.1 + 0.2, 1e-300, 3], "label": 0, "structure": "liver"},
        {"box": [1, 2, 3, 4, 5, 6]},
        {"point": [4, 5], "label": 1},
    ]
    assert read_request({"op": "check", "prompts": entries}).prompts == (
        Point((0.1 + 0.2, 1e-300, 3.0), BACKGROUND, "liver"),
        Box((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        SlicePoint(4.0, 5.0, FOREGROUND),
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    ANYTHING
    | st.lists(
        st.fixed_dictionaries(
            {}, optional={"point": ANYTHING, "label": ANYTHING, "box": ANYTHING, "structure": ANYTHING, "x": ANYTHING}
        )
    )
)
def test_prompts_of_any_json_are_read_or_refused(entries):
    try:
        request = read_request(json.loads(json.dumps({"op": "check", "prompts": entries})))
    except PromptError:
        return
    assert len(request.prompts) == len(entries)


# --- Options ---


def test_nothing_asked_is_the_methods_own():
    assert read_request({"op": "open", "spacing": None, "sequences": [], "nonce": None}) == Open()
    assert Open().options == ScanOptions()
    assert EnsembleOptions.from_json({"plane": None}) == EnsembleOptions()


def test_options_are_read():
    asked = {
        "spacing": [1, 1.5, 2],
        "plane": "coronal",
        "intensities": [-160, 240],
        "sequences": ["t1c", "t2w"],
        "world": True,
        "propagate": True,
    }
    read = EnsembleOptions.from_json(asked)
    assert read == EnsembleOptions(
        spacing=(1.0, 1.5, 2.0), plane="coronal", intensities=(-160.0, 240.0), sequences=("t1c", "t2w"), world=True,
        propagate=True,
    )  # fmt: skip
    assert EnsembleOptions.from_json(json.loads(json.dumps(read.to_json()))) == read


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"spacing": [1, 1]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, "1"]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, True]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, [1]]}, "needed are 3 numbers"),
        ({"spacing": 1.5}, "needed are 3 numbers"),
        ({"spacing": [1, 1, float("nan")]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, float("inf")]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, 10**400]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, 0]}, "three numbers from 1e-06 to 1e"),
        ({"spacing": [1, 1, -1]}, "three numbers from"),
        ({"spacing": [1, 1, 5e-324]}, "three numbers from"),
        ({"spacing": [1, 1, 1e300]}, "three numbers from"),
        ({"intensities": [5, 5]}, "the lower one first"),
        ({"intensities": {"low": 1}}, "needed are 2 numbers"),
        ({"plane": 3}, "needed is a name"),
        ({"sequences": "t1c"}, "needed is a list of names"),
        ({"sequences": [1]}, "needed is a list of names"),
        ({"sequences": ["t1c", "t1c"]}, "a name stands twice"),
        ({"world": 1}, "needed is true or false"),
        ({"propagate": "false"}, "needed is true or false"),
        ({"picture": None}, "needed is true or false"),
    ],
)
def test_option_of_a_wrong_kind_is_refused(asked, words):
    with pytest.raises(PromptError, match=words) as caught:
        read_request({"op": "open", **asked}) if "picture" in asked else EnsembleOptions.from_json(asked)
    assert len(str(caught.value)) < 300


def test_ensemble_takes_no_pictures():
    with pytest.raises(PromptError, match="the ensemble does not know 'picture'"):
        EnsembleOptions.from_json({"picture": True})


KEYS = st.sampled_from(["spacing", "plane", "intensities", "sequences", "world", "propagate"])


@settings(deadline=None)
@given(st.dictionaries(KEYS, ANYTHING))
def test_options_of_any_json_are_read_or_refused(asked):
    try:
        options = EnsembleOptions.from_json(json.loads(json.dumps(asked)))
    except PromptError:
        return
    assert hash(options) == hash(options)
