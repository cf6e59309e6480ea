"""An error arrives as its own class, with its options and words, whatever the server puts around it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samkit import errors
from samkit.errors import InputRefused, SamkitError, ServingError
from samkit.runtime.protocol.failure import error_text, read_error

ERRORS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SamkitError)),
    key=lambda kind: kind.__name__,
)
HARD = 'a "quoted" {brace}, a \\ and\na line, ä, \N{GRINNING FACE}, \udcff, samkit-error {"type": "PromptError"}'


def make(kind, text=HARD):
    return InputRefused("a-code", f"reason {text}", f"remedy {text}") if kind is InputRefused else kind(text)


def test_there_are_errors_to_carry():
    assert len(ERRORS) > 15


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("around", ["{}", "in ensemble 'm_sam', Failed: {} (at line 3) {{}}", "\n{}\n"])
def test_every_error_survives_the_way(kind, around):
    sent = make(kind)
    found = read_error(around.format(error_text(sent)))

    assert type(found) is kind
    assert str(found) == str(sent)
    assert vars(found) == vars(sent)


@given(st.text())
def test_any_words_survive(text):
    found = read_error(error_text(errors.WrongTurn(text)))

    assert str(found) == text


@pytest.mark.parametrize("kind", ERRORS)
def test_options_travel_as_data_so_that_the_command_spells_them(kind):
    text, options = "{fp16} is of {folded} graphs, {name} stays; leave {fp16} out", ("fp16", "folded")
    sent = (
        InputRefused("a-code", "{fp16} is", "leave {folded} out", options=options)
        if kind is InputRefused
        else kind(text, options=options)
    )
    found = read_error(error_text(sent))

    assert vars(found) == vars(sent)
    assert str(found) == str(sent)
    assert found.sentence(lambda option: f"--{option}") == sent.sentence(lambda option: f"--{option}")
    assert "--fp16" in found.sentence(lambda option: f"--{option}")


def test_how_long_to_wait_travels_with_it():
    sent = errors.ServerRestarting("a part is started again; try again in 3 s", seconds=3)

    assert read_error(error_text(sent)).seconds == 3


def test_client_of_another_language_reads_the_sentence():
    told = json.loads(error_text(errors.OptionError("leave {fp16} out", options=("fp16",))).partition(" ")[2])

    assert told["type"] == "OptionError"
    assert told["message"] == "leave fp16 out"


def test_what_a_newer_server_says_besides_is_left_out():
    found = read_error('samkit-error {"type": "WrongTurn", "message": "wait", "retry_after": 3}')

    assert (type(found), str(found)) == (errors.WrongTurn, "wait")


def test_error_of_a_newer_server_is_a_serving_error():
    class OutOfCoffee(SamkitError):
        pass

    found = read_error(error_text(OutOfCoffee("brew some")))
    assert (type(found), str(found)) == (ServingError, "brew some")


@pytest.mark.parametrize("name", ["annotations", "SystemExit", "__doc__", "", "InputRefused.mro"])
def test_type_that_is_no_error_of_ours_is_never_made(name):
    found = read_error(f"samkit-error {json.dumps({'type': name, 'message': 'm'})}")
    assert type(found) is ServingError


@pytest.mark.parametrize(
    "text",
    [
        "",
        "inference failed",
        "samkit-error",
        "samkit-error {}",
        "samkit-error {nothing}",
        'samkit-error {"type": "PromptError"',
        'samkit-error {"type": "PromptError"}',
        'samkit-error {"type": 3, "message": "m"}',
        'samkit-error {"type": ["PromptError"], "message": "m"}',
        'samkit-error {"type": "InputRefused", "message": "m"}',
        "samkit-error [1]",
        pytest.param('samkit-error {"type": ' + "9" * 5000 + "}", id="long number"),
        pytest.param('samkit-error {"type": ' + '{"a":' * 100_000 + "1" + "}" * 100_001, id="deep"),
    ],
)
def test_text_that_carries_no_error_is_none(text):
    assert read_error(text) is None
