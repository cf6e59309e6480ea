"""Keys of samples: `epoch * samples + position`. All that is random about a sample comes from a seed and its key."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler


class KeySampler(Sampler[int]):
    """The keys of one epoch, every `replicas`-th from `rank` on; each replica gets as many."""

    def __init__(self, samples: int, rank: int, replicas: int) -> None:
        self.samples, self.rank, self.replicas = samples, rank, replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the epoch that begins; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.samples
        return iter(range(start + self.rank, start + len(self) * self.replicas, self.replicas))

    def __len__(self) -> int:
        return max(1, self.samples // self.replicas)
