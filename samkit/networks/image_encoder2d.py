"""SAM's image encoder (Kirillov et al. 2023, appendix A): a ViT with windows, and a neck of two convolutions.

Parameter names are the official ones. `ImageEncoder2D` leaves three methods to what is built on it: `embed`,
`positions` and `branches`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from samkit.networks.adapter2d import ChannelSpatialAdapter
from samkit.networks.attention2d import WindowAttention
from samkit.networks.layers import ChannelNorm, MLPBlock
from samkit.networks.sam2d_config import STRIDE, Sam2DConfig, VitConfig

Branch = Callable[[Tensor], Tensor] | None
"""What runs beside a block's MLP: its normalised input (B, g, g, D) to what is added to its output."""


class PatchEmbed(nn.Module):
    """Images (B, 3, S, S) to tokens (B, g, g, D), one for each 16 x 16 pixels."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, STRIDE, STRIDE)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.proj(image).permute(0, 2, 3, 1)
        return out


class Block(nn.Module):
    """One block of the encoder, (B, g, g, D) to the same shape.

    It attends in windows, or over the whole grid where `config.global_blocks` holds `index`.
    """

    def __init__(
        self, config: VitConfig, index: int, *, lora_rank: int = 0, lora_targets: str = "qv", adapter: bool = False
    ) -> None:
        super().__init__()
        width, grid = config.width, config.grid
        window = grid if index in config.global_blocks else config.window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = WindowAttention(width, config.heads, grid, window, lora_rank, lora_targets)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLPBlock(width, config.mlp_ratio * width)
        self.Adapter = ChannelSpatialAdapter(width) if adapter else None

    def forward(self, x: Tensor, branch: Branch = None) -> Tensor:
        x = x + self.attn(self.norm1(x))
        normed = self.norm2(x)
        x = x + self.mlp(normed)
        if self.Adapter is not None:
            x = x + self.Adapter(normed)
        return x if branch is None else x + branch(normed)


class Neck(nn.Sequential):
    """Tokens as a map (B, D, g, g) to the image embedding (B, C, g, g)."""

    def __init__(self, config: VitConfig) -> None:
        channels = config.channels
        super().__init__(
            nn.Conv2d(config.width, channels, 1, bias=False),
            ChannelNorm(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ChannelNorm(channels),
        )


class ImageEncoder2D(nn.Module):
    """The encoder, with LoRA and SAM-Med2D's adapters where the config has them."""

    def __init__(self, config: Sam2DConfig) -> None:
        super().__init__()
        rank = config.lora_rank if config.lora_place != "decoder" else 0
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.width))
        self.blocks = nn.ModuleList(
            Block(config, index, lora_rank=rank, lora_targets=config.lora_targets, adapter=config.adapter)
            for index in range(config.depth)
        )
        self.neck = Neck(config)

    def forward(self, image: Tensor) -> Tensor:
        """Return the image embedding (B, C, g, g) of normalised images (B, 3, S, S)."""
        tokens = self.embed(image) + self.positions()
        for block, branch in zip(self.blocks, self.branches(image), strict=True):
            tokens = block(tokens, branch)
        out: Tensor = self.neck(tokens.permute(0, 3, 1, 2))
        return out

    def embed(self, image: Tensor) -> Tensor:
        """Return the tokens (B, g, g, D) that positions are added to."""
        tokens: Tensor = self.patch_embed(image)
        return tokens

    def positions(self) -> Tensor:
        """Return the table of absolute positions, (1, g, g, D)."""
        return self.pos_embed

    def branches(self, image: Tensor) -> Sequence[Branch]:
        """Return what runs beside the MLP of each block, nothing here."""
        return [None] * len(self.blocks)
