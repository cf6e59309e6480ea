"""One segmentation from prompts to figures: what `sam-segment` does with an open session, and logs on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samkit.imageio.study import Study
from samkit.methods.method import SliceMethod
from samkit.prompts import Prompt
from samkit.runtime.session.base import EMPTY, Session
from samkit.runtime.session.steps import Step

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segmentation:
    """What a segmentation came to; its session still holds the mask."""

    volume_ml: float | None
    """Of the mask [mL]; None for a picture."""
    seconds: dict[str, float]
    """By stage of the session's steps."""
    figures: dict[str, Any]
    """What the JSON line says besides, for this kind of method."""
    warnings: list[str]


def segment_study(
    session: Session, study: Study, prompts: Sequence[Prompt], *, propagate: bool = False
) -> Segmentation:
    """Prompt a study, let an automatic method segment the slices that no prompt is on, then let masks propagate.

    Raises PromptError and InputRefused for prompts that the method does not take before the first minute is spent.
    """
    session.set_image(study, automatic=False)
    looks = session.image_warnings
    tell(looks)
    session.check(*prompts)
    for together in session.by_step(prompts):
        session.add(*together)
        _LOG.info(_prompted(session.steps[-1], len(prompts)))
    if session.is_automatic:
        session.segment_automatically(_tenths())
        _LOG.info("%s", _passed(session.steps[-1], "segmented"))
    if propagate:
        session.propagate()
        _LOG.info("%s", _passed(session.steps[-1], "by propagation"))
    last = session.steps[-1]
    warnings = _warnings(last)
    tell(warnings)
    return Segmentation(last.volume_ml, _by_stage(session.steps), _figures(session), [*looks, *warnings])


def _figures(session: Session) -> dict[str, Any]:
    """Return what is said of the steps: crops in a volume, or slices and what was found on them."""
    last = session.steps[-1]
    if last.crops is not None:
        return {"crops": last.crops}
    figures: dict[str, Any] = {
        "voxels": last.voxels,
        "plane": session.plane,
        "sequences": list(session.sequences),
        "intensities": [{"black": one.low, "white": one.high, "origin": one.origin} for one in session.limits],
        "slices_prompted": list(session.prompted),
        "slices_answered": len({number for step in session.steps for number in step.slices}),
    }
    if isinstance(session.method, SliceMethod) and session.method.propose is not None:
        figures["boxes_found"] = sum(step.boxes for step in session.steps)
    if last.iou and len(session.steps) == 1:
        figures["iou_predicted"] = [round(value, 4) for value in last.iou]
    if session.structures:
        counts = np.bincount(session.labels().ravel(), minlength=len(session.structures) + 1)
        figures["structures"] = {name: int(counts[index]) for index, name in enumerate(session.structures, 1)}
    return figures


def _warnings(last: Step) -> list[str]:
    warnings = [] if last.voxels > 0 else [EMPTY]
    if last.limit_reached:
        warnings.append("the object goes on beyond the crops that one click may add; click on its end to follow it")
    return warnings


def _by_stage(steps: Sequence[Step]) -> dict[str, float]:
    """Return the seconds of all steps by stage; their totals are the sum of the others."""
    total: dict[str, float] = {}
    for step in steps:
        for stage, spent in step.seconds.items():
            if stage != "total":
                total[stage] = total.get(stage, 0.0) + spent
    return total


# --- Progress ---


def tell(warnings: Sequence[str]) -> None:
    """Show warnings among the progress; the JSON line repeats them."""
    for warning in warnings:
        _LOG.info("warning: %s", warning)


def _prompted(step: Step, prompts: int) -> str:
    """Return a line on one of `prompts` clicks in a volume, or on all of them where slices got them at once."""
    seconds = step.seconds["total"]
    if step.crops is None:
        return f"{prompts} prompt(s) on {len(step.slices)} slice(s), {seconds:.2f} s"
    return f"click {step.number} of {prompts}: {step.volume_ml:.2f} mL, {step.crops} crop(s), {seconds:.2f} s"


def _passed(step: Step, how: str) -> str:
    return f"{len(step.slices)} slice(s) {how}, {step.seconds['total']:.2f} s"


def _tenths() -> Callable[[int, int], None]:
    """Return a report of slices done that speaks up ten times at most."""
    said = 0

    def report(done: int, count: int) -> None:
        nonlocal said
        if done * 10 // count > said:
            said = done * 10 // count
            _LOG.info("slice %d of %d", done, count)

    return report
