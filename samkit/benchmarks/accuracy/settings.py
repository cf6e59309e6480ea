"""What `sam-bench accuracy` is asked for, the same for all exports of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from samkit.benchmarks.accuracy.gate import MaskLimits
from samkit.benchmarks.cases.simulated_user import POLICIES
from samkit.metrics import TOLERANCE_MM


@dataclass(frozen=True)
class AccuracySettings:
    """What is measured, on what, and what of it is kept."""

    backends: tuple[str, ...]
    """Of BACKENDS; those left out of which a table has a column get a row that says so."""
    data: Path | None = None
    """A folder as `sam-train` reads it; None: phantoms."""
    label: int | None = None
    """The value of the labels that counts; None: all above 0."""
    cases: int = 4
    """So many are taken, spread over the folder."""
    clicks: int = 6
    policies: tuple[str, ...] = POLICIES
    limits: MaskLimits = field(default_factory=MaskLimits)
    """What is beyond them raises nothing: it is in the rows, as `failures`."""
    tolerance_mm: float = TOLERANCE_MM
    device: str = "cpu"
    """PyTorch's."""
    threads: int | None = None
    """Of one operator on the CPU; None: all cores."""
    server: str | None = None
    """URL of one that serves the export; None: one is started."""
    pictures: bool = True
    """Whether the worst slice of each case is kept."""
    anonymous: bool = False
    """Whether nothing is kept that may name somebody: no pictures, no names."""
