"""Training of a detector: pictures with boxes, or volumes whose labels are boxed; anchors that fit them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from samkit.methods.method import DetectorRecipe
from samkit.networks.network import Network
from samkit.networks.yolo import Yolo
from samkit.networks.yolo_config import YoloConfig
from samkit.training.detector_module import DetectorModule
from samkit.training.detector_samples import (
    ENOUGH,
    DetectorSamples,
    box_sizes,
    fitted_anchors,
    fitting_share,
    load_pictures,
)
from samkit.training.plan import TrainingPlan
from samkit.training.slice_cases import FoundCases
from samkit.training.slice_task import SplitSlices
from samkit.training.task import Task

_log = logging.getLogger(__name__)


class DetectorTask(Task):
    """Pictures, empty ones among them, split as slices are."""

    def __init__(self, found: FoundCases, plan: TrainingPlan) -> None:
        classes = cast(YoloConfig, plan.config).classes
        split = SplitSlices.of(found)
        self.training = load_pictures(found.cases, split.training, plan.label, classes)
        self.held = load_pictures(found.cases, split.held_back, plan.label, classes)
        self.counts, self.splitting = split.counts, split.said
        self.notes = {
            **split.notes,
            "boxes": sum(len(picture.boxes) for picture in self.training),
            "held_back_boxes": sum(len(picture.boxes) for picture in self.held),
        }

    def settle(self, plan: TrainingPlan, before: Mapping[str, Any] | None) -> TrainingPlan:
        """Return the plan with anchors that fit the training boxes, where the config's do not."""
        config = cast(YoloConfig, plan.config)
        if before is not None:
            return replace(plan, config=replace(config, anchors=tuple(tuple(grid) for grid in before["anchors"])))
        sizes = box_sizes(self.training, config.image)
        share = fitting_share(sizes, _pairs(config))
        fitted = replace(config, anchors=fitted_anchors(sizes, config))
        better = fitting_share(sizes, _pairs(fitted))
        if share >= ENOUGH or better <= share:
            _log.info("anchors stay: %.1f %% of %d boxes have a fitting one", 100 * share, len(sizes))
            return plan
        _log.info(
            "anchors fitted to %d boxes by k-means: %.1f %% have one that fits, %.1f %% had one",
            len(sizes), 100 * better, 100 * share,
        )  # fmt: skip
        return replace(plan, config=fitted)

    def module(self, network: Network, plan: TrainingPlan, time_limit_s: float | None, workers: int) -> DetectorModule:
        """Return the module."""
        recipe = cast(DetectorRecipe, plan.recipe)
        samples = DetectorSamples(self.training, cast(YoloConfig, plan.config), recipe)
        return DetectorModule(
            cast(Yolo, network), samples, self.held, recipe, time_limit_s=time_limit_s, workers=workers
        )


def _pairs(config: YoloConfig) -> np.ndarray:
    """Return width and height (m, 2) of all anchors."""
    return np.array(config.anchors, np.float64).reshape(-1, 2)
