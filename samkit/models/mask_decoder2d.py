"""SAM's mask decoder (Kirillov et al. 2023, appendix A): a two-way transformer, then upscaling by four.

Parameter names are the official ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samkit.models.layers import MLP, ChannelNorm
from samkit.models.sam2d_config import Sam2DConfig
from samkit.models.two_way import TwoWayTransformer


class MaskDecoder2D(nn.Module):
    """Image source, positions and prompt tokens to low-resolution logits and predicted IoU, of all mask tokens."""

    def __init__(self, config: Sam2DConfig) -> None:
        super().__init__()
        channels, masks = config.channels, config.masks
        rank = config.lora_rank if config.lora_place != "encoder" else 0
        self.logits = config.logits
        self.transformer = TwoWayTransformer(channels, config.decoder_heads, config.decoder_mlp, lora_rank=rank)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(masks, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, 2, 2),
            ChannelNorm(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(channels, channels, channels // 8) for _ in range(masks))
        self.iou_prediction_head = MLP(channels, config.iou_hidden, masks)

    def forward(self, source: Tensor, image_pe: Tensor, prompts: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K, S/4, S/4) and predicted IoU (B, K).

        `source` (B, C, g, g) is the image embedding plus the dense prompt, `image_pe` (1, C, g, g), `prompts`
        (B, T, C) the prompt tokens, `present` (B, T) true where they count.
        """
        batch, _, height, width = source.shape
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        tokens = torch.cat([own, prompts], dim=1)
        present = torch.cat([torch.ones_like(own[..., 0], dtype=torch.bool), present], dim=1)
        tokens, image = self.transformer(source, image_pe, tokens, present)
        features = self.output_upscaling(image.transpose(1, 2).reshape(batch, -1, height, width))
        kernels = [mlp(tokens[:, 1 + number]) for number, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.stack(kernels, dim=1) @ features.flatten(2)
        return masks.reshape(batch, -1, self.logits, self.logits), self.iou_prediction_head(tokens[:, 0])
