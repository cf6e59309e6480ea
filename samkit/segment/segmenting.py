"""One segmentation from prompts to figures: what `sam-segment` does with an open session, and says on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from samkit.errors import InputRefused
from samkit.imageio.study import Study
from samkit.methods.method import SliceMethod
from samkit.prompts import Prompt
from samkit.runtime.client.remote_session import RemoteSession
from samkit.runtime.session.slice_session import SliceSession
from samkit.runtime.session.steps import SliceStep
from samkit.runtime.session.volume_session import Session, as_point

AnySession: TypeAlias = Session | SliceSession | RemoteSession
Say: TypeAlias = Callable[[str], None]
"""Tells a person how far the work is."""


@dataclass(frozen=True)
class Done:
    """What a segmentation came to."""

    volume_ml: float | None
    seconds: dict[str, float]
    figures: dict[str, Any]
    """What the JSON line says besides, for this kind of method."""
    warnings: list[str] = field(default_factory=list)


def segment_given(session: AnySession, given: Study, prompts: Sequence[Prompt], propagate: bool, say: Say) -> Done:
    """Segment what is given in the way of the session's method; raises PromptError and InputRefused."""
    if isinstance(session, SliceSession) or (isinstance(session, RemoteSession) and session.is_sliced):
        return segment_slices(session, given, prompts, propagate, say)
    return segment_volume(session, given, prompts, say)


def segment_volume(session: Session | RemoteSession, given: Study, prompts: Sequence[Prompt], say: Say) -> Done:
    """Click on a scan; raises PromptError and InputRefused for prompts that the method does not take, before any."""
    if len(given.scans) > 1:
        raise InputRefused(
            "too-many-sequences", f"{session.method.name} takes one scan, and {len(given.scans)} are given", "give one"
        )
    points = [as_point(prompt, session.method.name) for prompt in prompts]
    session.set_volume(given.scan.volume)
    _check(session, points)
    seconds: dict[str, float] = {}
    for number, point in enumerate(points, 1):
        step = session.add_point(point)
        say(
            f"click {number} of {len(points)}: {step.volume_ml:.2f} mL, {step.crops} crop(s), "
            f"{step.seconds['total']:.2f} s"
        )
        _add_seconds(seconds, step.seconds)
    last = session.steps[-1]
    warnings = _empty_warning(last.volume_ml > 0)
    if last.limit_reached:
        warnings.append("the object goes on beyond the crops that one click may add; click on its end to follow it")
    return Done(last.volume_ml, seconds, {"crops": last.crops}, warnings)


def segment_slices(
    session: SliceSession | RemoteSession, given: Study, prompts: Sequence[Prompt], propagate: bool, say: Say
) -> Done:
    """Prompt slices or a picture, let an automatic method decide on the others, then let masks lead on."""
    if given.picture is not None:
        session.set_picture(given.picture)
    else:
        volumes = {name: scan.volume for name, scan in given.scans.items()}
        session.set_volume(volumes)
    _check(session, prompts)
    seconds: dict[str, float] = {}
    last: SliceStep | None = None
    if prompts:
        last = session.add(*prompts)
        say(f"{len(prompts)} prompt(s) on {len(session.prompted)} slice(s), {last.seconds['total']:.2f} s")
    if session.is_automatic:
        last = session.segment_all(_tenths(say))
        say(f"{len(last.slices)} slice(s) segmented, {last.seconds['total']:.2f} s")
    if propagate:
        last = session.propagate()
        say(f"{len(last.slices)} slice(s) by propagation, {last.seconds['total']:.2f} s")
    for step in session.steps:
        _add_seconds(seconds, step.seconds)
    volume = None if last is None else last.volume_ml
    figures: dict[str, Any] = {
        "voxels": 0 if last is None else last.voxels,
        "plane": None if given.picture is not None else session.plane,
        "sequences": list(session.sequences),
        "slices_prompted": list(session.prompted),
        "slices_answered": len({number for step in session.steps for number in step.slices}),
    }
    if isinstance(session.method, SliceMethod) and session.method.propose is not None:
        figures["boxes_found"] = sum(step.boxes for step in session.steps)
    if last is not None and last.iou and len(session.steps) == 1:
        figures["iou_predicted"] = [round(value, 4) for value in last.iou]
    if session.structures:
        counts = np.bincount(session.labels().ravel(), minlength=len(session.structures) + 1)
        figures["structures"] = {name: int(counts[index]) for index, name in enumerate(session.structures, 1)}
    return Done(volume, seconds, figures, _empty_warning(last is not None and last.voxels > 0))


def _check(session: AnySession, prompts: Sequence[Prompt]) -> None:
    """Raise PromptError and InputRefused for any of the prompts, before the first minute is spent."""
    if isinstance(session, RemoteSession):
        if prompts:
            session.check(*prompts)  # one question for all
        return
    for prompt in prompts:
        if isinstance(session, Session):
            session.check_point(as_point(prompt, session.method.name))
        else:
            session.check(prompt)


def _tenths(say: Say) -> Callable[[int, int], None]:
    """Return a report of slices done that speaks up ten times at most."""
    said = 0

    def report(done: int, count: int) -> None:
        nonlocal said
        if done * 10 // count > said:
            said = done * 10 // count
            say(f"slice {done} of {count}")

    return report


def _add_seconds(total: dict[str, float], step: Mapping[str, float]) -> None:
    for stage, spent in step.items():
        if stage != "total":
            total[stage] = total.get(stage, 0.0) + spent


def _empty_warning(has_mask: bool) -> list[str]:
    return [] if has_mask else ["the mask is empty"]
