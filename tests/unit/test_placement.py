"""Guards where a slice lies in the network's square: resizing is torch's, and the way back is the way there."""

import numpy as np
import pytest
import torch

from samkit.placement import Placement, resize_bilinear


@pytest.mark.parametrize("shape", [(9, 31), (4, 3), (7, 5), (64, 64), (1, 1)])
def test_resize_is_torchs(shape):
    values = np.random.default_rng(0).normal(size=(2, 3, 7, 5)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(values), shape, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(resize_bilinear(values, shape), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("placement", "content", "offset"),
    [
        (Placement.longest_side((600, 800), 1024), (768, 1024), (0, 0)),
        (Placement.longest_side((301, 100), 64), (64, 21), (0, 0)),
        (Placement.longest_side((2, 9000), 1024), (1, 1024), (0, 0)),
        (Placement.stretched((600, 800), 1024), (1024, 1024), (0, 0)),
        (Placement.centred((241, 200), 256), (241, 200), (7, 28)),
    ],
)
def test_placement_has_the_official_place(placement, content, offset):
    assert (placement.content, placement.offset) == (content, offset)


def test_points_move_by_the_ratio_of_sizes():
    np.testing.assert_allclose(Placement.longest_side((600, 800), 1024).points_to_network([[100, 50]]), [[128, 64]])
    np.testing.assert_allclose(Placement.stretched((512, 256), 1024).points_to_network([[100, 50]]), [[400, 100]])
    np.testing.assert_allclose(Placement.centred((241, 200), 256).points_to_network([[100, 50]]), [[128, 57]])


def test_points_of_a_placement_with_aligned_ends_reach_from_end_to_end():
    placement = Placement.stretched((112, 128), 512, ends_aligned=True)
    np.testing.assert_allclose(placement.points_to_network([[0, 0], [127, 111]]), [[0, 0], [511, 511]])


def test_centred_slice_comes_back_as_it_went():
    image = np.random.default_rng(0).normal(size=(1, 50, 60)).astype(np.float32)
    placement = Placement.centred((50, 60), 64)
    np.testing.assert_array_equal(placement.to_slice(placement.place(image)), image)
