"""Training by clicks on volumes: the cases, their split, the spacing that they ask for."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from samkit.errors import InputRefused
from samkit.geometry import Triple
from samkit.methods import get_method
from samkit.methods.method import ClickRecipe, VolumeMethod
from samkit.networks.network import Network
from samkit.networks.sam3d import Sam3D
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.training.click_cases import CheckedCase, CheckedCases, check_cases, find_cases
from samkit.training.click_module import ClickModule
from samkit.training.click_samples import TrainingSamples, cache_cases, validation_samples
from samkit.training.plan import TrainingPlan
from samkit.training.task import Task

_log = logging.getLogger(__name__)

HELD_BACK = 5
"""One case in this many is held back."""
_SPLIT_SEED = 5
FIT_MARGIN = 1.05
"""How much longer than the largest target the patch is, where the spacing is chosen from the labels."""


class ClickTask(Task):
    """Cases of volumes; each target of a held-back one is validated from its own first click."""

    def __init__(self, checked: CheckedCases) -> None:
        self.training, self.held = split_cases(checked.cases)
        self.counts = {
            "cases": len(checked.cases),
            "trained_on": len(self.training),
            "held_back": len(self.held),
        }
        self.notes: dict[str, Any] = {"skipped": len(checked.skipped)}
        if checked.remarks:
            self.notes["remarks"] = list(checked.remarks)
        self.splitting = f"{len(self.training)} cases to train on, {len(self.held)} held back"

    @classmethod
    def of(cls, folder: Path, plan: TrainingPlan) -> Self:
        """Return the task of a folder's cases, read and checked; what is skipped or unusual is logged as a warning."""
        recipe = cast(ClickRecipe, plan.recipe)
        cases = find_cases(folder)
        checked = check_cases(cases, plan.label, recipe.target)
        for sentence in (*checked.skipped, *checked.remarks):
            _log.warning("%s", sentence)
        _log.info("%d cases seen, %d skipped", len(cases), len(checked.skipped))
        return cls(checked)

    def settle(self, plan: TrainingPlan, before: Mapping[str, Any] | None) -> TrainingPlan:
        """Return the plan with the spacing at which the largest targets fill the patch, if the recipe asks for it."""
        config, recipe = cast(Sam3DConfig, plan.config), cast(ClickRecipe, plan.recipe)
        if not recipe.fit_spacing:
            return plan
        if before is None:
            finest = float(np.median([case.finest_mm for case in self.training]))
            i, j, k = (max(case.extent_mm[axis] for case in self.training) for axis in range(3))
            spacing = fitted_spacing((i, j, k), config.patch, finest)
            _log.info("spacing %s mm: the largest of the training targets and a margin fill the patch", spacing)
        else:
            i, j, k = before["spacing"]
            spacing = (i, j, k)
            _log.info("spacing %s mm, as the run began", spacing)
        return replace(plan, config=replace(config, spacing=spacing))

    def module(self, network: Network, plan: TrainingPlan, time_limit_s: float | None, workers: int) -> ClickModule:
        """Return the module, the cases resampled to the network's grid."""
        method, config = cast(VolumeMethod, get_method(plan.method)), cast(Sam3DConfig, plan.config)
        recipe = cast(ClickRecipe, plan.recipe)
        samples = TrainingSamples(cache_cases(self.training, config, recipe.target), method, config, recipe)
        held = validation_samples(cache_cases(self.held, config, recipe.target), method, config, recipe.seed)
        self.notes = {**self.notes, "held_back_targets": len(held)}
        return ClickModule(
            cast(Sam3D, network), samples, held, recipe, plan.refinement, time_limit_s=time_limit_s, workers=workers
        )


def split_cases(cases: tuple[CheckedCase, ...]) -> tuple[list[CheckedCase], list[CheckedCase]]:
    """Return the cases to train on and those held back, one in five by a fixed seed over the sorted names."""
    if len(cases) < 2:
        raise InputRefused(
            "too-few-cases", "there is 1 usable case, at least 2 are needed: one trains, one is held back",
            "add cases",
        )  # fmt: skip
    ordered = sorted(cases, key=lambda checked: checked.case.name)
    drawn = np.random.default_rng(_SPLIT_SEED).permutation(len(ordered))[: max(1, len(ordered) // HELD_BACK)]
    held = {int(number) for number in drawn}
    return (
        [case for number, case in enumerate(ordered) if number not in held],
        [case for number, case in enumerate(ordered) if number in held],
    )


def fitted_spacing(extent_mm: Triple, patch: int, finest_mm: float) -> Triple:
    """Return the spacing [mm] at which the largest targets and a margin fill the patch, along each RAS axis.

    The logits lie at a quarter of the patch, so every millimetre of the patch that no target needs costs sharpness.
    `extent_mm` is the longest box edge of any training target along each axis. The spacing is
    `FIT_MARGIN * extent_mm / patch`, rounded up to 0.05 mm; never finer than half the finest voxel edge of the data,
    where there is no more to see and less context, nor than half the coarsest axis.

    >>> fitted_spacing((27.0, 44.0, 35.0), 64, 1.0)
    (0.5, 0.75, 0.6)
    """
    wanted = [FIT_MARGIN * extent / patch for extent in extent_mm]
    floor = max(0.5 * finest_mm, 0.5 * max(wanted))
    a, b, c = (round(math.ceil(round(max(w, floor) / 0.05, 6)) * 0.05, 2) for w in wanted)
    return a, b, c
