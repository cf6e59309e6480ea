"""Guards the clinical measures: they agree with SimpleITK, MONAI and cases worked by hand; empty masks are defined."""

import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from samkit.benchmarks.record.figures import METRICS
from samkit.errors import SamkitError
from samkit.metrics import compare_masks, measure_mask, surface_dice

SPACINGS = {3: (3.5, 0.7, 1.2), 2: (0.4, 1.7)}


def blobs(seed, dimensions):
    """Two ragged bodies that overlap, the second with a speck far off, in the array's corner."""
    rng = np.random.default_rng([seed, dimensions])
    shape = (14, 30, 26)[:dimensions]
    index = np.indices(shape)
    masks = []
    for _ in range(2):
        centre, radii = rng.uniform(0.4, 0.6, dimensions) * shape, rng.uniform(0.15, 0.3, dimensions) * shape
        ball = sum(((index[a] - centre[a]) / radii[a]) ** 2 for a in range(dimensions))
        masks.append(ball + rng.normal(0, 0.15, shape) < 1)
    masks[1][(0,) * dimensions] = True
    return masks


def image(mask, spacing):
    made = sitk.GetImageFromArray(mask.astype(np.uint8))
    made.SetSpacing([float(edge) for edge in spacing[::-1]])  # SimpleITK counts axes from the last
    return made


def contours(masks, spacing):
    # The border of the array counts as a border of the mask, so that the contour needs a rim of zeros
    return [sitk.BinaryContour(image(np.pad(mask, 1), spacing), fullyConnected=False) for mask in masks]


def distances_to(mask, spacing):
    """(values at every voxel of the padded array) the distance to a contour or mask, by SimpleITK."""
    away = sitk.SignedMaurerDistanceMap(mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(away), 0)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_overlaps_agree_with_simpleitk(seed, dimensions):
    found, true = blobs(seed, dimensions)
    spacing = SPACINGS[dimensions]
    judge = sitk.LabelOverlapMeasuresImageFilter()
    judge.Execute(image(found, spacing), image(true, spacing))  # its errors are shares of the second
    figures = measure_mask(found, true, spacing)

    assert figures["dice"] == pytest.approx(judge.GetDiceCoefficient(1))
    assert figures["iou"] == pytest.approx(judge.GetJaccardCoefficient(1))
    assert 1 - figures["sensitivity"] == pytest.approx(judge.GetFalseNegativeError(1))
    assert 1 - figures["precision"] == pytest.approx(judge.GetFalseDiscoveryRate(1))
    assert 1 - figures["specificity"] == pytest.approx(judge.GetFalsePositiveError(1))
    assert figures["accuracy"] == pytest.approx((found == true).mean())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_distances_agree_with_simpleitk(seed, dimensions):
    masks, spacing = blobs(seed, dimensions), SPACINGS[dimensions]
    edges = contours(masks, spacing)
    judge = sitk.HausdorffDistanceImageFilter()
    judge.Execute(*edges)
    on = [sitk.GetArrayFromImage(edge) > 0 for edge in edges]
    ways = [distances_to(edges[1 - side], spacing)[on[side]] for side in (0, 1)]
    inside = [np.pad(mask, 1) for mask in masks]
    away = [distances_to(image(mask, spacing), spacing) for mask in inside]
    figures = measure_mask(*masks, spacing)

    assert figures["hd_mm"] == pytest.approx(judge.GetHausdorffDistance(), abs=1e-5)
    assert figures["hd95_mm"] == pytest.approx(max(np.percentile(way, 95) for way in ways), abs=1e-5)
    assert figures["assd_mm"] == pytest.approx(np.concatenate(ways).mean(), abs=1e-5)
    expected = max(float(away[1 - side][inside[side]].mean()) for side in (0, 1))
    assert figures["mean_distance_mm"] == pytest.approx(expected, abs=1e-5)
    assert figures["mean_distance_mm"] < figures["assd_mm"] < figures["hd95_mm"] < figures["hd_mm"]


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")
@pytest.mark.parametrize("dimensions", [2, 3])
def test_distances_agree_with_monai(dimensions):
    masks, spacing = blobs(7, dimensions), SPACINGS[dimensions]
    tensors = [torch.from_numpy(mask)[None, None] for mask in masks]
    settings = {"include_background": True, "spacing": spacing}
    figures = measure_mask(*masks, spacing)

    assert figures["hd_mm"] == pytest.approx(compute_hausdorff_distance(*tensors, **settings).item(), rel=1e-5)
    expected = compute_hausdorff_distance(*tensors, percentile=95, **settings).item()
    assert figures["hd95_mm"] == pytest.approx(expected, rel=1e-5)
    expected = compute_average_surface_distance(*tensors, symmetric=True, **settings).item()
    assert figures["assd_mm"] == pytest.approx(expected, rel=1e-5)


def test_two_slabs_by_hand():
    # Voxels of 2 x 1 x 1 mm; slabs of 10 x 10 voxels, 3 and 5 thick, of one lower face
    found, true = np.zeros((2, 9, 12, 12), bool)
    found[1:4, 1:11, 1:11] = True
    true[1:6, 1:11, 1:11] = True
    figures = measure_mask(found, true, (2.0, 1.0, 1.0))

    assert figures["dice"] == 2 * 300 / 800
    assert figures["iou"] == figures["sensitivity"] == 300 / 500
    assert figures["precision"] == figures["specificity"] == 1.0
    assert figures["accuracy"] == (9 * 144 - 200) / (9 * 144)
    assert figures["volume_ml"] == pytest.approx(0.6)
    assert figures["volume_error_ml"] == pytest.approx(-0.4)
    assert figures["hd_mm"] == 4.0  # two layers of 2 mm
    assert figures["mean_distance_mm"] == pytest.approx((2 * 100 + 4 * 100) / 500)


@pytest.mark.parametrize(("tolerance", "touching"), [(0.0, 36.7082), (1.0, 38.7082), (2.0, 48.9443)])
def test_surface_dice_of_rectangles_by_hand(tolerance, touching):
    # Rows of 2 mm, columns of 1 mm; 3 and 4 of 6 rows, all 6 columns. A corner of the outline is sqrt(5)/2 mm long, so
    # the outlines are 18 + 2 sqrt(5) and 22 + 2 sqrt(5) mm, and 48.9443 mm together. Of them 5 mm of the first's lower
    # side and 5 + sqrt(5) mm of the second's lie 2 mm off; 2 x 1 mm of the first's side is within 1 mm of a flank.
    one, other = np.zeros((2, 6, 6), bool)
    one[:3], other[:4] = True, True

    assert surface_dice(one, other, (2.0, 1.0), tolerance) == pytest.approx(touching / 48.9443, abs=1e-5)
    assert measure_mask(one, other, (2.0, 1.0), tolerance_mm=tolerance)["nsd"] == pytest.approx(
        touching / 48.9443, abs=1e-5
    )


def test_surface_dice_of_boxes_by_hand():
    # Boxes of 3 and 5 layers of 2 mm, 10 x 10 voxels of 1 x 1.5 mm, of one lower face. Surfaces run through the corners
    # between voxels: one of a face stands for a voxel's face, of an edge for its bevel, of a corner for its triangle.
    (a, b, c), wide, long = (2.0, 1.0, 1.5), 9, 9
    bevels = [edge * math.hypot(*others) / 2 for edge, others in ((a, (b, c)), (b, (a, c)), (c, (a, b)))]
    corner = math.sqrt((a * b) ** 2 + (b * c) ** 2 + (c * a) ** 2) / 8
    lid = wide * long * b * c
    rim = 2 * (wide * bevels[1] + long * bevels[2]) + 4 * corner
    level = 2 * (wide * a * b + long * a * c) + 4 * bevels[0]
    areas = [2 * (lid + rim) + levels * level for levels in (2, 4)]
    one, other = np.zeros((2, 7, 12, 12), bool)
    one[1:4, 1:11, 1:11], other[1:6, 1:11, 1:11] = True, True

    off = lid + (level + rim + lid)  # the lid of the lower box, and what of the higher one stands out above it
    assert surface_dice(one, other, (a, b, c), 0.0) == pytest.approx(1 - off / sum(areas), abs=1e-6)
    assert surface_dice(one, other, (a, b, c), 4.0) == 1.0


def test_a_picture_has_an_area():
    one, other = np.zeros((2, 6, 6), bool)
    one[:3], other[:4] = True, True
    figures = measure_mask(one, other, (2.0, 1.0))

    assert (figures["area_mm2"], figures["area_error_mm2"]) == (36.0, -12.0)
    assert set(METRICS) - set(figures) == {"volume_ml", "volume_error_ml"}


def test_equal_masks_agree_in_full():
    mask, _ = blobs(3, 3)
    figures = measure_mask(mask, mask, SPACINGS[3], tolerance_mm=0)

    assert {figures[key] for key, metric in METRICS.items() if metric.better == "higher"} == {1.0}
    assert {figures[key] for key in ("hd_mm", "hd95_mm", "assd_mm", "mean_distance_mm", "volume_error_ml")} == {0.0}


OVERLAPS = ("dice", "iou", "precision", "sensitivity", "nsd")
DISTANCES = ("hd_mm", "hd95_mm", "assd_mm", "mean_distance_mm")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_empty_masks_are_defined(dimensions):
    mask, _ = blobs(4, dimensions)
    nothing, spacing = np.zeros_like(mask), SPACINGS[dimensions]

    figures = measure_mask(nothing, nothing, spacing)
    assert {figures[key] for key in (*OVERLAPS, "specificity", "accuracy")} == {1.0}
    assert {figures[key] for key in DISTANCES} == {0.0}
    for found, true in ((mask, nothing), (nothing, mask)):
        figures = measure_mask(found, true, spacing)
        assert {figures[key] for key in OVERLAPS} == {0.0}
        assert {figures[key] for key in DISTANCES} == {math.inf}


def test_a_truth_that_fills_the_array_is_defined():
    everything = np.ones((4, 5, 6), bool)
    assert measure_mask(everything, everything, (1, 1, 1))["specificity"] == 1.0
    assert measure_mask(~everything, everything, (1, 1, 1))["specificity"] == 1.0


def test_parity_says_how_many_voxels_flipped_and_how_far():
    mask, _ = blobs(5, 3)
    other = mask.copy()
    other[0, 0, 0] = True

    assert compare_masks(mask, mask, SPACINGS[3]) == {"dice": 1.0, "flipped_voxels": 0, "hd95_mm": 0.0}
    assert set(compare_masks(other, mask, SPACINGS[3])) == {"dice", "flipped_voxels", "hd95_mm"}
    assert compare_masks(other, mask, SPACINGS[3])["flipped_voxels"] == 1
    assert compare_masks(np.zeros_like(mask), mask, SPACINGS[3])["hd95_mm"] == math.inf


def test_masks_that_do_not_fit_are_refused():
    mask = np.zeros((4, 5), bool)
    for other in (mask.T, mask.astype(np.uint8)):
        with pytest.raises(SamkitError, match="two boolean ones of one shape"):
            measure_mask(mask, other, (1, 1))
    for spacing in ((1, 1, 1), (0, 1), (math.nan, 1)):
        with pytest.raises(SamkitError, match="one positive number"):
            compare_masks(mask, mask, spacing)
