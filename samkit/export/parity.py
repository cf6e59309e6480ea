"""Proof that exported files compute what PyTorch float32 computes: what both kinds of method share.

The reference is the network as loaded, in upstream's own formulation (LoRA unmerged, padding unfolded), answering on
phantoms as a session would. `click_parity` and `slice_parity` hold the two procedures, which run graphs and say what
is to be compared: findings. Here each is held to its graph's tolerance, as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samkit.errors import ParityError
from samkit.masks import dice, hausdorff95
from samkit.methods import GraphSpec
from samkit.precisions import BASE, Tolerance, get_precision

SMALL_MASK = 1000
"""Voxels below which a mask is judged by the voxels that differ: Dice of a small mask jumps at one voxel."""

_FLOOR = {"iou_predictions": 1.0}
"""Smallest norm that an error is relative to: an IoU is one number on a scale of 0 to 1, and may well be near 0."""


@dataclass(frozen=True)
class RunFinding:
    """One run of a graph."""

    graph: str
    where: str
    """The case, and the click."""
    found: Mapping[str, np.ndarray]
    """Outputs by name."""
    expected: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class MaskFinding:
    """A mask or label map that was made with a decoder."""

    graph: str
    where: str
    found: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class RewriteFinding(RunFinding):
    """One run of a fast form, and of the graph that it works for where that one is given zeros besides."""

    measure: str = "no_mask"
    """What the figure is called."""


@dataclass(frozen=True)
class AbsentFinding:
    """How much points labelled ABSENT changed a decoder's logits."""

    graph: str
    error: float


Finding = RunFinding | MaskFinding | AbsentFinding


def judge(
    findings: Iterable[Finding], specs: Sequence[GraphSpec], precision: str, figures: dict[str, dict[str, Any]]
) -> None:
    """Add to the `figures` of each graph what was found; raises ParityError for the first one beyond its tolerance."""
    graphs = {spec.name: spec for spec in specs}
    for one in findings:
        graph, figure = graphs[one.graph], figures[one.graph]
        if isinstance(one, RewriteFinding):
            _compare_rewrite(one, graph, precision, figure)
        elif isinstance(one, RunFinding):
            compare_outputs(one.found, one.expected, graph, precision, one.where, figure)
        elif isinstance(one, MaskFinding):
            tolerance = graph.tolerance[precision]
            compare_masks(one.found, one.expected, tolerance, f"{one.graph} ({precision}), {one.where}", figure)
        else:
            figure["absent_points"] = _check_absent(one, precision)


def relative_error(actual: np.ndarray, expected: np.ndarray, *, floor: float = 0.0) -> float:
    """Return norm(actual - expected) / norm(expected), summed in float64; the divisor is `floor` at least."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(actual - expected)) / max(float(np.linalg.norm(expected)), floor, 1e-30)


def output_error(name: str, actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative error of the output called `name`, on the floor that some outputs have."""
    return relative_error(actual, expected, floor=_FLOOR.get(name, 0.0))


def compare_outputs(
    outputs: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    graph: GraphSpec,
    precision: str,
    where: str,
    figures: dict[str, Any],
) -> None:
    """Add one run's worst error to the graph's `figures`; raises ParityError naming the output that moved too far."""
    for name, value in expected.items():
        error = output_error(name, outputs[name], value)
        figures["relative_error"] = max(figures["relative_error"], error)
        # `not <=`, because nan must fail
        if not error <= graph.tolerance[precision].relative:
            raise ParityError(
                f"{graph.name} ({precision}), {name}, {where}: relative error {error:.1e} against PyTorch float32, at "
                f"most {graph.tolerance[precision].relative:.0e} is allowed; export in {BASE.name}, or report "
                "this checkpoint"
            )


def _compare_rewrite(finding: RewriteFinding, graph: GraphSpec, precision: str, figures: dict[str, Any]) -> None:
    """Add to `figures` how far a fast form is from the graph that it works for; ParityError beyond tolerance."""
    limit = graph.tolerance[precision].relative
    for name, expected in finding.expected.items():
        error = output_error(name, finding.found[name], expected)
        figures[finding.measure] = max(figures.get(finding.measure, 0.0), error)
        # `not <=`, because nan must fail
        if not error <= limit:
            raise ParityError(
                f"{graph.name} ({precision}), {name}, {finding.where}: relative difference {error:.1e} from "
                f"{graph.official} without a mask, at most {limit:.0e} is allowed; export in {BASE.name}, or report "
                "this checkpoint"
            )


def _check_absent(finding: AbsentFinding, precision: str) -> float:
    """Return the error; raises ParityError beyond what the precision allows."""
    limit = get_precision(precision).absent_points
    if not finding.error <= limit:
        raise ParityError(
            f"{finding.graph} ({precision}): absent points move the logits by {finding.error:.1e} relative, at most "
            f"{limit:.0e} is allowed; this is a bug of samkit, please report it"
        )
    return finding.error


def compare_masks(
    ours: np.ndarray, theirs: np.ndarray, tolerance: Tolerance, where: str, figures: dict[str, Any]
) -> None:
    """Add Dice, HD95 [voxels] and differing voxels of a mask or label map to `figures`; each label is a mask.

    Raises ParityError beyond the tolerance, and where a mask is empty in one of them alone.
    """
    figures["voxels"] = max(figures["voxels"], int(np.count_nonzero(ours != theirs)))
    for label in np.union1d(ours, theirs):
        if not label:
            continue
        mine, wanted = ours == label, theirs == label
        differing, overlap = int(np.count_nonzero(mine != wanted)), dice(mine, wanted)
        distance = hausdorff95(mine, wanted)
        figures["dice"], figures["hd95"] = min(figures["dice"], overlap), max(figures["hd95"], distance)
        # One of them alone being empty makes the distance infinite
        if not masks_agree(differing, overlap, distance, int(np.count_nonzero(wanted)), tolerance):
            raise ParityError(
                f"{where}: the mask has Dice {overlap:.5f}, {differing} other voxels and an HD95 of {distance:.3g} "
                f"voxels against PyTorch float32, needed is Dice {tolerance.min_dice} (masks under {SMALL_MASK} "
                f"voxels: at most {tolerance.max_voxels} other voxels) and an HD95 of {tolerance.max_hd95:g}; "
                f"export in {BASE.name}, or report this checkpoint"
            )


def masks_agree(differing: int, overlap: float, distance: float, size: int, tolerance: Tolerance) -> bool:
    """Return whether a mask is near enough to PyTorch's of `size` voxels: Dice `overlap`, or of a small one `differing`
    voxels, and HD95 `distance`, in the unit of `tolerance.max_hd95`.
    """
    agrees = differing <= tolerance.max_voxels if size < SMALL_MASK else overlap >= tolerance.min_dice
    return agrees and distance <= tolerance.max_hd95
