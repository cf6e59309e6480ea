"""The mask decoder of SAM-Med3D (`mask_decoder3D.py`): a two-way transformer, then upscaling by four."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samkit.models.layers import MLP, ChannelNorm
from samkit.models.sam3d_config import Sam3DConfig
from samkit.models.two_way import TwoWayTransformer

MASK_TOKENS = 4
"""One mask plus three for ambiguous prompts. Every pipeline reads the first alone, and so do we."""


class MaskDecoder3D(nn.Module):
    """Image source, positions and prompt tokens to low-resolution logits and a predicted IoU."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        channels = config.channels
        self.grid = config.grid
        self.transformer = TwoWayTransformer(channels, config.decoder_heads, config.decoder_mlp)
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
        `prompts` (B, T, C) the prompt tokens, `present` (B, T) true where they count.
        """
        batch, g = source.shape[0], self.grid
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        tokens = torch.cat([own, prompts], dim=1)
        present = torch.cat([torch.ones_like(own[..., 0], dtype=torch.bool), present], dim=1)
        tokens, image = self.transformer(source, image_pe, tokens, present)
        features = self.output_upscaling(image.transpose(1, 2).reshape(batch, -1, g, g, g))
        kernel = self.output_hypernetworks_mlps[0](tokens[:, 1:2])
        side = features.shape[-1]
        masks = (kernel @ features.flatten(2)).reshape(batch, 1, side, side, side)
        return masks, self.iou_prediction_head(tokens[:, 0])[:, :1]
