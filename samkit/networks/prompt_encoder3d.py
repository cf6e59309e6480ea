"""The prompt encoder of SAM-Med3D (`prompt_encoder3D.py`): points and the previous logits; no boxes.

Upstream's box code indexes embeddings that do not exist, and the authors trained without boxes, so there are none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from samkit.networks.layers import ChannelNorm
from samkit.networks.network import Foldable
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.prompts import ABSENT, BACKGROUND, FOREGROUND, PADDING


class _PositionEmbedding(nn.Module):
    """Random Fourier features whose matrix comes from the checkpoint."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.positional_encoding_gaussian_matrix: Tensor
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, features))

    def forward(self, unit: Tensor) -> Tensor:
        """Return the encoding (..., 3 * features) of coordinates (..., 3) in [0, 1]; the last third repeats sin."""
        angle = 2 * math.pi * ((2 * unit - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)


class PromptEncoder3D(Foldable):
    """Points to tokens, logits to a dense embedding."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        channels = config.channels
        self.patch, self.grid = config.patch, config.grid
        self._frozen_pe: Tensor | None = None
        self.pe_layer = _PositionEmbedding(channels // 3)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(2))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, 4, 2, 2),
            ChannelNorm(4),
            nn.GELU(),
            nn.Conv3d(4, 16, 2, 2),
            ChannelNorm(16),
            nn.GELU(),
            nn.Conv3d(16, channels, 1),
        )
        # Part of the official files; every pipeline feeds a mask of zeros instead, so nothing reads it.
        self.no_mask_embed = nn.Embedding(1, channels)

    def points(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, N+1, C) and whether each takes part in attention, boolean (B, N+1).

        `coords` (B, N, 3) are voxel indices of the patch before the half-voxel shift, `labels` (B, N) are
        FOREGROUND, BACKGROUND, PADDING or ABSENT. The last token is the padding point that upstream appends when
        there is no box; it is absent when every point is, as upstream's `points=None`.
        """
        kind = labels.unsqueeze(-1)
        coords = torch.where(kind == ABSENT, 0.0, coords)  # whatever stands there, nan included, must not matter
        encoded = self.pe_layer((coords + 0.5) / self.patch) * (kind != PADDING).to(coords.dtype)
        for label, weight in (
            (PADDING, self.not_a_point_embed.weight),
            (BACKGROUND, self.point_embeddings.get_parameter("0.weight")),
            (FOREGROUND, self.point_embeddings.get_parameter("1.weight")),
        ):
            encoded = encoded + (kind == label).to(coords.dtype) * weight
        present = labels != ABSENT
        any_present = present.to(coords.dtype).sum(dim=1, keepdim=True) > 0
        # Zeros where it is absent, as good as any number: a product makes rows of it, which no size has to be read for.
        padding = any_present.to(coords.dtype)[..., None] * self.not_a_point_embed.weight
        return torch.cat([encoded, padding], dim=1), torch.cat([present, any_present], dim=1)

    def mask(self, logits: Tensor) -> Tensor:
        """Return the dense embedding (B, C, g, g, g) of raw logits (B, 1, P/4, P/4, P/4)."""
        out: Tensor = self.mask_downscaling(logits)
        return out

    def dense_pe(self) -> Tensor:
        """Return the image tokens' positions, (1, C, g, g, g); axes 0 and 1 are swapped, as upstream has them."""
        if self._frozen_pe is not None:
            return self._frozen_pe
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        centre = (torch.arange(self.grid, dtype=matrix.dtype, device=matrix.device) + 0.5) / self.grid
        i, j, k = torch.meshgrid(centre, centre, centre, indexing="ij")
        out: Tensor = self.pe_layer(torch.stack([j, i, k], dim=-1)).permute(3, 0, 1, 2)[None]
        return out

    def freeze(self) -> None:
        """Compute `dense_pe` once, for export."""
        with torch.no_grad():
            self._frozen_pe = self.dense_pe().clone()
