"""Which task a plan needs: clicks on volumes, slices, or a detector's boxes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from samkit.methods.method import ClickRecipe, DetectorRecipe
from samkit.training.click_task import ClickTask
from samkit.training.detector_task import DetectorTask
from samkit.training.plan import TrainingPlan
from samkit.training.slice_task import SliceTask, find_slices
from samkit.training.task import Task


def find_task(
    data: Path,
    plan: TrainingPlan,
    *,
    layout: str | None = None,
    patterns: Mapping[str, str] = MappingProxyType({}),
) -> Task:
    """Return the task of the cases in `data`; raises InputRefused where they can't be used.

    `layout` and `patterns` are those of `slice_readers.find_slice_cases`; each case skipped is a warning in the log.
    """
    if isinstance(plan.recipe, ClickRecipe):
        return ClickTask.of(data, plan)
    found = find_slices(data, plan, layout=layout, patterns=patterns)
    return DetectorTask(found, plan) if isinstance(plan.recipe, DetectorRecipe) else SliceTask(found)
