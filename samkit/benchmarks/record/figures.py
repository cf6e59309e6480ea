"""What each figure of a run is called, its unit, how it is written, and whether more is better: for all who show one.

METRICS are of a mask against the truth, DETECTOR_METRICS of boxes; FIGURES are those that a row has by that key in its
JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from samkit.benchmarks.record.statistics import Estimate

NONE = "-"
Write = Callable[[float | None], str]


def number(value: float | None, digits: int = 3) -> str:
    """Return a number to so many significant digits, whole from there on; "-" where there is none.

    >>> number(0.012345), number(43210.0), number(None), number(math.inf)
    ('0.0123', '43210', '-', 'inf')
    """
    if value is None:
        return NONE
    if math.isfinite(value) and abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def overlap(value: float | None) -> str:
    """Return a share between 0 and 1 with four decimals, rounded down: 1.0000 means that no voxel differs."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{math.floor(value * 1e4 + 1e-6) / 1e4:.4f}"


def share(value: float | None) -> str:
    """Return a share with three decimals, as metrics against the truth have them."""
    return NONE if value is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """Return a share in percent."""
    return NONE if value is None else f"{value:.0%}"


def interval(estimate: Estimate, write: Write = number) -> str:
    """Return a figure and where it lies in 95 of 100 cases."""
    return f"{write(estimate.value)} [{write(estimate.low)}, {write(estimate.high)}]"


@dataclass(frozen=True)
class Figure:
    """What readers must know of one figure."""

    label: str
    """As in the head of a table that says what it is of."""
    unit: str = ""
    """Empty for shares, 0 to 1, and for counts."""
    better: str = ""
    """higher, lower, or `zero` for a signed error; empty for a size, which is neither good nor bad."""
    write: Write = number
    alone: str = ""
    """What it is called where nothing stands around it, if the label will not do."""
    rounding: float | None = None
    """The step that is rounding, of a figure without chance; None for the others."""
    is_noisy: bool = False
    """Whether it moves from run to run and has no samples to tell by how much."""
    definition: str = ""
    source: str = ""

    @property
    def title(self) -> str:
        """Return the label with its unit, as a column is called."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    @property
    def name(self) -> str:
        """Return what it is called alone, with its unit."""
        return replace(self, label=self.alone or self.label).title

    @property
    def sign(self) -> int:
        """Return 1 where more is better, -1 where less is, of the amount where it is an error with a sign; else 0."""
        return {"higher": 1, "lower": -1, "zero": -1}.get(self.better, 0)


def _metric(label: str, unit: str, better: str, definition: str, source: str) -> Figure:
    return Figure(label, unit, better, number if unit else share, definition=definition, source=source)


_COUNTS = "Taha and Hanbury 2015 (doi:10.1186/s12880-015-0068-x)"
_SURFACES = "Maier-Hein et al. 2024, Metrics reloaded (doi:10.1038/s41592-023-02151-z)"
_BOXES = "Lin et al. 2014, COCO (doi:10.1007/978-3-319-10602-1_48)"

METRICS: Mapping[str, Figure] = {
    "dice": _metric("Dice", "", "higher", "2 |A and B| / (|A| + |B|).", _COUNTS),
    "iou": _metric("IoU", "", "higher", "|A and B| / |A or B|.", _COUNTS),
    "precision": _metric("precision", "", "higher", "The share of the mask that is in the truth.", _COUNTS),
    "sensitivity": _metric("sensitivity", "", "higher", "The share of the truth that is in the mask.", _COUNTS),
    "specificity": _metric("specificity", "", "higher",
        "The share of what is outside the truth that is outside the mask, over the whole array: it grows with the "
        "background.", _COUNTS),
    "accuracy": _metric("accuracy", "", "higher",
        "The share of the array where both agree: it grows with the background.", _COUNTS),
    "hd_mm": _metric("HD", "mm", "lower",
        "Hausdorff distance, the full maximum: the largest distance from a surface voxel of either mask to the other's "
        "surface.", "LMSFE-SAM, equation 16"),
    "hd95_mm": _metric("HD95", "mm", "lower",
        "The 95th percentile of the distances from surface voxels of one to the other's surface, of both ways the "
        "larger; not of both ways' distances in one heap.", _SURFACES),
    "assd_mm": _metric("ASSD", "mm", "lower",
        "Average symmetric surface distance: the mean over the surface voxels of both, in one heap.", _SURFACES),
    "mean_distance_mm": _metric("mean distance", "mm", "lower",
        "The mean distance of all voxels of one mask, not of its surface alone, to the other mask, 0 for those inside "
        "it, of both ways the larger. LoRA-SAM prints this as HD; it is no Hausdorff distance, and far smaller.",
        "LoRA-SAM, equations 13 to 15, as its words describe them: the equations are pictures that were lost"),
    "nsd": _metric("NSD", "", "higher",
        "Normalised surface Dice: the share of both surfaces, by area (2D: by length), that lies within the tolerance "
        "of the other.", "Nikolov et al. 2021 (doi:10.2196/26151)"),
    "volume_ml": _metric("volume", "mL", "", "Voxels of the mask times a voxel's volume; 3D alone.", _COUNTS),
    "volume_error_ml": _metric("volume error", "mL", "zero",
        "Volume of the mask less that of the truth; 3D alone.", _COUNTS),
    "area_mm2": _metric("area", "mm²", "", "Pixels of the mask times a pixel's area; 2D alone.", _COUNTS),
    "area_error_mm2": _metric("area error", "mm²", "zero",
        "Area of the mask less that of the truth; 2D alone.", _COUNTS),
}  # fmt: skip
"""What `measure_mask` gives. A is the mask, B the truth. Of a picture no volume can be told, so it gets an area."""

DETECTOR_METRICS: Mapping[str, Figure] = {
    "map50": _metric("mAP50", "", "higher",
        "Area under the precision over recall curve, a box found where its IoU is 0.50 or more.", _BOXES),
    "map50_95": _metric("mAP50-95", "", "higher", "The mean of that area at IoU 0.50, 0.55, ... 0.95.", _BOXES),
}  # fmt: skip

FIGURES: Mapping[str, Figure] = {
    "parity_dice": Figure("Dice", "", "higher", overlap, alone="worst Dice to PyTorch", rounding=1e-6),
    "parity_hd95_mm": Figure("HD95", "mm", "lower", alone="worst HD95 to PyTorch", rounding=1e-3),
    "flipped_voxels": Figure("voxels that differ", "", "lower", alone="voxels that differ from PyTorch's", rounding=0),
    "logit_difference": Figure("largest logit difference", "", "lower", rounding=1e-4),
    "relative_error": Figure("relative error", "", "lower", rounding=1e-5),
    "click_drift": Figure("drift of clicks to a Dice", "", "lower", rounding=0),
    **{key: replace(metric, write=overlap, rounding=1e-6) for key, metric in DETECTOR_METRICS.items()},
    "p50_ms": Figure("p50", "ms", "lower", alone="median"),
    "p95_ms": Figure("p95", "ms", "lower", alone="95th percentile"),
    "p99_ms": Figure("p99", "ms", "lower"),
    "gflop": Figure("GFLOP"),
    "limit_share": Figure("share of the limit", "", "higher", percent),
    "peak_mb": Figure("peak memory", "MB", "lower", is_noisy=True),
    "above_session_mb": Figure("above the session", "MB", "lower", alone="memory above the session", is_noisy=True),
    "sessions_held": Figure("sessions held", "", "higher"),
    "clicks_per_second": Figure("clicks per second", "", "higher", is_noisy=True),
    "server_rss_mb": Figure("server memory, RSS", "MB", "lower", is_noisy=True),
    "client_cpu_share": Figure("readers' share of the processors"),
    "server_cpu_share": Figure("server's"),
}
