"""The gate: what is wrong with a mask or a graph's output, and one sentence for the first thing that was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np

from samkit.benchmarks.record.rows import Absent, AccuracyRow, Identity
from samkit.benchmarks.record.run import Run
from samkit.export.parity import SMALL_MASK, masks_agree
from samkit.precisions import Tolerance
from samkit.runtime.backends.backend import Variant


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


def mask_fault(parity: Mapping[str, float], size: int, tolerance: Tolerance) -> str | None:
    """Return what is wrong with a mask of that `parity` (`metrics.compare_masks`), None where nothing is.

    `size` is PyTorch's mask [voxels].
    """
    overlap, differing, distance = parity["dice"], int(parity["flipped_voxels"]), parity["hd95_mm"]
    if masks_agree(differing, overlap, distance, size, tolerance):
        return None
    if size < SMALL_MASK and differing > tolerance.max_voxels:
        return f"{differing} voxels other than PyTorch's {size}, needed are at most {tolerance.max_voxels}"
    if size >= SMALL_MASK and not overlap >= tolerance.min_dice:
        return f"Dice {overlap:.5f} against PyTorch's, needed is at least {tolerance.min_dice:g}"
    return f"HD95 {distance:.3g} mm against PyTorch's, needed is at most {tolerance.max_hd95:g} mm"


def what_broke(run: Run, asked: Sequence[Variant]) -> tuple[str, ...]:
    """Return what broke first in each export and backend of a run, in sentences.

    One of `asked` that did not run is broken, too.
    """
    lines: dict[Any, tuple[float, str]] = {}
    for row in run.rows:
        one = row.identity
        variant = Variant(one.backend, one.precision, one.device)
        place = f"{one.method} on {one.backend} ({one.precision})"
        if isinstance(row, AccuracyRow | Absent) and row.failures:
            found = f"{row.failures[0]}; export again, and report it if it stays"
        elif isinstance(row, Absent) and row.is_failure:
            found = f"{place}: {row.reason}"
        elif isinstance(row, Absent) and one.stage is not None and variant in asked:
            found = f"{place} was asked for and not run: {row.reason}"
        else:
            continue
        # Of several policies the one that met the first case
        line = (float(row.failed_case or math.inf), found)
        key = (one.method, one.manifest, variant)
        lines[key] = min(lines.get(key, line), line, key=itemgetter(0))
    return tuple(sentence for _, sentence in lines.values())
