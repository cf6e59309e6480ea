"""The ViT image encoder of SAM-Med3D (`image_encoder3D.py`, vit_b_ori), with optional LoRA (M-SAM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samkit.networks.attention3d import RelPosAttention
from samkit.networks.layers import ChannelNorm, MLPBlock
from samkit.networks.sam3d_config import STRIDE, Sam3DConfig


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(1, width, STRIDE, STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).permute(0, 2, 3, 4, 1)
        return out


class _Block(nn.Module):
    def __init__(self, config: Sam3DConfig, window: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = RelPosAttention(config.width, config.heads, config.grid, window, config.lora_rank)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLPBlock(config.width, config.mlp_ratio * config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ImageEncoder3D(nn.Module):
    """`image` (B, 1, P, P, P), z-scored, to `image_embeddings` (B, C, g, g, g)."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        g = config.grid
        self.patch_embed = _PatchEmbed(config.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, g, g, g, config.width))
        self.blocks = nn.ModuleList(
            _Block(config, g if index in config.global_blocks else config.window) for index in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv3d(config.width, config.channels, 1, bias=False),
            ChannelNorm(config.channels),
            nn.Conv3d(config.channels, config.channels, 3, padding=1, bias=False),
            ChannelNorm(config.channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.permute(0, 4, 1, 2, 3))
        return out
