"""SAM's prompt encoder (Kirillov et al. 2023, appendix A): points, boxes and masks.

Upstream chooses in Python, from what it was given, whether a padding point joins the tokens. A graph can't, so the
padding point is always there, and masked as an attention key where upstream would leave it out.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from samkit.networks.layers import ChannelNorm
from samkit.networks.network import Foldable
from samkit.networks.sam2d_config import Sam2DConfig
from samkit.prompts import ABSENT, BACKGROUND, BOX_FIRST, BOX_LAST, FOREGROUND, PADDING


class PositionEmbedding(nn.Module):
    """Random Fourier features whose matrix comes from the checkpoint."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.positional_encoding_gaussian_matrix: Tensor
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def forward(self, unit: Tensor) -> Tensor:
        """Return the encoding (..., 2 * features) of coordinates (..., 2), x and y in [0, 1]."""
        angle = 2 * math.pi * ((2 * unit - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def of_grid(self, side: int) -> Tensor:
        """Return the encoding of the centres of a square grid, (1, 2 * features, side, side)."""
        matrix = self.positional_encoding_gaussian_matrix
        centre = (torch.arange(side, dtype=matrix.dtype, device=matrix.device) + 0.5) / side
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        out: Tensor = self(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]
        return out


class PromptEncoder2D(Foldable):
    """Points and box corners to tokens, a mask to a dense embedding."""

    def __init__(self, config: Sam2DConfig) -> None:
        super().__init__()
        channels = config.channels
        self.image, self.grid = config.image, config.grid
        self._frozen_pe: Tensor | None = None
        self.pe_layer = PositionEmbedding(channels // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, 2),
            ChannelNorm(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, 2),
            ChannelNorm(16),
            nn.GELU(),
            nn.Conv2d(16, channels, 1),
        )
        self.no_mask_embed = nn.Embedding(1, channels)

    def points(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, P+1, C), and (B, P+1) true where a token counts.

        `coords` (B, P, 2) are x, y [pixels of the network's input] before the half-pixel shift; `labels` (B, P) are
        FOREGROUND, BACKGROUND, BOX_FIRST, BOX_LAST, PADDING or ABSENT. The last token is the padding point; it counts
        in rows that have a point and no box corner.
        """
        kind = labels.unsqueeze(-1)
        coords = torch.where(kind == ABSENT, 0.0, coords)  # whatever stands there, nan included, must not matter
        encoded = self.pe_layer((coords + 0.5) / self.image) * (kind != PADDING).to(coords.dtype)
        for label, weight in (
            (PADDING, self.not_a_point_embed.weight),
            *(
                (label, self.point_embeddings.get_parameter(f"{label}.weight"))
                for label in (BACKGROUND, FOREGROUND, BOX_FIRST, BOX_LAST)
            ),
        ):
            encoded = encoded + (kind == label).to(coords.dtype) * weight
        points = ((labels == FOREGROUND) | (labels == BACKGROUND)).to(coords.dtype).sum(dim=1, keepdim=True)
        corners = ((labels == BOX_FIRST) | (labels == BOX_LAST)).to(coords.dtype).sum(dim=1, keepdim=True)
        counts = (points > 0) & (corners == 0)
        # Zeros where it doesn't count, as good as any number: a product makes rows of it, and no size has to be read.
        padding = counts.to(coords.dtype)[..., None] * self.not_a_point_embed.weight
        return torch.cat([encoded, padding], dim=1), torch.cat([labels != ABSENT, counts], dim=1)

    def mask(self, logits: Tensor, given: Tensor) -> Tensor:
        """Return the dense embedding (B, C, g, g) of a mask prompt (B, 1, S/4, S/4).

        `given` (B, 1, 1, 1) is 0.0 in rows without one, which get SAM's embedding of no mask.
        """
        if self.folded:
            return self._folded_mask(logits, given)
        return torch.where(given > 0.5, self.mask_downscaling(logits), self.without_mask())

    def _folded_mask(self, logits: Tensor, given: Tensor) -> Tensor:
        """Return what `mask` does: rows are chosen where they have 16 channels, and channels stay last until then."""
        last = cast(nn.Conv2d, self.mask_downscaling[-1])
        hidden = self.mask_downscaling[:-1](logits).flatten(2).transpose(1, 2)  # (B, N, 16)
        is_given = given.flatten(1).unsqueeze(1) > 0.5  # (B, 1, 1)
        hidden = torch.where(is_given, hidden, 0.0)
        offset = torch.where(is_given, cast(Tensor, last.bias), self.no_mask_embed.weight)
        dense = hidden @ last.weight.flatten(1).transpose(0, 1) + offset
        return dense.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def without_mask(self) -> Tensor:
        """Return the dense embedding of no mask prompt, (1, C, 1, 1)."""
        return self.no_mask_embed.weight[..., None, None]

    def dense_pe(self) -> Tensor:
        """Return the positions of the image's tokens, (1, C, g, g)."""
        if self._frozen_pe is not None:
            return self._frozen_pe
        return self.pe_layer.of_grid(self.grid)

    def freeze(self) -> None:
        """Compute `dense_pe` once, for export."""
        with torch.no_grad():
            self._frozen_pe = self.dense_pe().clone()
