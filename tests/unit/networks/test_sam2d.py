"""Guards SAM and what is built on it: equal to the official package, absent points, merging, parameter counts."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from samkit.errors import CheckpointError
from samkit.networks.lora import LoraLinear
from samkit.networks.sam2d import Sam2D
from samkit.networks.sam2d_config import Sam2DConfig
from samkit.prompts import ABSENT, PADDING
from support.gradients import without_gradient
from support.segment_anything_modeling import modeling as modeling_package

TINY = Sam2DConfig(
    image=80,  # a grid of 5: windows of 3 need padding
    width=24,
    heads=3,
    depth=3,
    window=3,
    global_blocks=(1,),
    channels=32,
    decoder_heads=4,
    decoder_mlp=48,
    iou_hidden=40,
)


def noisy(module, seed=0):
    """Add noise to every parameter: tables that start at zero would hide what they do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 4) ** 0.5)
    return module.eval()


def relative(a, b):
    return float((a - b).norm() / b.norm())


def prompt(config, points=2, batch=1, dtype=torch.float64):
    """Return the inputs of `decode`: a random embedding and points, no mask prompt."""
    generator = torch.Generator().manual_seed(1)
    return {
        "image_embeddings": torch.randn(1, config.channels, config.grid, config.grid, generator=generator).to(dtype),
        "point_coords": (torch.rand(batch, points, 2, generator=generator) * config.image).to(dtype),
        "point_labels": torch.randint(0, 2, (batch, points), generator=generator).to(dtype),
        "mask_input": torch.randn(batch, 1, config.logits, config.logits, generator=generator).to(dtype),
        "has_mask_input": torch.zeros(batch, 1, 1, 1, dtype=dtype),
    }


@pytest.fixture(scope="module")
def network():
    """In float64, so that equalities are not hidden behind the rounding of differently blocked products."""
    torch.manual_seed(0)
    return noisy(Sam2D(TINY)).double()


# --- Against the package ---


@pytest.fixture(scope="module")
def pair():
    """The same weights in our network and in the package's."""
    modeling = modeling_package()
    torch.manual_seed(0)
    ours, c = noisy(Sam2D(TINY)), TINY
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    theirs = modeling.Sam(
        modeling.ImageEncoderViT(
            c.image, 16, 3, c.width, c.depth, c.heads, c.mlp_ratio, c.channels, True, norm, use_rel_pos=True,
            window_size=c.window, global_attn_indexes=c.global_blocks,
        ),
        modeling.PromptEncoder(c.channels, (c.grid, c.grid), (c.image, c.image), 16),
        modeling.MaskDecoder(
            transformer_dim=c.channels,
            transformer=modeling.TwoWayTransformer(2, c.channels, c.decoder_heads, c.decoder_mlp),
            iou_head_hidden_dim=c.iou_hidden,
        ),
    ).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("folded", [True, False])
def test_encoder_gives_the_packages_embedding(pair, folded):
    ours, theirs = pair
    image = torch.randn(2, 3, TINY.image, TINY.image, generator=torch.Generator().manual_seed(2))
    ours.set_folded(folded)
    with torch.no_grad():
        assert relative(ours.encode(image), theirs.image_encoder(image)) < 1e-5
    ours.set_folded(True)


POINTS = ([[10.0, 20.0], [61.5, 33.25], [40.0, 7.0]], [1.0, 0.0, 1.0])
BOX = [8.0, 10.5, 60.0, 71.0]


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize(
    ("points", "box"),
    [(POINTS, None), (None, BOX), (POINTS, BOX), (None, None), (([[5.0, 6.0], [0.0, 0.0]], [1.0, -1.0]), None)],
    ids=["points", "box", "points and box", "automatic", "a padding point given"],
)
def test_decoder_gives_the_packages_masks(pair, points, box, with_mask):
    ours, theirs = pair
    feed = prompt(TINY, dtype=torch.float32)
    coords, labels = (list(points[0]), list(points[1])) if points else ([], [])
    if box:
        coords, labels = [*coords, box[:2], box[2:]], [*labels, 2.0, 3.0]
    feed["point_coords"] = torch.tensor(coords).reshape(1, -1, 2)
    feed["point_labels"] = torch.tensor(labels).reshape(1, -1)
    feed["has_mask_input"].fill_(float(with_mask))
    with torch.no_grad():
        masks, iou = ours.decode(**feed)
        sparse, dense = theirs.prompt_encoder(
            points=(torch.tensor([points[0]]), torch.tensor([points[1]])) if points else None,
            boxes=torch.tensor([box]) if box else None,
            masks=feed["mask_input"] if with_mask else None,
        )
        for multimask, chosen in ((True, slice(1, None)), (False, slice(0, 1))):
            expected = theirs.mask_decoder(
                feed["image_embeddings"], theirs.prompt_encoder.get_dense_pe(), sparse, dense, multimask
            )
            assert relative(masks[:, chosen], expected[0]) < 1e-5
            assert relative(iou[:, chosen], expected[1]) < 1e-5


# --- Prompts ---


def test_absent_points_change_nothing(network):
    feed = prompt(TINY)
    more = {
        **feed,
        "point_coords": torch.cat([feed["point_coords"], torch.full((1, 3, 2), float("nan"))], dim=1),
        "point_labels": torch.cat([feed["point_labels"], torch.full((1, 3), float(ABSENT))], dim=1),
    }
    with torch.no_grad():
        assert relative(network.decode(**more)[0], network.decode(**feed)[0]) < 1e-12


def test_all_absent_equals_no_points(network):
    none = prompt(TINY, points=0)
    absent = {**prompt(TINY, points=3), "point_labels": torch.full((1, 3), float(ABSENT), dtype=torch.float64)}
    with torch.no_grad():
        for found, expected in zip(network.decode(**absent), network.decode(**none), strict=True):
            assert relative(found, expected) < 1e-12


def test_padding_points_do_change_the_mask(network):
    feed = prompt(TINY)
    more = {
        **feed,
        "point_coords": torch.cat([feed["point_coords"], torch.zeros(1, 1, 2)], dim=1),
        "point_labels": torch.cat([feed["point_labels"], torch.full((1, 1), float(PADDING))], dim=1),
    }
    with torch.no_grad():
        assert relative(network.decode(**more)[0], network.decode(**feed)[0]) > 1e-3


def test_rows_do_not_mix(network):
    """A box, two points, nothing, and a point with a mask prompt: together, then each alone."""
    labels = torch.tensor([[2, 3, ABSENT], [1, 0, ABSENT], [ABSENT] * 3, [1, ABSENT, ABSENT]], dtype=torch.float64)
    feed = {**prompt(TINY, points=3, batch=4), "point_labels": labels}
    feed["has_mask_input"][3] = 1
    with torch.no_grad():
        together = network.decode(**feed)
        for row in range(4):
            alone = {name: t[row : row + 1] if name != "image_embeddings" else t for name, t in feed.items()}
            alone["point_coords"] = alone["point_coords"][:, labels[row] != ABSENT]
            alone["point_labels"] = alone["point_labels"][:, labels[row] != ABSENT]
            for found, expected in zip(together, network.decode(**alone), strict=True):
                assert relative(found[row : row + 1], expected) < 1e-12


def test_one_embedding_serves_all_rows(network):
    feed = prompt(TINY, batch=3)
    repeated = {**feed, "image_embeddings": feed["image_embeddings"].repeat(3, 1, 1, 1)}
    with torch.no_grad():
        assert relative(network.decode(**feed)[0], network.decode(**repeated)[0]) < 1e-12


def test_mask_that_is_not_given_does_not_matter(network):
    feed = prompt(TINY)
    other = {**feed, "mask_input": torch.full_like(feed["mask_input"], float("nan"))}
    with torch.no_grad():
        torch.testing.assert_close(network.decode(**other), network.decode(**feed), rtol=0, atol=0)


@pytest.mark.parametrize("masks", [4, 13])
def test_every_mask_token_gives_a_mask(masks):
    config = replace(TINY, masks=masks)
    low_res, iou = Sam2D(config).double().decode(**prompt(config, points=0, batch=2))
    assert low_res.shape == (2, masks, config.logits, config.logits)
    assert iou.shape == (2, masks)


# --- Variants ---


@pytest.mark.parametrize("targets", ["q", "qv", "kv", "qkv"])
@pytest.mark.parametrize("place", ["encoder", "decoder", "both"])
def test_merging_lora_changes_nothing(targets, place):
    config = replace(TINY, lora_rank=2, lora_targets=targets, lora_place=place)
    network = noisy(Sam2D(config)).double()
    image = torch.randn(1, 3, TINY.image, TINY.image, generator=torch.Generator().manual_seed(3)).double()
    feed = prompt(TINY)
    with torch.no_grad():
        before = network.encode(image), *network.decode(**feed)
        network.merge_lora()
        after = network.encode(image), *network.decode(**feed)
        for found, expected in zip(after, before, strict=True):
            assert relative(found, expected) < 1e-12
    assert set(network.state_dict()) == set(Sam2D(TINY).state_dict())


def test_fresh_lora_changes_nothing():
    layer = LoraLinear(6, 4, 2)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_freezing_changes_nothing():
    config = replace(TINY, image=96, adapter=True)
    network = noisy(Sam2D(config)).double()
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        before = network.encode(image), *network.decode(**prompt(config))
        network.freeze()
        after = network.encode(image), *network.decode(**prompt(config))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-13)


def test_adapter_needs_an_even_grid():
    with pytest.raises(CheckpointError, match="no multiple of 32, which the adapter needs"):
        replace(TINY, adapter=True)


def test_every_parameter_but_the_unused_gets_a_gradient():
    config = replace(TINY, image=96, adapter=True, lora_rank=2, lora_place="both")
    network = noisy(Sam2D(config)).double()
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(6)).double()
    feed = prompt(config, points=5, batch=2)
    feed["point_labels"] = torch.tensor([[1, 0, 1, ABSENT, ABSENT], [1, 0, 2, 3, PADDING]], dtype=torch.float64)
    feed["has_mask_input"][1] = 1
    masks, iou = network.decode(**{**feed, "image_embeddings": network.encode(image)})
    (masks.square().sum() + iou.sum()).backward()
    # A constant added to all keys of an attention changes nothing.
    assert [name for name in without_gradient(network) if not name.endswith("k_proj.bias")] == []


# --- Parameter counts of the papers ---

LORA = Sam2DConfig(image=512, masks=13, lora_rank=16)


def count(network, chosen=lambda name: True):
    return sum(p.numel() for name, p in network.named_parameters() if chosen(name))


def learnable(name):
    """What LoRA-SAM trains; with LoRA in the decoder its transformer is frozen, too."""
    return "linear_a" in name or "linear_b" in name or not name.startswith("image_encoder.")


def learnable_with_frozen_transformer(name):
    return learnable(name) and (not name.startswith("mask_decoder.transformer.") or "linear_" in name)


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (Sam2DConfig(), 93_735_472),
        (Sam2DConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)), 312_342_832),
        (Sam2DConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)), 641_090_608),
        (Sam2DConfig(image=256), 90_737_200),
        (Sam2DConfig(image=256, adapter=True), 271_241_776),
    ],
    ids=["SAM ViT-B", "SAM ViT-L", "SAM ViT-H", "at 256", "SAM-Med2D"],
)
def test_parameter_counts_are_the_published_ones(config, total):
    with torch.device("meta"):
        assert count(Sam2D(config)) == total


@pytest.mark.parametrize(
    ("changes", "trained", "expected"),
    [
        ({"lora_rank": 8}, learnable, 5_622_361),
        ({}, learnable, 5_917_273),
        ({"lora_rank": 32}, learnable, 6_507_097),
        ({"lora_place": "both"}, learnable_with_frozen_transformer, 2_720_217),
        ({"lora_place": "decoder"}, learnable_with_frozen_transformer, 2_130_393),
    ],
    ids=["rank 8", "rank 16", "rank 32", "encoder and decoder", "decoder"],
)
def test_learnable_counts_are_those_of_lora_sam(changes, trained, expected):
    with torch.device("meta"):
        network = Sam2D(replace(LORA, **changes))
        assert count(network, trained) == expected
        network.merge_lora()
        assert count(network) == 92_606_297
