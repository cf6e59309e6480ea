"""Guards LMSFE-SAM's image encoder: its sizes, its start from SAM-Med2D, its frozen form, and its graph."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samkit.errors import CheckpointError
from samkit.networks.lmsfe import BalancingAdapter, LmsfeImageEncoder, LocalEncoder, lmsfe_from_sam_med2d
from samkit.networks.sam2d import Sam2D
from samkit.networks.sam2d_config import Sam2DConfig
from support.gradients import without_gradient

FULL = Sam2DConfig(image=256, adapter=True, local_branch=True)
TINY = Sam2DConfig(
    image=64,
    width=24,
    depth=3,
    heads=2,
    window=3,
    global_blocks=(0, 2),
    channels=32,
    decoder_heads=2,
    decoder_mlp=32,
    iou_hidden=16,
    adapter=True,
    local_branch=True,
    local_width=4,
)


def images(side=64, count=2, seed=1):
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def network(noisy):
    return noisy(Sam2D(TINY))


def test_parameter_counts_are_those_of_the_resolutions():
    with torch.device("meta"):
        encoder = LmsfeImageEncoder(FULL)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.named_modules()}
    assert count["local_encoder"] == 3_718_944  # 3.72 M
    assert count["balancing_adapters.2"] == 295_970  # 0.296 M
    assert count["feature_adapter"] == 768 * 192 * 2 + 192 + 768
    # SAM-Med2D's encoder, with a position table of 64 x 64 in place of 16 x 16
    added = count["local_encoder"] + count["feature_adapter"] + count["position_adapter"] + 4 * 295_970
    assert count[""] == 267_177_216 + added + (64**2 - 16**2) * 768


@pytest.mark.parametrize("side", [64, 128, 256])
def test_local_vectors_stand_on_the_token_grid(side):
    config = Sam2DConfig.from_dict({**TINY.to_dict(), "image": side})
    with torch.device("meta"):
        assert LocalEncoder(config)(torch.empty(1, 3, side, side)).shape == (1, side // 16, side // 16, 24)


def test_freezing_changes_nothing(network):
    with torch.no_grad():
        before = network.encode(images())
        network.freeze()
        assert relative(network.encode(images()), before) < 1e-12
        network.set_folded(False)
        assert relative(network.encode(images()), before) < 1e-12


def test_balancing_adapter_is_equations_5_to_8(noisy):
    adapter = noisy(BalancingAdapter(8))
    tokens, local = torch.randn(2, 1, 4, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        both = tokens + local
        pooled = torch.stack([both.max(dim=-1).values, both.mean(dim=-1)], dim=1)
        weights = torch.sigmoid(F.conv2d(pooled, adapter.weigh.weight, padding=3))[:, 0, ..., None]
        down, up = adapter.bottleneck.down, adapter.bottleneck.up
        expected = 0.5 * up(F.gelu(down(weights * both)))
        torch.testing.assert_close(adapter(tokens, local), expected)


def test_local_branch_enters_the_global_blocks_alone(network):
    branches = network.image_encoder.branches(images())
    assert [branch is not None for branch in branches] == [True, False, True]


def test_fresh_adapters_leave_the_transformer_as_it_is():
    """Training starts from SAM-Med2D: what is added there adds nothing yet. Positions alone are new."""
    torch.manual_seed(3)
    encoder = LmsfeImageEncoder(TINY).eval()
    tokens = torch.randn(2, 4, 4, 24)
    with torch.no_grad():
        assert not encoder.feature_adapter(tokens).any()
        assert not encoder.branches(images().float())[2](tokens).any()


def test_every_weight_of_the_encoder_gets_a_gradient():
    network, generator = Sam2D(TINY).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            # Noise moves what starts at zero; much of it would shut the adapters' sigmoids, whose gradient then is 0
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    network.encode(images()).square().sum().backward()
    # A norm takes away what these biases add
    assert without_gradient(network.image_encoder) == [f"local_encoder.mixers.{n}.ldw.2.bias" for n in range(3)]


def sam_med2d_state():
    torch.manual_seed(4)
    config = Sam2DConfig.from_dict({**TINY.to_dict(), "local_branch": False})
    return {name: value + torch.randn_like(value) for name, value in Sam2D(config).state_dict().items()}


def test_sam_med2d_is_taken_whole_and_its_position_table_enlarged():
    state = sam_med2d_state()
    started = lmsfe_from_sam_med2d(state, TINY)
    network = Sam2D(TINY)
    missing, unexpected = network.load_state_dict(started, strict=False)
    added = ("position_adapter.", "feature_adapter.", "local_encoder.", "balancing_adapters.")
    assert unexpected == []
    assert {name for name in missing if not name.removeprefix("image_encoder.").startswith(added)} == set()
    assert network.image_encoder.pos_embed.shape == (1, 16, 16, 24)
    # Bilinear to four times the size: the mean of a smooth table's four inner neighbours stays where it was.
    ramp = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 4, 24)
    enlarged = lmsfe_from_sam_med2d({**state, "image_encoder.pos_embed": ramp}, TINY)["image_encoder.pos_embed"]
    torch.testing.assert_close(enlarged[0, :, 0, 0][6:10], torch.tensor([1.125, 1.375, 1.625, 1.875]))


def test_table_of_sam_itself_is_taken_as_it_is():
    table = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(5))
    started = lmsfe_from_sam_med2d(sam_med2d_state(), TINY, table)
    torch.testing.assert_close(started["image_encoder.pos_embed"], table, rtol=0, atol=0)


def test_other_files_are_refused():
    with pytest.raises(CheckpointError, match="starts from SAM-Med2D"):
        lmsfe_from_sam_med2d({"model.0.conv.weight": torch.zeros(1)}, TINY)
    with pytest.raises(CheckpointError, match="starts from SAM-Med2D"):
        lmsfe_from_sam_med2d({"image_encoder.pos_embed": torch.zeros(1, 4, 4, 12)}, TINY)
    with pytest.raises(CheckpointError, match="position table is 12 wide"):
        lmsfe_from_sam_med2d(sam_med2d_state(), TINY, torch.zeros(1, 16, 16, 12))


@pytest.mark.slow
def test_graph_gives_what_the_network_gives(network, exported):
    network.float().freeze()
    run, operators = exported(network, "image_encoder", images().float())
    assert not operators & {"Resize", "BatchNormalization"}
    for count in (1, 3):
        image = images(count=count, seed=6).float()
        with torch.no_grad():
            expected = network.encode(image).numpy()
        assert np.linalg.norm(run(image.numpy()) - expected) < 1e-5 * np.linalg.norm(expected)
