"""Guards the networks: exact rewrites, absent points, merging, and the papers' parameter counts."""

import math

import numpy as np
import pytest
import torch

import samkit
from samkit.networks.attention3d import RelPosAttention
from samkit.networks.sam3d import Sam3D
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.prompts import ABSENT, PADDING
from support.gradients import without_gradient


def noisy(module, seed=0):
    """Add noise to every parameter: tables that start at zero would hide what they do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 4) ** 0.5)
    return module.eval()


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def network():
    """In float64, so that equalities are not hidden behind the rounding of differently blocked products."""
    torch.manual_seed(0)
    return noisy(samkit.get_method("m-sam").build(samkit.get_method("m-sam").sizes["tiny"])).double()


@pytest.fixture(scope="module")
def prompt(network):
    config, generator = network.config, torch.Generator().manual_seed(1)
    tensors = {
        "image_embeddings": torch.randn(1, config.channels, *(config.grid,) * 3, generator=generator),
        "point_coords": torch.tensor([[[3.0, 20.5, 11.0], [30.0, 2.0, 7.0]]]),
        "point_labels": torch.tensor([[1.0, 0.0]]),
        "mask_input": torch.randn(1, 1, *(config.logits,) * 3, generator=generator),
    }
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize(("grid", "window"), [(2, 3), (3, 7), (4, 4), (4, 9), (1, 5)])
def test_folded_attention_equals_the_official_one(grid, window):
    attention = noisy(RelPosAttention(24, 3, grid, window, lora_rank=2)).double()
    tokens = torch.randn(2, grid, grid, grid, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        folded = attention(tokens)
        attention.folded = False
        official = attention(tokens)
    assert relative(folded, official) < 1e-13


def test_bias_is_the_official_one_written_out():
    """The mis-broadcast formula of the official code, summed by hand for one query and one key."""
    n, size = 3, 4
    attention = noisy(RelPosAttention(size, 1, n, n)).double()
    attention.folded = False
    x = torch.randn(1, n, n, n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        q, k, v = (t[0, 0] for t in attention._qkv(x, n))
        cube = q.reshape(n, n, n, size)
        d, h, w = attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w
        a, b, c = 2, 0, 1
        logits = torch.empty(n, n, n, dtype=torch.float64)
        for i, j, m in np.ndindex(n, n, n):
            key = k.reshape(n, n, n, size)[i, j, m]
            logits[i, j, m] = (
                cube[a, b, c] @ key / math.sqrt(size)
                + cube[a, b, c] @ d[a - m + n - 1]
                + cube[a, b, i] @ h[b - m + n - 1]
                + cube[a, b, j] @ w[j - m + n - 1]
            )
        expected = attention.proj(logits.flatten().softmax(0) @ v)
        torch.testing.assert_close(attention(x)[0, a, b, c], expected)


def test_merging_lora_changes_nothing(network):
    image = torch.randn(1, 1, *(network.config.patch,) * 3, generator=torch.Generator().manual_seed(4)).double()
    merged = samkit.get_method("m-sam").build(network.config).eval().double()
    merged.load_state_dict(network.state_dict())
    with torch.no_grad():
        before = merged.encode(image)
        merged.merge_lora()
        assert relative(merged.encode(image), before) < 1e-12
    assert not [name for name in merged.state_dict() if "linear_" in name]


def test_freezing_changes_nothing(network):
    config = network.config
    frozen = samkit.get_method("m-sam").build(config).eval().double()
    frozen.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, *(config.patch,) * 3, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        before = frozen.encode(image), frozen.prompt_encoder.dense_pe()
        frozen.freeze()
        torch.testing.assert_close(frozen.encode(image), before[0], rtol=0, atol=0)
        torch.testing.assert_close(frozen.prompt_encoder.dense_pe(), before[1], rtol=0, atol=0)


def test_absent_points_change_nothing(network, prompt):
    more = dict(prompt)
    more["point_coords"] = torch.cat([prompt["point_coords"], torch.full((1, 3, 3), float("nan"))], dim=1)
    more["point_labels"] = torch.cat([prompt["point_labels"], torch.full((1, 3), float(ABSENT))], dim=1)
    with torch.no_grad():
        assert relative(network.decode(**more)[0], network.decode(**prompt)[0]) < 1e-12


def test_rows_with_unlike_counts_do_not_mix(network, prompt):
    two = {name: torch.cat([tensor, tensor]) for name, tensor in prompt.items()}
    two["point_labels"] = torch.tensor([[1.0, 0.0], [1.0, ABSENT]], dtype=torch.float64)
    first = {**prompt, "point_coords": prompt["point_coords"][:, :1], "point_labels": prompt["point_labels"][:, :1]}
    with torch.no_grad():
        masks = network.decode(**two)[0]
        assert relative(masks[:1], network.decode(**prompt)[0]) < 1e-12
        assert relative(masks[1:], network.decode(**first)[0]) < 1e-12


def test_all_absent_equals_no_points(network, prompt):
    none = {**prompt, "point_coords": prompt["point_coords"][:, :0], "point_labels": prompt["point_labels"][:, :0]}
    absent = {**prompt, "point_labels": torch.full_like(prompt["point_labels"], ABSENT)}
    with torch.no_grad():
        assert relative(network.decode(**absent)[0], network.decode(**none)[0]) < 1e-12


def test_padding_points_do_change_the_mask(network, prompt):
    """What others do to reach a fixed point count, and why ABSENT exists."""
    more = dict(prompt)
    more["point_coords"] = torch.cat([prompt["point_coords"], torch.zeros(1, 3, 3)], dim=1)
    more["point_labels"] = torch.cat([prompt["point_labels"], torch.full((1, 3), float(PADDING))], dim=1)
    with torch.no_grad():
        assert relative(network.decode(**more)[0], network.decode(**prompt)[0]) > 1e-3


def test_dense_positions_swap_axes_zero_and_one():
    encoder = Sam3D(Sam3DConfig(patch=64, window=7, width=24, heads=2, channels=24, depth=1)).prompt_encoder
    at = torch.tensor([[1, 3, 2]]) + 0.5
    swapped = encoder.pe_layer(at / 4)[0]
    torch.testing.assert_close(encoder.dense_pe()[0, :, 3, 1, 2], swapped)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (Sam3DConfig(), 100_509_232),
        (Sam3DConfig(adapter="code"), 100_509_232 + 17_145_024),
        (Sam3DConfig(adapter="paper"), 100_509_232 + 17_428_800),
        (Sam3DConfig(adapter="code", lora_rank=16), 118_244_080),
    ],
)
def test_parameter_counts_are_the_published_ones(config, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in Sam3D(config).parameters()) == count


@pytest.mark.parametrize("topology", ["code", "paper"])
def test_both_adapter_topologies_use_mask_and_image(topology, prompt, network):
    config = Sam3DConfig.from_dict({**network.config.to_dict(), "adapter": topology})
    built = noisy(Sam3D(config)).double()
    with torch.no_grad():
        plain = built.decode(**prompt)[2]
        other_mask = built.decode(**{**prompt, "mask_input": -prompt["mask_input"]})[2]
        other_image = built.decode(**{**prompt, "image_embeddings": -prompt["image_embeddings"]})[2]
    assert plain.shape == prompt["image_embeddings"].shape
    assert relative(other_mask, plain) > 1e-2
    assert relative(other_image, plain) > 1e-2


def test_every_trainable_parameter_but_the_unused_gets_a_gradient(network, prompt):
    network.zero_grad()
    image = torch.randn(1, 1, *(network.config.patch,) * 3, generator=torch.Generator().manual_seed(6)).double()
    masks, _, _ = network.decode(**{**prompt, "image_embeddings": network.encode(image)})
    masks.square().sum().backward()
    without = set(without_gradient(network))
    # A constant added to all keys of an attention changes nothing.
    unused = ("k_proj.bias", "no_mask_embed", "add_norm4", "iou_prediction_head", *(f"mlps.{n}." for n in (1, 2, 3)))
    assert {name for name in without if not any(word in name for word in unused)} == set()
    network.zero_grad()
