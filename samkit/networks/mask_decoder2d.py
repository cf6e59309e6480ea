"""SAM's mask decoder (Kirillov et al. 2023, appendix A): a two-way transformer, then upscaling by four.

Parameter names are the official ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samkit.networks.layers import MLP
from samkit.networks.sam2d_config import Sam2DConfig
from samkit.networks.two_way import TwoWayTransformer
from samkit.networks.upscaling import Hypernetworks, Upscaling


class MaskDecoder2D(nn.Module):
    """Image source, positions and prompt tokens to low-resolution logits and predicted IoU, of all mask tokens."""

    def __init__(self, config: Sam2DConfig) -> None:
        super().__init__()
        channels, masks = config.channels, config.masks
        rank = config.lora_rank if config.lora_place != "encoder" else 0
        self.transformer = TwoWayTransformer(channels, config.decoder_heads, config.decoder_mlp, lora_rank=rank)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(masks, channels)
        self.output_upscaling = Upscaling(channels, axes=2)
        self.output_hypernetworks_mlps = Hypernetworks(masks, channels, used=masks)
        self.iou_prediction_head = MLP(channels, config.iou_hidden, masks)

    def forward(self, source: Tensor, image_pe: Tensor, prompts: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K, S/4, S/4) and predicted IoU (B, K).

        `source` (1 or B, C, g, g) is the image embedding plus the dense prompt, `image_pe` (1, C, g, g), `prompts`
        (B, T, C) the prompt tokens, `present` (B, T) true where they count.
        """
        batch, (height, width) = prompts.shape[0], source.shape[2:]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        tokens = torch.cat([own, prompts], dim=1)
        tokens, image = self.transformer(source, image_pe, tokens, present)
        kernels = self.output_hypernetworks_mlps(tokens[:, 1 : 1 + len(self.output_hypernetworks_mlps)])
        masks = self.output_upscaling.masks(image, kernels, (height, width))
        return masks, self.iou_prediction_head(tokens[:, 0])
