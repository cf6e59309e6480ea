"""The detector's Lightning module: YOLOv5's way to train, its published defaults.

SGD with Nesterov momentum; weights of convolutions alone decay. While warming up, all rates rise from 0 but the
biases', which fall from 0.1, and the momentum rises from 0.8; then rates fall linearly. What is validated and kept is
an exponential average of the weights, whose decay itself rises over about 2000 steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samkit.detections import Letterbox, non_max_suppression
from samkit.methods.method import DetectorRecipe
from samkit.networks.yolo import Yolo
from samkit.training.detector_loss import detector_loss
from samkit.training.detector_metric import detector_scores
from samkit.training.detector_samples import DetectorSample, DetectorSamples, Picture
from samkit.training.run_module import RunModule

_BIAS_START, _MOMENTUM_START = 0.1, 0.8
_FEWEST_WARMUP = 100
"""Steps of the shortest warm-up."""
_NOMINAL_BATCH = 64
"""The batch, accumulated, that the weight decay is meant for."""
_RAMP = 2000
_CONFIDENCE, _IOU, _MOST = 0.001, 0.6, 300
"""With which detections are scored (YOLOv5, val.py)."""


class DetectorModule(RunModule):
    """Trains a detector on pictures with boxes."""

    network: Yolo
    recipe: DetectorRecipe
    samples: DetectorSamples
    metrics = ("map50", "map50_95")
    decisive = "map50_95"

    def __init__(
        self, network: Yolo, samples: DetectorSamples, held_back: Sequence[Picture], recipe: DetectorRecipe,
        time_limit_s: float | None = None, workers: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(network, samples, recipe, time_limit_s, workers)
        self.held_back = held_back
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    @property
    def trained(self) -> Yolo:
        """Return the average of the weights."""
        return self.average

    def training_step(self, batch: list[DetectorSample], index: int) -> Tensor:
        """Return the loss of a batch."""
        images = torch.from_numpy(np.stack([sample.image for sample in batch])).to(self.device)
        rows = [
            np.concatenate([np.full((len(sample.boxes), 1), number), sample.boxes[:, [4, 0, 1, 2, 3]]], axis=1)
            for number, sample in enumerate(batch)
        ]
        boxes = torch.from_numpy(np.concatenate(rows)).to(self.device, torch.float32)
        losses = detector_loss(self.network.raw(images), boxes, self.network.config)
        self.losses.append(losses.total.detach() / len(batch))
        self.log("train/loss", losses.total / len(batch), batch_size=len(batch), prog_bar=True)
        return losses.total * self.recipe.accumulate  # YOLOv5 sums over accumulated batches, Lightning takes the mean

    def configure_optimizers(self) -> Any:
        """Return SGD with three groups: decaying weights, norms, biases."""
        recipe = self.recipe
        norms = {id(p) for m in self.network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"weight": [], "norm": [], "bias": []}
        for name, parameter in self.network.named_parameters():
            kind = "bias" if name.endswith(".bias") else "norm" if id(parameter) in norms else "weight"
            groups[kind].append(parameter)
        decay = recipe.weight_decay * recipe.batch * recipe.accumulate / _NOMINAL_BATCH
        optimiser = torch.optim.SGD(
            [{"params": groups[kind], "weight_decay": decay if kind == "weight" else 0.0} for kind in groups],
            lr=recipe.learning_rate,
            momentum=recipe.betas[0],
            nesterov=True,
        )
        factors: list[Callable[[int], float]] = [self.rate_factor, self.rate_factor, self.bias_factor]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factors)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def warmth(self, step: int) -> float:
        """Return how far the warm-up is, 0 to 1; it never takes more than half of the training."""
        steps = self.planned_steps * self.recipe.warmup_epochs / self.recipe.epochs
        steps = min(max(steps, _FEWEST_WARMUP), self.planned_steps / 2)
        return min(1.0, step / steps) if steps else 1.0

    def rate_factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by."""
        return self.warmth(step) * self._fall(step)

    def bias_factor(self, step: int) -> float:
        """Return the same for the biases, which start high: they learn how rare objects are."""
        warmth = self.warmth(step)
        return (1 - warmth) * _BIAS_START / self.recipe.learning_rate + warmth * self._fall(step)

    def _fall(self, step: int) -> float:
        left = 1 - min(1.0, self.progress(step))
        return left + (1 - left) * self.recipe.final_rate

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step with the momentum of this moment, then move the average."""
        warmth = self.warmth(self.trainer.global_step)
        for group in optimizer.param_groups:
            group["momentum"] = _MOMENTUM_START + warmth * (self.recipe.betas[0] - _MOMENTUM_START)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        decay = self.recipe.average * (1 - math.exp(-(self.trainer.global_step + 1) / _RAMP))
        with torch.no_grad():
            for kept, new in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.mul_(decay).add_(new, alpha=1 - decay)

    def validate_held_back(self) -> dict[str, float]:
        """Return the mean average precision on the held-back pictures, letterboxed as the runtime does."""
        side = self.network.config.image
        found = []
        for start in range(0, len(self.held_back), self.recipe.batch):
            batch = self.held_back[start : start + self.recipe.batch]
            letterboxes = [Letterbox.fit((p.image.shape[0], p.image.shape[1]), side) for p in batch]
            inputs = np.stack([box.apply(picture.image) for box, picture in zip(letterboxes, batch, strict=True)])
            with torch.no_grad():
                predictions = self.trained.detect(torch.from_numpy(inputs).to(self.device)).float().cpu().numpy()
            for letterbox, rows in zip(letterboxes, predictions, strict=True):
                kept = non_max_suppression(rows, _CONFIDENCE, _IOU, _MOST)
                found.append(np.concatenate([letterbox.boxes_back(kept[:, :4]), kept[:, 4:]], axis=1))
        scores = detector_scores(found, [picture.boxes for picture in self.held_back])
        return {"map50": round(scores.map50, 4), "map50_95": round(scores.map50_95, 4)}
