"""Guards how much two masks overlap and how far they are apart: as MONAI has it, and defined for empty ones."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance

from samkit.masks import dice, hausdorff95, nearest_distances, surface_voxels


def blob(seed, shape=(20, 18, 22)):
    rng = np.random.default_rng(seed)
    centre, radius = rng.uniform(6, 12, 3), rng.uniform(3, 6)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return np.linalg.norm(index - centre, axis=-1) + rng.normal(0, 0.4, shape) < radius


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_monai(seed):
    one, other = blob(seed), blob(seed + 100)
    tensors = [torch.from_numpy(mask)[None, None] for mask in (one, other)]
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95).item()
    assert hausdorff95(one, other) == pytest.approx(expected, abs=1e-6)
    assert hausdorff95(other, one) == pytest.approx(expected, abs=1e-6)


def test_distances_are_in_the_unit_of_the_spacing():
    one, other = np.zeros((2, 6, 6), bool)
    one[1, 1], other[4, 1] = True, True
    assert hausdorff95(one, other) == 3.0
    assert hausdorff95(one, other, (2.5, 1.0)) == 7.5


def test_a_surface_faces_what_is_outside_and_the_border():
    mask = np.ones((4, 5), bool)
    mask[0, 0] = False
    inner = {(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)}
    surface = {tuple(index) for index in surface_voxels(mask)}
    assert surface == {tuple(index) for index in np.argwhere(mask)} - inner
    assert len(surface_voxels(mask & ~mask)) == 0


def test_every_voxel_is_nearest_to_something():
    voxels, others = np.array([[0, 0], [3, 1]]), np.array([[0, 2], [3, 0]])
    assert nearest_distances(voxels, others).tolist() == [2.0, 1.0]
    assert nearest_distances(voxels, others, (1.0, 4.0)).tolist() == [3.0, 4.0]


def test_equal_masks_are_nowhere_apart():
    assert hausdorff95(blob(1), blob(1)) == 0


def test_one_voxel_among_many_does_not_count_at_the_95th_percentile():
    mask = blob(2)
    more = mask.copy()
    more[0, 0, 0] = True
    assert hausdorff95(mask, more) == 0


def test_empty_masks_are_defined():
    nothing = np.zeros((4, 4), bool)
    assert hausdorff95(nothing, nothing) == 0
    assert hausdorff95(nothing, ~nothing) == hausdorff95(~nothing, nothing) == math.inf


def test_dice_counts_overlap():
    line = np.arange(8) < 4
    assert dice(line, line) == 1.0
    assert dice(line, np.roll(line, 2)) == 0.5
    assert dice(line, ~line) == 0.0
    assert dice(line & ~line, line & ~line) == 1.0
