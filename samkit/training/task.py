"""Task: what one kind of training does with its data. `fit.train` does the rest, the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from samkit.networks.network import Network
from samkit.training.plan import TrainingPlan
from samkit.training.run_module import RunModule


class Task(ABC):
    """The cases of one training, split into those that train and those held back."""

    counts: Mapping[str, Any]
    """`cases`, `trained_on`, `held_back`: what must not change when a run is resumed."""
    notes: Mapping[str, Any]
    """What else run.json says of the data."""
    splitting: str
    """How the cases were split, for people."""

    @abstractmethod
    def settle(self, plan: TrainingPlan, before: Mapping[str, Any] | None) -> TrainingPlan:
        """Return the plan with what the data decides; `before` is the config that a resumed run began with."""

    @abstractmethod
    def module(self, network: Network, plan: TrainingPlan, time_limit_s: float | None, workers: int) -> RunModule:
        """Return what trains `network`, its samples at hand."""
