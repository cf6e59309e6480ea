"""Guards BrainSegDMIF: the paper's parameter count, its fusion, exact folding, its start from SAM, and its graphs."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samkit.errors import CheckpointError
from samkit.networks.dmif import BrainSegDmif, Dmif, GreyPatchEmbed, dmif_from_sam
from samkit.networks.dmif_config import DmifConfig
from samkit.networks.sam2d import Sam2D
from samkit.networks.sam2d_config import PIXEL_MEAN, PIXEL_STD, Sam2DConfig
from support.gradients import without_gradient

TINY = DmifConfig(
    image=64,
    width=24,
    depth=2,
    heads=2,
    window=3,
    global_blocks=(1,),
    channels=32,
    sequences=("t1c", "t2w", "t2f"),
    bottleneck=6,
    decoder_heads=2,
    decoder_mlp=32,
    upscaled=8,
)


def changed(**fields):
    return DmifConfig.from_dict({**TINY.to_dict(), **fields})


def slices(config=TINY, count=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 255 * torch.rand(
        count, len(config.sequences), config.image, config.image, dtype=torch.float64, generator=generator
    )


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(params=[False, True], ids=["own encoders", "shared encoder"])
def network(request, noisy):
    return noisy(BrainSegDmif(changed(shared_encoder=request.param)))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (DmifConfig(), 353_990_220),  # the paper: 354 M
        (DmifConfig(sequences=("t1n", "t2w", "t2f")), 267_218_729),
        (DmifConfig(shared_encoder=True), 96_334_668),
    ],
)
def test_parameter_counts_are_the_published_ones(config, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in BrainSegDmif(config).parameters()) == count


def test_outputs_have_the_promised_shapes(network):
    with torch.no_grad():
        embeddings = network.encode(slices())
        assert embeddings.shape == (2, 32, 4, 4)
        assert network.decode(embeddings).shape == (2, 1, 64, 64)


def test_grey_kernel_equals_three_normalised_channels(noisy):
    embed = noisy(GreyPatchEmbed(24))
    image = slices()[:, :1]
    with torch.no_grad():
        mean, std = (torch.tensor(v).double().reshape(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
        expected = embed.proj((image.repeat(1, 3, 1, 1) - mean) / std).permute(0, 2, 3, 1)
        assert relative(embed(image), expected) < 1e-12
        embed.folded = False
        assert relative(embed(image), expected) < 1e-12


def test_folding_and_freezing_change_nothing(network):
    with torch.no_grad():
        network.set_folded(False)
        embeddings = network.encode(slices())
        logits = network.decode(embeddings)
        network.set_folded(True)
        for frozen in (False, True):
            if frozen:
                network.freeze()
            assert relative(network.encode(slices()), embeddings) < 1e-12
            assert relative(network.decode(embeddings), logits) < 1e-12


def test_fusion_is_equations_1_to_7(noisy):
    """Written out along the last axis, as the paper writes it: f is (N, D, M)."""
    fusion = noisy(Dmif(TINY))
    f = torch.randn(1, 3, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def linear(layer, x):
        return x @ layer.weight[:, :, 0, 0].T + layer.bias

    with torch.no_grad():
        paper = f[0].permute(1, 2, 0)
        first, norm, _, second = fusion.interaction
        inner = F.layer_norm(linear(first, paper), (12,), norm.weight, norm.bias, 1e-6)
        mixed = linear(second, F.gelu(inner))
        weights = linear(fusion.scores[2], F.gelu(linear(fusion.scores[0], mixed))).softmax(dim=-1)
        aggregated = (mixed * weights).sum(dim=-1)
        enhanced = fusion.enhancement(torch.cat([paper[..., m] for m in range(3)], dim=-1))
        expected = aggregated + enhanced + paper.mean(dim=-1)
        torch.testing.assert_close(fusion(f)[0], expected)


def test_shared_encoder_equals_own_encoders_of_equal_weights(noisy):
    shared, own = noisy(BrainSegDmif(changed(shared_encoder=True))), noisy(BrainSegDmif(TINY))
    state = shared.state_dict()
    for number in (1, 2):
        state.update({k.replace("encoders.0.", f"encoders.{number}."): v for k, v in shared.state_dict().items()})
    own.load_state_dict(state)
    with torch.no_grad():
        assert relative(shared.encode(slices()), own.encode(slices())) < 1e-12


def test_every_sequence_counts_and_keeps_its_place(network):
    with torch.no_grad():
        before = network.encode(slices())
        for number in range(3):
            image = slices()
            image[:, number] = 255 - image[:, number]
            assert relative(network.encode(image), before) > 1e-3
        assert relative(network.encode(slices().flip(1)), before) > 1e-3


def test_every_trainable_weight_but_the_unread_gets_a_gradient(network):
    network.decode(network.encode(slices())).square().sum().backward()
    without = without_gradient(network)
    # A constant added to all keys of an attention changes nothing.
    assert [name for name in without if not name.endswith("k_proj.bias")] == []


def test_streams_start_apart():
    """f_fus holds the mean of the streams: fed back with a factor of one, it would double them in every layer."""
    assert not BrainSegDmif(TINY).feedback.any()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_subsets_of_the_sequences_are_networks_of_their_own(count, noisy):
    config = changed(sequences=("t1n", "t1c", "t2w", "t2f")[:count])
    built = noisy(BrainSegDmif(config))
    with torch.no_grad():
        assert built.decode(built.encode(slices(config))).shape == (2, 1, 64, 64)


def sam(**fields):
    """A SAM of the tiny sizes at twice the image side, every weight random."""
    torch.manual_seed(4)
    shared = ("width", "depth", "heads", "window", "global_blocks", "channels", "decoder_mlp")
    sizes = {"image": 128, "iou_hidden": 16, "decoder_heads": 2, **{name: getattr(TINY, name) for name in shared}}
    state = Sam2D(Sam2DConfig(**{**sizes, **fields})).state_dict()
    return {name: value + torch.randn_like(value) for name, value in state.items()}


@pytest.mark.parametrize("shared_encoder", [False, True])
def test_sam_starts_every_encoder_the_neck_and_the_transformer(shared_encoder):
    config, given = changed(shared_encoder=shared_encoder), sam()
    network = BrainSegDmif(config)
    missing, unexpected = network.load_state_dict(dmif_from_sam(given, config), strict=False)
    assert unexpected == []
    assert {name.split(".")[0] for name in missing} == {"feedback", "fusions", "mask_decoder"}
    for encoder in network.encoders:
        weight = encoder.blocks[1].mlp.lin1.weight
        torch.testing.assert_close(weight, given["image_encoder.blocks.1.mlp.lin1.weight"], rtol=0, atol=0)
        assert encoder.pos_embed.shape == (1, 4, 4, 24)
        assert encoder.blocks[1].attn.rel_pos_h.shape == (7, 12)
    tokens = network.prompt_generator.mask_tokens.weight
    torch.testing.assert_close(tokens, given["mask_decoder.mask_tokens.weight"], rtol=0, atol=0)


def test_mask_tokens_of_another_number_start_fresh():
    config = changed(masks=3)
    missing, _ = BrainSegDmif(config).load_state_dict(dmif_from_sam(sam(), config), strict=False)
    assert "prompt_generator.mask_tokens.weight" in missing


def test_sam_of_other_sizes_is_refused():
    with pytest.raises(CheckpointError, match="width 48 where 24 is planned"):
        dmif_from_sam(sam(width=48), TINY)
    with pytest.raises(CheckpointError, match="no checkpoint of SAM"):
        dmif_from_sam({"model.0.conv.weight": torch.zeros(1)}, TINY)


@pytest.mark.slow
@pytest.mark.parametrize("shared_encoder", [False, True])
def test_graphs_give_what_the_network_gives(shared_encoder, noisy, exported):
    config = changed(shared_encoder=shared_encoder, sequences=("t1c", "t2f"))  # a third makes the graph larger alone
    network = noisy(BrainSegDmif(config)).float()
    network.freeze()
    examples = {"image_encoder": slices(config, count=3).float()}
    if not shared_encoder:  # the decoder is the same one
        examples["mask_decoder"] = torch.randn(3, 32, 4, 4, generator=torch.Generator().manual_seed(5))
    for name, example in examples.items():
        run, _ = exported(network, name, example)
        for count in (1, 3):
            with torch.no_grad():
                expected = network.run_graph(name, example[:count])[0].numpy()
            assert np.linalg.norm(run(example[:count].numpy()) - expected) < 1e-5 * np.linalg.norm(expected)
