"""An answer arrives as it was given; one of another protocol, or of another form, is told of in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import samkit
from samkit.errors import PromptError, ServingError
from samkit.runtime.protocol.answers import Changed, ExportDescription, Nothing, Opened, ServedLimits
from samkit.runtime.protocol.requests import REQUESTS, AskState, Click
from samkit.runtime.protocol.version import PROTOCOL
from samkit.runtime.session.steps import Step

TOKEN = "ab" * 32
DESCRIPTION = ExportDescription(
    protocol=PROTOCOL,
    samkit="0.1",
    method="m-sam",
    kind="volume",
    precision="fp32",
    digest="d",
    plan_json={"method": "m-sam"},
    structures=("liver",),
    sequences=(),
    is_automatic=False,
    plane=None,
    warnings=("RANDOM WEIGHTS",),
    providers={"mask_decoder": ("triton",)},
    limits=ServedLimits(max_voxels=1000),
)
CHANGED = Changed(
    turn=2,
    step=Step(
        number=1,
        voxels=20,
        volume_ml=2.5,
        seconds={"encode": 0.25, "total": 0.5},
        crops=1,
        followed=0,
        slices=(3, 4),
        iou=(0.5,),
    ),
    region=((0, 4), (1, 1), (2, 9)),
    volume_ml=2.5,
    iou=(0.5,),
    prompted=(3,),
    origins=((-4, 0, 7),),
)
ALL = [
    Nothing(),
    DESCRIPTION,
    Opened(token=TOKEN, turn=0, shape=(4, 5, 6), plane=None, spacing=(1.0, 1.5, 2.0)),
    Opened(token=TOKEN, turn=0, shape=(4, 5), plane="axial", spacing=None),
    CHANGED,
    replace(CHANGED, step=None, volume_ml=None, iou=(), prompted=(), origins=()),
]


@pytest.mark.parametrize("answer", ALL, ids=lambda answer: type(answer).__name__)
def test_every_answer_arrives_as_it_was_given(answer):
    assert type(answer).from_json(json.loads(json.dumps(answer.to_json()))) == answer


def test_every_kind_of_answer_is_tried():
    assert {type(answer) for answer in ALL} == {request.answer for request in REQUESTS.values()}


def test_request_reads_its_own_answer():
    for request in (AskState(), Click(turn=2, point=(1.0, 2.0, 3.0), label=1)):
        assert request.read_answer(json.loads(json.dumps(CHANGED.to_json())), "here") == CHANGED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"turn": None}, "turn is None, needed is a whole number, 0 or more"),
        ({"turn": -1}, "turn is -1, needed is a whole number, 0 or more"),
        ({"region": [[0, 1, 2]]}, "region is .*, needed is a list of lists of 2 whole numbers"),
        ({"region": [[0, 1.5]]}, "region is .*, needed is a list of whole numbers"),
        ({"volume_ml": "2"}, "volume_ml is '2', needed is a number"),
        ({"volume_ml": 10**400}, "volume_ml is 10+, needed is a number"),
        ({"iou": [None]}, "iou is None, needed is a number"),
        ({"prompted": [True]}, "prompted is True, needed is a whole number"),
        ({"origins": [[0, 0]]}, "origins is .*, needed is a list of lists of 3 whole numbers"),
        ({"step": []}, r"step is \[\], needed is a JSON object"),
        ({"step": {"number": 1}}, "step has number, needed are number, voxels, volume_ml"),
        ({"more": 1}, "the answer does not know 'more', it knows turn, step"),
    ],
)
def test_answer_of_another_form_is_refused(change, words):
    data = {**json.loads(json.dumps(CHANGED.to_json())), **change}
    with pytest.raises(PromptError, match=words):
        Changed.from_json(data)


@pytest.mark.parametrize("key", sorted(Changed.keys()))
def test_answer_that_lacks_a_key_is_refused(key):
    data = json.loads(json.dumps(CHANGED.to_json()))
    del data[key]
    with pytest.raises(PromptError, match=f"the answer has no '{key}', which it needs"):
        Changed.from_json(data)


# --- Protocols ---


@pytest.mark.parametrize(
    ("change", "server"),
    [
        ({"protocol": 2, "samkit": "9.1"}, "samkit 9.1 and speaks protocol 2"),
        ({"protocol": 0, "samkit": "9.1", "later": True}, "samkit 9.1 and speaks protocol 0"),
        ({"protocol": "1", "samkit": 3}, "an unknown version of samkit and speaks protocol '1'"),
        ({"protocol": True}, "samkit 0.1 and speaks protocol True"),
    ],
)
def test_server_of_another_protocol_is_told_of_with_both_numbers(change, server):
    with pytest.raises(ServingError) as caught:
        ExportDescription.from_server({**DESCRIPTION.to_json(), **change}, "localhost:8001")
    assert str(caught.value) == (
        f"localhost:8001 runs {server}, and samkit {samkit.__version__} here speaks protocol {PROTOCOL}; install the "
        "same version of samkit on both sides"
    )


@pytest.mark.parametrize("data", [{"samkit": "0.0.9", "method": "m-sam"}, {"samkit": "0.0.9"}])
def test_server_from_before_protocols_had_numbers_is_told_of(data):
    with pytest.raises(
        ServingError, match=r"runs samkit 0\.0\.9 and speaks no numbered protocol, and samkit .* 1; inst"
    ):
        ExportDescription.from_server(data, "localhost:8001")


def test_server_that_describes_nothing_is_told_of():
    with pytest.raises(ServingError, match="an unknown version of samkit and speaks no numbered protocol"):
        ExportDescription.from_server(["what"], "localhost:8001")


def test_description_that_is_not_whole_names_what_is_missing():
    data = DESCRIPTION.to_json()
    del data["digest"]
    with pytest.raises(ServingError, match=r"does not answer as samkit .* reads it .*no 'digest'.*same version"):
        ExportDescription.from_server(data, "localhost:8001")
