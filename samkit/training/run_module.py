"""What every Lightning module of ours has: a network, a clock with a limit, the losses of an epoch, a metric."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sized
from typing import Any, cast

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from samkit.methods.method import Recipe
from samkit.networks.network import Network
from samkit.training.keys import KeySampler


class RunModule(lightning.LightningModule):
    """Trains a network. The network alone is what checkpoints of ours hold."""

    metrics: tuple[str, ...]
    """Names of what `validate_held_back` returns, all from 0 to 1 and better when higher."""
    decisive: str
    """The one by which the best epoch is chosen."""

    def __init__(
        self, network: Network, samples: Dataset[Any], recipe: Recipe, time_limit_s: float | None = None,
        workers: int = 0,
    ) -> None:  # fmt: skip
        """Train `network` on `samples`, which are indexed by key (see `KeySampler`)."""
        super().__init__()
        self.network = network
        self.samples = samples
        self.recipe = recipe
        self.time_limit_s = time_limit_s
        self.workers = workers
        self.seconds_before = 0.0
        self.best = -1.0
        self.losses: list[Tensor] = []
        self._started = time.monotonic()

    @abstractmethod
    def validate_held_back(self) -> dict[str, float]:
        """Return the metrics on what is held back."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of one epoch; each replica draws its own keys."""
        sampler = KeySampler(len(cast(Sized, self.samples)), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(
            self.samples,
            batch_size=min(self.recipe.batch, len(sampler)),
            sampler=sampler,
            drop_last=True,
            collate_fn=list,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    @property
    def trained(self) -> Network:
        """Return the network whose weights are kept."""
        return self.network

    @property
    def seconds(self) -> float:
        """Return the time trained [s], earlier attempts of a resumed run included."""
        return self.seconds_before + time.monotonic() - self._started

    @property
    def is_out_of_time(self) -> bool:
        """Return whether the time limit has passed."""
        return self.time_limit_s is not None and self.seconds >= self.time_limit_s

    def progress(self, step: int) -> float:
        """Return how far the training is at this step of the optimiser, 0 to 1.

        By the clock where that is further on: a training that the clock cuts goes through all of its schedule, too.
        """
        done = step / max(1, self.planned_steps)
        return done if self.time_limit_s is None else max(done, self.seconds / self.time_limit_s)

    @property
    def planned_steps(self) -> int:
        """Return the steps of the optimiser in all epochs."""
        return int(self.trainer.estimated_stepping_batches)

    def rise(self, step: int) -> float:
        """Return the factor of the learning rate while it warms up, over the first steps of the optimiser."""
        return min(1.0, (step + 1) / self.recipe.warmup_steps) if self.recipe.warmup_steps else 1.0

    def on_train_start(self) -> None:
        """Start the clock: what came before (loading, checking) is not training."""
        self._started = time.monotonic()

    def on_train_epoch_start(self) -> None:
        """Put all that trains into training mode."""
        set_training(self.network)

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Stop after this batch where the time is up on any replica."""
        if self.time_limit_s is not None:
            up = torch.tensor(float(self.is_out_of_time), device=self.device)
            if float(self.trainer.strategy.reduce(up, reduce_op="sum")) > 0:
                self.trainer.should_stop = True

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave samples on the host, where prompts are drawn; the steps move what the network needs."""
        return batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run needs besides weights and optimiser: plain numbers."""
        checkpoint["samkit"] = {"seconds": self.seconds, "best": self.best}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what `on_save_checkpoint` kept."""
        self.seconds_before = float(checkpoint["samkit"]["seconds"])
        self.best = float(checkpoint["samkit"]["best"])


def set_training(network: nn.Module) -> None:
    """Put into training mode what trains; a frozen module stays in evaluation mode, so that its statistics stay."""
    for module in network.modules():
        own = list(module.parameters())
        module.training = not own or any(parameter.requires_grad for parameter in own)
