"""The mask decoder of SAM-Med3D (`mask_decoder3D.py`): a two-way transformer, then upscaling by four."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samkit.models.layers import MLP, ChannelNorm, MLPBlock
from samkit.models.sam3d_config import Sam3DConfig

MASK_TOKENS = 4
"""One mask plus three for ambiguous prompts. Every pipeline reads the first alone, and so do we."""

_MASKED = -3.0e4
"""Added to the logits of absent keys: their softmax weight is exactly zero, and FP16 still holds the number."""


class _Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the token dimension."""

    def __init__(self, dim: int, heads: int, shrink: int = 1) -> None:
        super().__init__()
        inner = dim // shrink
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
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
    def __init__(self, dim: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = _Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = _Attention(dim, heads, shrink=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, hidden, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = _Attention(dim, heads, shrink=2)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor, penalty: Tensor
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


class _TwoWayTransformer(nn.Module):
    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        dim, heads = config.channels, config.decoder_heads
        self.layers = nn.ModuleList(_TwoWayBlock(dim, heads, config.decoder_mlp, first=i == 0) for i in range(2))
        self.final_attn_token_to_image = _Attention(dim, heads, shrink=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, penalty)
        update = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + update), image


class MaskDecoder3D(nn.Module):
    """Image source, positions and prompt tokens to low-resolution logits and a predicted IoU."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        channels = config.channels
        self.grid = config.grid
        self.transformer = _TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(channels, channels // 4, 2, 2),
            ChannelNorm(channels // 4),
            nn.GELU(),
            nn.ConvTranspose3d(channels // 4, channels // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, channels // 8) for _ in range(MASK_TOKENS)
        )
        self.iou_prediction_head = MLP(channels, config.iou_hidden, MASK_TOKENS)

    def forward(self, source: Tensor, image_pe: Tensor, prompts: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, 1, P/4, P/4, P/4) and the predicted IoU (B, 1).

        `source` (B, C, g, g, g) is the image embedding with the mask prompt mixed in, `image_pe` (1, C, g, g, g),
        `prompts` (B, T, C) the prompt tokens, `present` (B, T) 1.0 or 0.0: absent ones are masked as keys, so they
        change nothing.
        """
        batch, g = source.shape[0], self.grid
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        tokens = torch.cat([own, prompts], dim=1)
        present = torch.cat([torch.ones_like(own[..., 0]), present], dim=1)
        penalty = ((1 - present) * _MASKED)[:, None, None]
        tokens, image = self.transformer(
            tokens, source.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2), penalty
        )
        features = self.output_upscaling(image.transpose(1, 2).reshape(batch, -1, g, g, g))
        kernel = self.output_hypernetworks_mlps[0](tokens[:, 1:2])
        side = features.shape[-1]
        masks = (kernel @ features.flatten(2)).reshape(batch, 1, side, side, side)
        return masks, self.iou_prediction_head(tokens[:, 0])[:, :1]
