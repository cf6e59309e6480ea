"""SAM's two-way transformer (Kirillov et al. 2023, appendix A): prompt tokens and a map attend to each other.

It is the same in the 2D and the 3D networks. Parameter names are the official ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samkit.models.layers import MLPBlock
from samkit.models.lora import LoraLinear

_MASKED = -3.0e4
"""Added to the logits of absent keys: their softmax weight is exactly zero, and FP16 still holds the number."""


class _Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the token dimension; LoRA sits on q and v."""

    def __init__(self, dim: int, heads: int, shrink: int = 1, lora_rank: int = 0) -> None:
        super().__init__()
        inner = dim // shrink
        self.heads = heads
        self.q_proj = LoraLinear(dim, inner, lora_rank) if lora_rank else nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = LoraLinear(dim, inner, lora_rank) if lora_rank else nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, penalty: Tensor | None = None) -> Tensor:
        """Return (B, Q, C) for queries (B, Q, C), keys and values (B, K, C); `penalty` is (B, 1, 1, K)."""
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if penalty is not None:
            logits = logits + penalty
        out: Tensor = self.out_proj((logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)


class _TwoWayBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, first: bool, lora_rank: int) -> None:
        super().__init__()
        self.first = first
        self.self_attn = _Attention(dim, heads, 1, lora_rank)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = _Attention(dim, heads, 2, lora_rank)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, hidden, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = _Attention(dim, heads, 2, lora_rank)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor, penalty: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens, penalty)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn(placed, placed, tokens, penalty)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.cross_attn_image_to_token(image + image_pe, tokens + token_pe, tokens, penalty)
        return tokens, self.norm4(image + update)


class TwoWayTransformer(nn.Module):
    """Tokens and image attend to each other in turn; the tokens' initial values serve as their positions."""

    def __init__(self, channels: int, heads: int, mlp: int, depth: int = 2, lora_rank: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _TwoWayBlock(channels, heads, mlp, first=index == 0, lora_rank=lora_rank) for index in range(depth)
        )
        self.final_attn_token_to_image = _Attention(channels, heads, 2, lora_rank)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self, image: Tensor, image_pe: Tensor, tokens: Tensor, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens (B, T, C) and the image's tokens (B, N, C), N the product of its sides.

        `image` (B, C, ...) and `image_pe` (1, C, ...) are maps of two or three axes, `tokens` (B, T, C); `present`
        (B, T) is true where a token counts, None where all do: absent ones are masked as keys, so they change nothing.
        """
        penalty = None
        if present is not None:
            penalty = torch.where(present, 0.0, _MASKED).to(tokens.dtype)[:, None, None]
        image, image_pe = image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2)
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, penalty)
        update = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + update), image
