"""Places and prompts as a person writes them in Python: numbers, or a sentence on how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np

from samkit.errors import OptionError, PromptError
from samkit.geometry import Triple, as_numbers
from samkit.prompts import BACKGROUND, EXAMPLE_BOX, EXAMPLE_POINT, FOREGROUND, Box, Point, SliceBox, SlicePoint


def check_prompts(prompts: object) -> None:
    """Raise PromptError unless it is a list of prompts: with numbers for places, as many as there must be, corners in
    order, and a label that is one.
    """
    if not isinstance(prompts, Sequence) or isinstance(prompts, str):
        raise PromptError(
            f"the prompts are {prompts!r:.80}; give a list of them, such as [samkit.Point((60, 70, 30), 1)]"
        )
    for prompt in prompts:
        match prompt:
            case Point(index):
                places = [as_numbers(index, 3)]
            case Box(first, last):
                places = [as_numbers(first, 3), as_numbers(last, 3)]
            case SlicePoint(x, y):
                places = [as_numbers((x, y), 2)]
            case SliceBox(x0, y0, x1, y1):
                places = [as_numbers((x0, y0, x1, y1), 4)]
            case _:
                places = [None]
        if None in places:
            bare = as_numbers(prompt, 3) or as_numbers(prompt, 2)
            shown = EXAMPLE_POINT if bare is None else f"points {','.join(f'{number:g}' for number in bare)},+"
            raise PromptError(
                f"{prompt!r:.80} is no prompt; give {{{shown}}}, or to add(...) such as samkit.Point((60, 70, 30), 1)",
                options=(shown,),
            )
        if isinstance(prompt, Point | SlicePoint):
            _check_label(prompt.label)
        if isinstance(prompt, SliceBox):
            _check_order(prompt)
        if not isinstance(prompt.structure, str):
            raise PromptError(f"structure is {prompt.structure!r:.80}; give a name, or '' for none")


def _check_label(label: object) -> None:
    """Raise PromptError for what is neither FOREGROUND nor BACKGROUND: a network would take any number for a token."""
    is_whole = isinstance(label, Integral) and not isinstance(label, bool)
    if not is_whole or label not in (FOREGROUND, BACKGROUND):
        raise PromptError(
            f"the label of a point is {label!r:.40}; give {FOREGROUND} (samkit.prompts.FOREGROUND) on the object, or "
            f"{BACKGROUND} (samkit.prompts.BACKGROUND) beside it"
        )


def _check_order(box: SliceBox) -> None:
    """Raise PromptError where the corners have changed places: the network has a token for each."""
    (x0, x1), (y0, y1) = sorted((box.x0, box.x1)), sorted((box.y0, box.y1))
    if (x0, y0, x1, y1) != (box.x0, box.y0, box.x1, box.y1):
        meant = ", ".join(f"{number:g}" for number in (x0, y0, x1, y1))
        raise PromptError(
            f"{box!r:.120} has its corners the other way round, needed are x0 <= x1 and y0 <= y1; "
            f"give samkit.SliceBox({meant})"
        )


def check_flag(name: str, value: object) -> None:
    """Raise OptionError for what is neither True nor False: any text would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise OptionError(f"{name} is {value!r:.40}; give True or False")


def check_together(index: object, positive: object, apart: Sequence[object]) -> None:
    """Raise PromptError where the numbers of a click are given one by one."""
    if apart or (_is_number(index) and _is_number(positive)):
        numbers = [f"{value}" for value in (index, positive, *apart) if _is_number(value)]
        shown = f"points {','.join(numbers)},+" if len(numbers) in (2, 3) else EXAMPLE_POINT
        raise _one_by_one("click", (index, positive, *apart), shown)


def check_corners(first: object, last: object, apart: Sequence[object]) -> None:
    """Raise PromptError where the numbers of a box are given one by one."""
    if apart:
        numbers = [f"{value}" for value in (first, last, *apart) if _is_number(value)]
        shown = f"boxes {','.join(numbers)}" if len(numbers) in (4, 6) else EXAMPLE_BOX
        raise _one_by_one("box", (first, last, *apart), shown)


def _one_by_one(act: str, given: Sequence[object], shown: str) -> PromptError:
    return PromptError(
        f"{act} was given {', '.join(f'{value!r:.20}' for value in given)}, and the numbers of a place go in together; "
        f"give {{{shown}}}",
        options=(shown,),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def numbers_of(place: Sequence[float]) -> tuple[float, ...]:
    """Return a place as floats; raises PromptError for what is none."""
    try:
        numbers = as_numbers(place, len(place))
    except TypeError:
        numbers = None
    if numbers is None:
        raise PromptError(
            f"a place is {place!r:.80}, needed are finite numbers in order; give them together, such as (60, 70, 30), "
            "or (x, y) on a picture"
        )
    return numbers


def triple_of(place: Sequence[float], world: bool) -> Triple:
    """Return a place in a volume as three numbers; raises PromptError where there are others."""
    if len(place) != 3:
        wanted = "x, y, z in millimetres" if world else "i, j, k, or x, y, z in millimetres with world=True"
        raise PromptError(f"a place in a volume has three numbers and this one has {len(place)}; give {wanted}")
    return place[0], place[1], place[2]
