"""The Lightning module: one optimiser step of the refinement loop, its two learning rates and their schedule."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from samkit.methods.method import Recipe
from samkit.models.sam3d import Sam3D
from samkit.training.refinement import REPORTED_CLICKS, dice_per_click, refinement_loss
from samkit.training.samples import KeySampler, Sample, TrainingSamples, validation_rng

_FALL = 0.1
"""What the learning rate is multiplied by at each milestone."""


class TrainingModule(lightning.LightningModule):
    """Trains a network on samples with simulated clicks. The network alone is what checkpoints of ours hold."""

    def __init__(
        self, network: Sam3D, samples: TrainingSamples, held_back: Sequence[Sample], recipe: Recipe, refinement: str,
        time_limit_s: float | None = None, workers: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.samples = samples
        self.held_back = held_back
        self.recipe = recipe
        self.refinement = refinement
        self.time_limit_s = time_limit_s
        self.workers = workers
        self.seconds_before = 0.0
        self.best_dice = -1.0
        self.losses: list[Tensor] = []
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the time trained [s], earlier attempts of a resumed run included."""
        return self.seconds_before + time.monotonic() - self._started

    @property
    def is_out_of_time(self) -> bool:
        """Return whether the time limit has passed."""
        return self.time_limit_s is not None and self.seconds >= self.time_limit_s

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of one epoch; each replica draws its own keys."""
        sampler = KeySampler(len(self.samples), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            self.samples,
            batch_size=min(self.recipe.batch, len(sampler)),
            sampler=sampler,
            drop_last=True,
            collate_fn=list,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def transfer_batch_to_device(self, batch: list[Sample], device: torch.device, dataloader_idx: int) -> list[Sample]:
        """Leave samples on the host, where clicks are drawn; the refinement loop moves what the network needs."""
        return batch

    def training_step(self, batch: list[Sample], index: int) -> Tensor:
        """Return the loss of a batch: the sum over its stages."""
        rngs = [self.samples.click_rng(sample.key) for sample in batch]
        stages = self.stages_at(self.progress(self.trainer.global_step))
        loss = refinement_loss(self.network, batch, rngs, stages, self.refinement)
        self.losses.append(loss.detach() / stages)
        self.log("train/loss", loss, batch_size=len(batch), prog_bar=True)
        return loss

    def on_train_start(self) -> None:
        """Start the clock: what came before (loading, checking) is not training."""
        self._started = time.monotonic()

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Stop after this batch where the time is up on any replica."""
        if self.time_limit_s is not None:
            up = torch.tensor(float(self.is_out_of_time), device=self.device)
            if float(self.trainer.strategy.reduce(up, reduce_op="sum")) > 0:
                self.trainer.should_stop = True

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
        rise = min(1.0, (step + 1) / self.recipe.warmup_steps) if self.recipe.warmup_steps else 1.0
        return rise * float(_FALL ** sum(done >= milestone for milestone in self.recipe.milestones))

    def progress(self, step: int) -> float:
        """Return how far the training is, 0 to 1: by its steps, or by its time limit where that is further on.

        A training that the clock cuts goes through all of its schedule, too.
        """
        done = step / max(1, int(self.trainer.estimated_stepping_batches))
        return done if self.time_limit_s is None else max(done, self.seconds / self.time_limit_s)

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
        self.network.train()
        shared = torch.tensor(sums, device=self.device, dtype=torch.float32)
        totals = self.trainer.strategy.reduce(shared, reduce_op="sum")
        return {
            f"dice_{click}": round(float(total / totals[-1]), 4)
            for click, total in zip(REPORTED_CLICKS, totals, strict=False)
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run needs besides weights and optimiser: plain numbers."""
        checkpoint["samkit"] = {"seconds": self.seconds, "best_dice": self.best_dice}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what `on_save_checkpoint` kept."""
        self.seconds_before = float(checkpoint["samkit"]["seconds"])
        self.best_dice = float(checkpoint["samkit"]["best_dice"])
