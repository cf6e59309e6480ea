"""Proof that exported files compute what PyTorch float32 computes: what both kinds of method share.

The reference is the network as loaded, in upstream's own formulation (LoRA unmerged, padding unfolded), answering on
phantoms as a session would. Inputs and outputs are kept as parity.npz beside the graphs, so that `sam-export --verify`
can repeat the comparison on a machine without torch. `click_parity` and `slice_parity` hold the two procedures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samkit.errors import ManifestError, ParityError
from samkit.masks import dice, hausdorff95
from samkit.methods import GraphSpec
from samkit.precisions import BASE, Tolerance, get_precision
from samkit.prompts import ABSENT
from samkit.runtime.backends.runner import Runner

FILE_NAME = "parity.npz"
CASES = 2
SMALL_MASK = 1000
"""Voxels below which a mask is judged by the voxels that differ: Dice of a small mask jumps at one voxel."""

_FLOOR = {"iou_predictions": 1.0}
"""Smallest norm that an error is relative to: an IoU is one number on a scale of 0 to 1, and may well be near 0."""


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


def check_absent_points(
    decoder: Runner,
    feed: Mapping[str, np.ndarray],
    coords: np.ndarray,
    labels: np.ndarray,
    precision: str,
) -> float:
    """Return the largest relative change that ABSENT points make: beside real ones, alone, and in unlike rows.

    `feed` holds one row of the decoder's other inputs, `coords` (2, axes) and `labels` (2,) two real points. Raises
    ParityError beyond what the precision allows.
    """

    def logits(coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        per_row = {spec.name: spec.axes[0].is_dynamic for spec in decoder.graph.inputs}
        rows = {n: np.repeat(value, len(coords), axis=0) if per_row[n] else value for n, value in feed.items()}
        points = {"point_coords": coords.astype(np.float32), "point_labels": labels.astype(np.float32)}
        return decoder.run({**rows, **points})["low_res_masks"]

    def padded(count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first `count` points, filled up to five with absent ones whose coordinates are nan."""
        more_coords = np.concatenate([coords[:count], np.full((5 - count, coords.shape[1]), np.nan)])
        return more_coords[None], np.concatenate([labels[:count], np.full(5 - count, float(ABSENT))])[None]

    plain = [logits(coords[None, :count], labels[None, :count]) for count in range(3)]
    alone = [logits(*padded(count)) for count in range(3)]
    rows = logits(*(np.concatenate(parts) for parts in zip(*(padded(count) for count in range(3)), strict=True)))
    errors = [relative_error(a, b) for a, b in zip(alone, plain, strict=True)]
    errors += [relative_error(rows[count : count + 1], plain[count]) for count in range(3)]
    error = float(np.max(errors))  # `np.max`, because nan must reach the check
    limit = get_precision(precision).absent_points
    if not error <= limit:
        raise ParityError(
            f"{decoder.graph.name} ({precision}): absent points move the logits by {error:.1e} relative, at most "
            f"{limit:.0e} is allowed; this is a bug of samkit, please report it"
        )
    return error


def load_arrays(path: Path) -> list[dict[str, np.ndarray]]:
    """Return the arrays of each case in a parity.npz; raises ManifestError when the file is no such archive."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        cases: list[dict[str, np.ndarray]] = [{} for _ in range(1 + max(int(name.split(".")[0]) for name in arrays))]
        for name, array in arrays.items():
            number, key = name.split(".", 1)
            cases[int(number)][key] = array
        return cases
    except (OSError, ValueError, KeyError) as error:
        raise ManifestError(f"{path} does not hold parity references ({error!r}); export again") from error


def save_arrays(path: Path, cases: list[dict[str, np.ndarray]]) -> None:
    """Write what `load_arrays` reads."""
    np.savez(path, **{f"{number}.{key}": array for number, case in enumerate(cases) for key, array in case.items()})
