"""What `sam-segment` is asked for, judged before any work: options that clash, and prompts that make no mask.

Options go by the names of the command's parameters; errors carry them as data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from samkit.errors import InputRefused, OptionError, PromptError
from samkit.methods.method import Method, SliceMethod
from samkit.prompts import (
    EXAMPLE_BOX,
    EXAMPLE_PIXEL,
    EXAMPLE_POINT,
    EXAMPLE_RECTANGLE,
    FOREGROUND,
    Point,
    Prompt,
    SlicePoint,
)

_SERVER_DECIDES = ("backend", "device", "precision", "threads")


def check_place(given: Collection[str]) -> None:
    """Raise OptionError unless one place does the work, with options that mean something there.

    `given` are the names of all options that the user gave.
    """
    if ("export" in given) == ("server" in given):
        what = "{export} and {server} are both" if "export" in given else "neither {export} nor {server} is"
        raise OptionError(f"{what} given, and one place does the work; give one of them", options=("export", "server"))
    if "export" in given:
        if "timeout" in given:
            raise OptionError(
                "{timeout} is for a server's answers, and {export} asks none; leave it out",
                options=("timeout", "export"),
            )
        return
    if decided := [name for name in _SERVER_DECIDES if name in given]:
        raise OptionError(
            f"{{{decided[0]}}} is the server's to decide, for all who use it; leave it out", options=decided[:1]
        )
    if "logits_path" in given:
        raise OptionError(
            "{logits_path} needs {export}, a server sends masks and no logits; leave it out",
            options=("logits_path", "export"),
        )


def check_prompts(prompts: Sequence[Prompt], method: Method, *, propagate: bool, picture: bool) -> None:
    """Raise PromptError where nothing is prompted and has to be, InputRefused where no click is on the object.

    `picture` says whether one is segmented: examples are of its kind.
    """
    if method.is_automatic:
        if propagate and not prompts:
            raise PromptError(
                f"{method.name} was given no prompt that could lead on to other slices; leave {{propagate}} out",
                options=("propagate",),
            )
        return
    example = EXAMPLE_PIXEL if picture else EXAMPLE_POINT
    if "point" not in method.prompts:
        example = EXAMPLE_RECTANGLE if picture else EXAMPLE_BOX
    if not prompts:
        what = "click" if "point" in method.prompts else "box"
        raise PromptError(
            f"no {what} was given, at least one on the object is needed; e.g. {{{example}}}", options=(example,)
        )
    if all(isinstance(prompt, (Point, SlicePoint)) and prompt.label != FOREGROUND for prompt in prompts):
        raise InputRefused(
            "no-foreground",
            f"none of the {len(prompts)} click(s) is on the object",
            f"add a foreground click, e.g. {{{example}}}",
            options=(example,),
        )


def check_method(method: Method, of_volumes: Mapping[str, object], of_slices: Mapping[str, object]) -> None:
    """Raise OptionError for an option, by name with its value, that is for methods of the other kind."""
    if isinstance(method, SliceMethod):
        for name in (name for name, value in of_volumes.items() if value):
            raise OptionError(f"{method.name} works on slices as they are; leave {{{name}}} out", options=(name,))
        return
    for name in (name for name, value in of_slices.items() if value):
        raise OptionError(
            f"{{{name}}} is for 2D methods, and {method.name} works on volumes; leave it out", options=(name,)
        )


def check_picture(of_scans: Mapping[str, object]) -> None:
    """Raise OptionError for an option, by name with its value, that means nothing where a picture is given."""
    for name, value in of_scans.items():
        if value:
            raise OptionError(f"{{{name}}} is for scans, and a picture is given; leave it out", options=(name,))
