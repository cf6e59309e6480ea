"""The gate: how far a backend may be from PyTorch float32, and one sentence for the first thing that was farther."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from samkit.benchmarks.record.rows import Absent, AccuracyRow, Identity
from samkit.benchmarks.record.run import Run
from samkit.export.parity import SMALL_MASK, masks_agree
from samkit.precisions import PRECISIONS, Tolerance
from samkit.runtime.backends.backend import Variant

SESSION = "the session"
"""What is to blame where no graph can be told."""


@dataclass(frozen=True)
class MaskLimits:
    """How far masks may be from those of PyTorch float32."""

    min_dice: Mapping[str, float] = field(default_factory=lambda: {one.name: one.min_dice for one in PRECISIONS})
    """Per precision; a mask under SMALL_MASK voxels is judged by the voxels that differ, as every export's parity."""
    max_hd95_mm: float | None = None
    """Largest HD95 [mm]; by default one voxel along its longest edge."""

    @classmethod
    def of(cls, min_dice: float | None, max_hd95_mm: float | None) -> MaskLimits:
        """Return the limits with one Dice for every precision, by default each one's own."""
        limits = cls(max_hd95_mm=max_hd95_mm)
        return limits if min_dice is None else replace(limits, min_dice=dict.fromkeys(limits.min_dice, min_dice))

    def __str__(self) -> str:
        least = ", ".join(f"{value:g} in {precision}" for precision, value in self.min_dice.items())
        farthest = "a voxel's longest edge" if self.max_hd95_mm is None else f"{self.max_hd95_mm:g} mm"
        return (
            f"the gate: a Dice of at least {least} against PyTorch's mask, under {SMALL_MASK} voxels at most "
            f"{Tolerance.max_voxels} flipped voxels in its place; HD95 at most {farthest}"
        )

    def tolerance(self, precision: str, spacing_mm: Sequence[float]) -> Tolerance:
        """Return what a mask of voxels of that size is held to, distances in mm."""
        farthest = max(spacing_mm) if self.max_hd95_mm is None else self.max_hd95_mm
        return Tolerance(0.0, self.min_dice[precision], max_hd95=farthest)


@dataclass(frozen=True)
class GraphCall:
    """One run of one graph."""

    graph: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Deviation:
    """The first thing that was not as it should be."""

    where: str
    """Case and click."""
    graph: str
    measure: str
    """What was measured, found and needed."""
    call: GraphCall | None = None
    """What the graph was given, where its output is to blame."""
    node: str | None = None
    """The first node whose result is not finite, where one is not."""

    def sentence(self, identity: Identity) -> str:
        """Return all of it, of a backend whose row is of that identity."""
        node = f"; the first node that is not finite is {self.node}" if self.node else ""
        return (
            f"{identity.method}, {self.graph} on {identity.backend} ({identity.precision}, {identity.device}), "
            f"{self.where}: {self.measure}{node}"
        )


def check_mask(
    parity: Mapping[str, float], size: int, tolerance: Tolerance, graph: str, where: str, what: str
) -> Deviation | None:
    """Return what is wrong with a mask, None where nothing is.

    `parity` as `metrics.compare_masks` gives it, `size` is PyTorch's mask [voxels], `what` calls it.
    """
    overlap, differing, distance = parity["dice"], int(parity["flipped_voxels"]), parity["hd95_mm"]
    if masks_agree(differing, overlap, distance, size, tolerance):
        return None
    if size < SMALL_MASK and differing > tolerance.max_voxels:
        found = f"{differing} voxels other than PyTorch's {size}, needed are at most {tolerance.max_voxels}"
    elif size >= SMALL_MASK and not overlap >= tolerance.min_dice:
        found = f"Dice {overlap:.5f} against PyTorch's, needed is at least {tolerance.min_dice:g}"
    else:
        found = f"HD95 {distance:.3g} mm against PyTorch's, needed is at most {tolerance.max_hd95:g} mm"
    return Deviation(where, graph, f"{what} has {found}")


def what_broke(run: Run, asked: Sequence[Variant]) -> tuple[str, ...]:
    """Return what broke first in each export and backend of a run, in sentences.

    One of `asked` that did not run is broken, too.
    """
    lines: dict[tuple[Any, ...], tuple[float, str]] = {}
    for row in run.rows:
        if not isinstance(row, AccuracyRow | Absent):
            continue
        one = row.identity
        place = f"{one.method} on {one.backend} ({one.precision})"
        found = [f"{sentence}; export again, and report it if it stays" for sentence in row.failures]
        if isinstance(row, Absent) and not found:
            if row.is_failure:
                found = [f"{place}: {row.reason}"]
            elif one.stage is not None and Variant(one.backend, one.precision, one.device) in asked:
                found = [f"{place} was asked for and not run: {row.reason}"]
        if found:
            key = (one.method, one.manifest, one.backend, one.precision, one.device)
            # Of several policies the one that met the first case
            line = (float(row.failed_case or math.inf), found[0])
            lines[key] = min(lines.get(key, line), line, key=lambda each: each[0])
    return tuple(sentence for _, sentence in lines.values())
