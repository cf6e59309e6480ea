"""What `sam-bench accuracy` is asked for, the same for all exports of a run: the fields are its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samkit.export.parity import SMALL_MASK
from samkit.metrics import TOLERANCE_MM
from samkit.precisions import PRECISIONS, Tolerance, get_precision
from samkit.protocols.simulated_user import POLICIES


@dataclass(frozen=True)
class AccuracySettings:
    """What is measured, on what, how far masks may be from those of PyTorch float32, and what of it all is kept."""

    backends: tuple[str, ...]
    """Of BACKENDS; those left out of which a table has a column get a row that says so."""
    data: Path | None = None
    label: int | None = None
    cases: int = 4
    clicks: int = 6
    policies: tuple[str, ...] = POLICIES
    min_parity_dice: float | None = None
    """None: each precision's own. A mask under SMALL_MASK voxels is judged by the voxels that differ, as every export's
    parity. What is beyond the limits raises nothing: it is in the rows, as `failures`."""
    max_parity_hd95: float | None = None
    """[mm]"""
    tolerance_mm: float = TOLERANCE_MM
    device: str = "cpu"
    threads: int | None = None
    server: str | None = None
    pictures: bool = True
    anonymous: bool = False
    show_names: bool = False

    @property
    def hides_names(self) -> bool:
        """Return whether files are not named; phantoms have no names to hide."""
        return self.anonymous or (self.data is not None and not self.show_names)

    def tolerance(self, precision: str, spacing_mm: Sequence[float]) -> Tolerance:
        """Return what a mask of voxels of that size is held to, distances in mm."""
        least = get_precision(precision).min_dice if self.min_parity_dice is None else self.min_parity_dice
        farthest = max(spacing_mm) if self.max_parity_hd95 is None else self.max_parity_hd95
        return Tolerance(0.0, least, max_hd95=farthest)

    @property
    def limits(self) -> str:
        """Return the limits of the gate in words."""
        least = ", ".join(f"{self.tolerance(one.name, (1,)).min_dice:g} in {one.name}" for one in PRECISIONS)
        farthest = "a voxel's longest edge" if self.max_parity_hd95 is None else f"{self.max_parity_hd95:g} mm"
        return (
            f"the gate: a Dice of at least {least} against PyTorch's mask, under {SMALL_MASK} voxels at most "
            f"{Tolerance.max_voxels} flipped voxels in its place; HD95 at most {farthest}"
        )
