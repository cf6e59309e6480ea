"""Clinical measures of a mask against the truth, and of a mask against the one that PyTorch makes.

Masks are boolean, 2D (H, W) or 3D (I, J, K), with the voxel's edge along each axis in mm. For a picture whose pixels
have no known size the edge is 1, and what is called mm is pixels. METRICS says what each figure is.

Empty masks are defined: two empty ones agree in full (overlaps, precision, sensitivity and NSD 1, distances 0); where
one of the two is empty, overlaps, precision, sensitivity and NSD are 0 and distances infinite. Specificity is 1 where
the truth fills the array, since then there is nothing to be wrong about.

Distances run between the centres of surface voxels, those with a face neighbour outside the mask; beyond the array is
outside. MONAI has the same definition, and the tests hold the two together; it is not called for them, because it
finds the surfaces anew for each measure, rounds to float32, and makes nan of empty masks. Its surface Dice is used as
it is, with sub-voxel areas: without them every surface voxel counts alike, however long it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from samkit.errors import MissingDependencyError, SamkitError
from samkit.extras import how_to_install
from samkit.masks import dice, hausdorff95, nearest_distances, surface_voxels

TOLERANCE_MM = 2.0
"""How far apart two surfaces may lie and still be one to NSD, where nobody says otherwise [mm]. It depends on the task:
experts differ by about as much."""


def measure_mask(
    prediction: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float], *, tolerance_mm: float = TOLERANCE_MM
) -> dict[str, float]:
    """Return the METRICS of a mask (H, W) or (I, J, K) against the truth; 2D has an area where 3D has a volume.

    `spacing_mm` is the edge of a voxel along each of the array's axes, `tolerance_mm` that of NSD. Raises SamkitError
    for arrays that are not two boolean ones of one shape, and for other spacings than one positive number per axis;
    MissingDependencyError without MONAI.
    """
    _check(prediction, target, spacing_mm)
    both, found, true = (int(np.count_nonzero(mask)) for mask in (prediction & target, prediction, target))
    false_positive, missed, everywhere = found - both, true - both, target.size
    agree = everywhere - false_positive - missed
    negative = everywhere - true
    size, unit = _size(spacing_mm)
    kind = "volume" if prediction.ndim == 3 else "area"
    # What lies outside the box of both has no part in any distance
    near = _near(prediction | target)
    surfaces = {"nsd": surface_dice(prediction[near], target[near], spacing_mm, tolerance_mm)}
    return {
        "dice": _share(2 * both, found + true),
        "iou": _share(both, found + missed),
        "precision": _share(both, found) if found else float(not true),
        "sensitivity": _share(both, true) if true else float(not found),
        "specificity": _share(negative - false_positive, negative),
        "accuracy": agree / everywhere,
        **_distances(prediction[near], target[near], spacing_mm),
        **surfaces,
        f"{kind}_{unit}": found * size,
        f"{kind}_error_{unit}": (found - true) * size,
    }


def compare_masks(found: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Return the PARITY_METRICS of a mask against PyTorch's, both as `measure_mask` takes them; raises as it does."""
    _check(found, reference, spacing_mm)
    return {
        "dice": dice(found, reference),
        "flipped_voxels": int(np.count_nonzero(found != reference)),
        "hd95_mm": hausdorff95(found, reference, spacing_mm),
    }


def surface_dice(one: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Return NSD: the share of both surfaces within `tolerance_mm` of the other; two empty masks have 1.

    Raises MissingDependencyError without MONAI.
    """
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    try:
        import torch
        from monai.metrics import compute_surface_dice
    except ImportError as error:
        raise MissingDependencyError(f"the surface Dice needs MONAI; {how_to_install('bench')}") from error
    tensors = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (one, other)]
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it passes to itself
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        return float(
            compute_surface_dice(
                *tensors, [tolerance_mm], include_background=True, spacing=tuple(spacing_mm), use_subvoxels=True
            ).item()
        )


def _distances(one: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    names = ("hd_mm", "hd95_mm", "assd_mm", "mean_distance_mm")
    if not one.any() or not other.any():
        return dict.fromkeys(names, 0.0 if one.any() == other.any() else math.inf)
    surfaces = [surface_voxels(mask) for mask in (one, other)]
    ways = [nearest_distances(surfaces[side], surfaces[1 - side], spacing_mm) for side in (0, 1)]
    # Seen from outside, the nearest voxel of a mask is on its surface
    means = [
        float(nearest_distances(np.argwhere(mask & ~to), surface, spacing_mm).sum() / np.count_nonzero(mask))
        for mask, to, surface in ((one, other, surfaces[1]), (other, one, surfaces[0]))
    ]
    heap = np.concatenate(ways)
    largest = (float(heap.max()), float(max(np.percentile(way, 95) for way in ways)))
    return dict(zip(names, (*largest, float(heap.mean()), max(means)), strict=True))


def _near(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the box around what is set; all of the array where nothing is."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else (slice(None),) * mask.ndim


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _size(spacing_mm: Sequence[float]) -> tuple[float, str]:
    """Return volume [mL] or area [mm2] of one voxel, and its unit in the names of figures."""
    size = math.prod(spacing_mm)
    return (size / 1000, "ml") if len(spacing_mm) == 3 else (size, "mm2")


def _check(one: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float]) -> None:
    if one.dtype != bool or other.dtype != bool or one.shape != other.shape or one.ndim not in (2, 3) or not one.size:
        raise SamkitError(
            f"masks of shapes {one.shape} and {other.shape} and types {one.dtype} and {other.dtype} were to be "
            "compared, needed are two boolean ones of one shape, (H, W) or (I, J, K); threshold or resample them"
        )
    if len(spacing_mm) != one.ndim or not all(math.isfinite(edge) and edge > 0 for edge in spacing_mm):
        raise SamkitError(
            f"the spacing {tuple(spacing_mm)} does not fit masks of shape {one.shape}, needed is one positive number "
            "[mm] for each axis; take it from the affine"
        )
