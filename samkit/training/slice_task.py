"""Training on slices: the cases of a folder, their split, what is held back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

from samkit.errors import InputRefused
from samkit.imageio.frames import sides_unsure
from samkit.methods import get_method
from samkit.methods.method import SliceMethod, SliceRecipe
from samkit.networks.network import Network
from samkit.training.plan import TrainingPlan
from samkit.training.slice_cases import FoundCases, SliceCase, check_slice_cases, hold_back
from samkit.training.slice_module import SliceModule
from samkit.training.slice_readers import find_slice_cases
from samkit.training.slice_samples import SliceSamples, SliceStore, is_prompted, list_slices
from samkit.training.task import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitSlices:
    """Which slices of each case train and which are held back; a volume may be on both sides, with other slices."""

    training: list[tuple[int, ...]]
    """Per case, the places of slices in it."""
    held_back: list[tuple[int, ...]]
    said: str
    """How they were told apart, for people."""
    counts: Mapping[str, Any]
    notes: Mapping[str, Any]

    @classmethod
    def of(cls, found: FoundCases) -> Self:
        """Return the split that `hold_back` makes."""
        split = hold_back(found.cases)
        training, held = (_numbers(found.cases, side) for side in (split.training, split.held_back))
        counts = {
            "cases": len(found.cases),
            "trained_on": sum(map(len, training)),
            "held_back": sum(map(len, held)),
        }
        notes: dict[str, Any] = {"layout": found.layout, "skipped": len(found.skipped), "split": split.said}
        if found.remarks:
            notes["remarks"] = list(found.remarks)
        return cls(training, held, split.said, counts, notes)


class SliceTask(Task):
    """Cases of slices; those that hold none of the target train where the recipe wants them."""

    def __init__(self, found: FoundCases) -> None:
        if found.layout == "boxes":
            raise InputRefused(
                "boxes-alone", "the data has boxes and no masks, which teach a detector alone",
                "train one with {part} detector of medsam-yolo, or give masks", options=("part",),
            )  # fmt: skip
        self.cases = found.cases
        self.split = SplitSlices.of(found)
        self.splitting = self.split.said
        self.counts, self.notes = self.split.counts, self.split.notes

    def settle(self, plan: TrainingPlan, before: Mapping[str, Any] | None) -> TrainingPlan:
        """Return the plan as it is."""
        return plan

    def module(self, network: Network, plan: TrainingPlan, time_limit_s: float | None, workers: int) -> SliceModule:
        """Return the module, every case read."""
        method, recipe = cast(SliceMethod, get_method(plan.method)), cast(SliceRecipe, plan.recipe)
        store = SliceStore(self.cases, method, plan.config, plan.label)
        samples = SliceSamples(store, self.split.training, method, plan.config, recipe)
        every, with_target = list_slices(store, self.split.held_back)
        if not with_target:
            raise InputRefused(
                "no-foreground", "no slice that is held back holds any of the target",
                "add cases, or name a value that they hold with {label}", options=("label",),
            )  # fmt: skip
        held = with_target if is_prompted(recipe) else every
        counts = {"slices_with_target": len(samples.pools[0]), "held_back_with_target": len(with_target)}
        self.notes = {**self.notes, **counts}
        return SliceModule(
            network, method, plan.config, samples, store, held, recipe, time_limit_s=time_limit_s, workers=workers
        )


def find_slices(folder: Path, plan: TrainingPlan, *, layout: str | None, patterns: Mapping[str, str]) -> FoundCases:
    """Return the cases of a folder that can be used, read; what is skipped or unusual is logged as a warning."""
    method = cast(SliceMethod, get_method(plan.method))
    sequences = plan_sequences(method, plan)
    found = check_slice_cases(
        find_slice_cases(folder, layout, sequences=sequences, patterns=patterns, plane=method.plane)
    )
    sided = sides_unsure(found.unsure, len(found.cases), method.structures(_whole_config(method, plan)))
    found = replace(found, remarks=(*found.remarks, *sided))
    for sentence in (*found.skipped, *found.remarks):
        _log.warning("%s", sentence)
    _log.info("%d cases of %s to use, %d skipped", len(found.cases), found.layout, len(found.skipped))
    return found


def plan_sequences(method: SliceMethod, plan: TrainingPlan) -> tuple[str, ...]:
    """Return the sequences that the planned network takes; a part takes those of the whole network."""
    return method.sequences(_whole_config(method, plan))


def _whole_config(method: SliceMethod, plan: TrainingPlan) -> Any:
    return method.sizes[plan.recipe.size] if plan.part else plan.config


def _numbers(cases: Sequence[SliceCase], chosen: Sequence[SliceCase]) -> list[tuple[int, ...]]:
    """Return, for each of `cases`, which of its slices are among the `chosen`, by their place in it."""
    # Names alone may repeat: of x.png and x.jpg, or of files in other folders that a dataset.json lists.
    of = {(case.name, case.images): case.slices for case in chosen}
    return [tuple(case.slices.index(n) for n in of.get((case.name, case.images), ())) for case in cases]
