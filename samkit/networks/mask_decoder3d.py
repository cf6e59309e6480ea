"""The mask decoder of SAM-Med3D (`mask_decoder3D.py`): a two-way transformer, then upscaling by four."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samkit.networks.layers import MLP
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.networks.two_way import TwoWayTransformer
from samkit.networks.upscaling import Hypernetworks, Upscaling

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
        self.output_upscaling = Upscaling(channels, axes=3)
        self.output_hypernetworks_mlps = Hypernetworks(MASK_TOKENS, channels, used=1)
        self.iou_prediction_head = MLP(channels, config.iou_hidden, MASK_TOKENS)

    def forward(self, source: Tensor, image_pe: Tensor, prompts: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, 1, P/4, P/4, P/4) and the predicted IoU (B, 1).

        `source` (B, C, g, g, g) is the image embedding with the mask prompt mixed in, `image_pe` (1, C, g, g, g),
        `prompts` (B, T, C) the prompt tokens, `present` (B, T) true where they count.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(prompts.shape[0], -1, -1)
        tokens = torch.cat([own, prompts], dim=1)
        tokens, image = self.transformer(source, image_pe, tokens, present)
        kernels = self.output_hypernetworks_mlps(tokens[:, 1 : 1 + MASK_TOKENS])
        # Upstream makes all four masks and reads the first; folded, the first alone is made.
        masks = self.output_upscaling.masks(image, kernels, (self.grid,) * 3)
        return masks[:, :1], self.iou_prediction_head(tokens[:, 0])[:, :1]
