"""The 3D methods' Lightning module: one optimiser step of the refinement loop, two learning rates, their schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samkit.methods.method import ClickRecipe
from samkit.networks.sam3d import Sam3D
from samkit.training.click_samples import Sample, TrainingSamples, validation_rng
from samkit.training.click_stages import REPORTED_CLICKS, dice_per_click, refinement_loss
from samkit.training.run_module import RunModule

_FALL = 0.1
"""What the learning rate is multiplied by at each milestone."""


class ClickModule(RunModule):
    """Trains a network on samples with simulated clicks."""

    network: Sam3D
    recipe: ClickRecipe
    samples: TrainingSamples
    metrics = tuple(f"dice_{click}" for click in REPORTED_CLICKS)
    decisive = "dice_5"

    def __init__(
        self, network: Sam3D, samples: TrainingSamples, held_back: Sequence[Sample], recipe: ClickRecipe,
        refinement: str, time_limit_s: float | None = None, workers: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(network, samples, recipe, time_limit_s, workers)
        self.held_back = held_back
        self.refinement = refinement

    def training_step(self, batch: list[Sample], index: int) -> Tensor:
        """Return the loss of a batch: the sum over its stages."""
        rngs = [self.samples.click_rng(sample.key) for sample in batch]
        stages = self.stages_at(self.progress(self.trainer.global_step))
        loss = refinement_loss(self.network, batch, rngs, stages, self.refinement)
        self.losses.append(loss.detach() / stages)
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW with two learning rates: encoder and adapter; prompt encoder and mask decoder."""
        groups: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                prompting = name.startswith(("prompt_encoder.", "mask_decoder."))
                rate = self.recipe.prompt_learning_rate if prompting else self.recipe.learning_rate
                groups.setdefault(rate, []).append(parameter)
        optimiser = torch.optim.AdamW(
            [{"params": parameters, "lr": rate} for rate, parameters in groups.items()],
            betas=self.recipe.betas,
            weight_decay=self.recipe.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self.rate_factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate_factor(self, step: int) -> float:
        """Return what the learning rates are multiplied by: a linear rise, then falls at the milestones."""
        done = self.progress(step)
        return self.rise(step) * float(_FALL ** sum(done >= milestone for milestone in self.recipe.milestones))

    def stages_at(self, done: float) -> int:
        """Return how many stages a sample runs through at `done` of the training: they grow slowly first."""
        recipe = self.recipe
        if recipe.stage_growth <= 0:
            return recipe.stages
        return min(recipe.stages, 1 + int(recipe.stages * (done / recipe.stage_growth) ** 3))

    def validate_held_back(self) -> dict[str, float]:
        """Return the mean Dice of the held-back targets at the reported clicks, the same clicks each time."""
        own = self.held_back[self.trainer.global_rank :: self.trainer.world_size]
        sums = np.zeros(len(REPORTED_CLICKS) + 1)
        self.network.eval()
        for start in range(0, len(own), self.recipe.batch):
            batch = own[start : start + self.recipe.batch]
            rngs = [validation_rng(self.recipe.seed, sample.key) for sample in batch]
            rows = dice_per_click(self.network, batch, rngs, self.refinement, max(REPORTED_CLICKS))
            sums[:-1] += rows[:, [click - 1 for click in REPORTED_CLICKS]].sum(axis=0)
            sums[-1] += len(batch)
        shared = torch.tensor(sums, device=self.device, dtype=torch.float32)
        totals = self.trainer.strategy.reduce(shared, reduce_op="sum")
        return {
            f"dice_{click}": round(float(total / totals[-1]), 4)
            for click, total in zip(REPORTED_CLICKS, totals, strict=False)
        }
