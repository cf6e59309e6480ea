"""Guards windowed attention: the form without padding tokens computes what the padded one does."""

import pytest
import torch

from samkit.networks import attention2d
from samkit.networks.attention2d import WindowAttention


def noisy_attention(grid, window, lora_rank=0, seed=0):
    """In float64, with noise in tables and biases: those that start at zero would hide what they do."""
    attention = WindowAttention(24, 3, grid, window, lora_rank).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return attention


def tokens_of(grid, batch=2):
    generator = torch.Generator().manual_seed(grid)
    return torch.randn(batch, grid, grid, 24, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("grid", "window"), [(16, 14), (5, 3), (7, 3), (4, 4), (6, 3), (3, 7), (1, 5), (8, 5), (13, 12), (32, 14)]
)
def test_folded_attention_equals_the_official_one(grid, window):
    attention, tokens = noisy_attention(grid, window, lora_rank=2), tokens_of(grid)
    with torch.no_grad():
        folded = attention(tokens)
        attention.folded = False
        official = attention(tokens)
    torch.testing.assert_close(folded, official, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("grid", "window"), [(4, 4), (5, 3)], ids=["global", "padded windows"])
def test_heads_in_turn_give_what_all_at_once_give(grid, window, monkeypatch):
    attention, tokens = noisy_attention(grid, window), tokens_of(grid)
    with torch.no_grad():
        at_once = attention(tokens)
        monkeypatch.setattr(attention2d, "LARGEST_LOGITS", 0)
        in_turn = attention(tokens)
    torch.testing.assert_close(in_turn, at_once, rtol=0, atol=1e-12)


def test_padding_tokens_take_part_and_are_the_bias():
    """The logits written out by hand for one query in a window that is padded both ways."""
    grid, n = 5, 3
    attention, tokens = noisy_attention(grid, n), tokens_of(grid, batch=1)
    with torch.no_grad():
        padded = torch.zeros(n, n, 24, dtype=torch.float64)
        padded[:2, :2] = tokens[0, 3:, 3:]  # the last window holds 2 x 2 tokens of the grid
        q, k, v = attention.qkv(padded).reshape(n, n, 3, 3, 8).unbind(dim=2)
        i, j, head = 0, 1, 2
        logits = torch.stack(
            [
                q[i, j, head] @ k[a, b, head] / 8**0.5
                + q[i, j, head] @ attention.rel_pos_h[i - a + n - 1]
                + q[i, j, head] @ attention.rel_pos_w[j - b + n - 1]
                for a in range(n)
                for b in range(n)
            ]
        )
        expected = logits.softmax(0) @ v[:, :, head].reshape(n * n, 8)
        attention.proj.weight.copy_(torch.eye(24))
        attention.proj.bias.zero_()
        found = attention(tokens)[0, 3 + i, 3 + j].reshape(3, 8)[head]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_very_large_logits_stay_finite():
    attention = noisy_attention(5, 3).float()
    with torch.no_grad():
        attention.rel_pos_h.mul_(1e3)
        assert attention(tokens_of(5).float() * 100).isfinite().all()


@pytest.mark.parametrize("grid", [5, 6])
def test_freezing_changes_nothing_and_stops_following_the_weights(grid):
    attention, tokens = noisy_attention(grid, 3), tokens_of(grid)
    with torch.no_grad():
        before = attention(tokens)
        attention.freeze()
        torch.testing.assert_close(attention(tokens), before, rtol=0, atol=0)
        attention.rel_pos_h.zero_()
        torch.testing.assert_close(attention(tokens), before, rtol=0, atol=0)
