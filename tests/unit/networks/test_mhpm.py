"""Guards MHPM: what it mixes along which axis, and that freezing changes nothing."""

import pytest
import torch

from samkit.networks.mhpm import Mhpm
from support.gradients import without_gradient


@pytest.fixture(scope="module")
def block(noisy):
    return noisy(Mhpm(16, 24, grid=5))


def features(seed=1):
    return torch.randn(2, 16, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_frozen_maps_change_nothing(block):
    with torch.no_grad():
        before = block(features())
        block.freeze()
        torch.testing.assert_close(block(features()), before, rtol=0, atol=0)
        block.folded = False
        torch.testing.assert_close(block(features()), before, rtol=0, atol=0)
        block.folded = True


def test_channel_height_table_varies_along_the_height_alone(noisy):
    """The paper's printed permutation would transpose a quarter of the map, silently where H equals W."""
    block = noisy(Mhpm(16, 24, grid=5))
    with torch.no_grad():
        plane, rows, columns = block._maps()
    assert plane.shape == (1, 4, 5, 5)
    assert rows.shape == (1, 4, 5, 1)
    assert columns.shape == (1, 4, 1, 5)


def test_tables_are_stretched_from_corner_to_corner(noisy):
    block = Mhpm(16, 24, grid=3).double()
    ramp = torch.arange(8, dtype=torch.float64)
    with torch.no_grad():
        block.params_zx.copy_(ramp.expand(1, 1, 4, 8))
        block.conv_zx = torch.nn.Identity()
        _, rows, _ = block._maps()
    torch.testing.assert_close(rows[0, 0, :, 0], torch.tensor([0.0, 3.5, 7.0], dtype=torch.float64))


def test_every_weight_gets_a_gradient(noisy):
    block = noisy(Mhpm(16, 24, grid=5))
    block(features()).square().sum().backward()
    assert without_gradient(block) == []
