"""What makes no sense together is refused before any work, with options as data that no command line is in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samkit.errors import InputRefused, OptionError, PromptError
from samkit.methods import get_method
from samkit.prompts import BACKGROUND, FOREGROUND, Point
from samkit.segment.checks import check_method, check_picture, check_place, check_prompts

VOLUMES, SLICES, AUTOMATIC = get_method("m-sam"), get_method("sam"), get_method("lora-sam")


@pytest.mark.parametrize(
    ("given", "sentence", "options"),
    [
        ((), "neither export nor server is given", ("export", "server")),
        (("export", "server"), "export and server are both given", ("export", "server")),
        (("export", "timeout"), "timeout is for a server's answers, and export asks none", ("timeout", "export")),
        (("server", "threads", "device"), "device is the server's to decide", ("device",)),
        (("server", "logits_path"), "logits_path needs export, a server sends masks", ("logits_path", "export")),
    ],
)
def test_options_of_another_place_are_refused(given, sentence, options):
    with pytest.raises(OptionError, match=sentence) as refused:
        check_place(given)
    assert refused.value.options == options


@pytest.mark.parametrize("given", [("export", "backend", "logits_path"), ("server", "timeout", "plane")])
def test_options_of_the_place_are_taken(given):
    check_place(given)


def test_a_prompt_is_needed_unless_the_method_finds_something_by_itself():
    for method in (VOLUMES, SLICES):
        with pytest.raises(PromptError, match="no click was given") as refused:
            check_prompts([], method, propagate=False, picture=False)
        assert refused.value.sentence({"points": "--point"}.get).endswith("e.g. --point 60,70,30,+")
        with pytest.raises(InputRefused, match=r"none of the 1 click\(s\) is on the object"):
            check_prompts([Point((1, 2, 3), BACKGROUND)], method, propagate=False, picture=False)
        check_prompts(
            [Point((1, 2, 3), BACKGROUND), Point((1, 2, 3), FOREGROUND)], method, propagate=False, picture=False
        )
    check_prompts([], AUTOMATIC, propagate=False, picture=False)
    with pytest.raises(PromptError, match="no prompt that could lead on to other slices; leave propagate"):
        check_prompts([], AUTOMATIC, propagate=True, picture=False)


@pytest.mark.parametrize(
    ("name", "picture", "example"),
    [
        ("m-sam", False, "--point 60,70,30,+"),
        ("sam", True, "--point 60,70,+"),
        ("boxes alone", False, "--box 40,52,30,88,97,30"),
        ("boxes alone", True, "--box 40,52,88,97"),
    ],
)
def test_an_example_is_one_that_the_method_takes_on_this_input(name, picture, example):
    method = replace(SLICES, prompts=frozenset({"box"})) if name == "boxes alone" else get_method(name)
    with pytest.raises(PromptError) as refused:
        check_prompts([], method, propagate=False, picture=picture)
    assert refused.value.sentence({"points": "--point", "boxes": "--box"}.get).endswith(f"e.g. {example}")


def test_options_of_the_other_kind_of_method_are_refused():
    spacing, plane = {"spacing": (1.0, 1.0, 1.0)}, {"plane": "axial"}
    with pytest.raises(OptionError, match="sam works on slices as they are; leave spacing out"):
        check_method(SLICES, spacing, plane)
    with pytest.raises(OptionError, match="plane is for 2D methods, and m-sam works on volumes") as refused:
        check_method(VOLUMES, spacing, plane)
    assert refused.value.options == ("plane",)
    check_method(SLICES, {"spacing": None}, plane)
    check_method(VOLUMES, spacing, {"plane": None, "propagate": False})


def test_options_of_scans_are_refused_beside_a_picture():
    check_picture({"world": False, "plane": None})
    with pytest.raises(OptionError, match="world=True is for scans, and a picture is given") as refused:
        check_picture({"plane": None, "world": True})
    assert refused.value.options == ("world",)
