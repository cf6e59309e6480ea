"""What decides the shape of the 2D networks: SAM's image encoder, and SAM whole. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from samkit.networks.config import NetworkConfig, below_one

STRIDE = 16
"""Pixels of the input per token, along each axis."""
LOGIT_STRIDE = 4
"""Pixels of the input per low-resolution logit, along each axis."""
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of red, green and blue, 0..255, in what SAM was trained on (segment-anything, `build_sam.py`)."""
LORA_PLACES = ("encoder", "decoder", "both")
SUBCORTICAL = tuple(
    f"{structure}_{side}"
    for side in ("left", "right")
    for structure in ("thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala")
)
"""The structures of LoRA-SAM in the order of mask tokens 1 to 12: the six on the left, then those on the right.

FreeSurfer labels them 10, 11, 12, 13, 17, 18 and 49, 50, 51, 52, 53, 54.
"""
ARCHS: dict[str, dict[str, Any]] = {
    "vit_b": {"width": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "vit_l": {"width": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23)},
    "vit_h": {"width": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)},
}
"""SAM's three image encoders: the fields in which they differ."""


@dataclass(frozen=True)
class VitConfig(NetworkConfig):
    """SAM's image encoder. The defaults are ViT-B at 1024 pixels."""

    image: int = 1024
    """Side of the square input [pixels], a multiple of 16."""
    width: int = 768
    """Token dimension of the image encoder."""
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    window: int = 14
    """Side of the attention windows [tokens] of all blocks but the global ones."""
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    """Blocks that attend over the whole grid."""
    channels: int = 256
    """Channels of the image embedding."""

    def problems(self) -> list[str]:
        """Return what makes this network impossible, one clause each."""
        return below_one(self, ("image", "width", "depth", "heads", "mlp_ratio", "window", "channels")) or [
            text
            for wrong, text in (
                (self.image % STRIDE, f"image {self.image} is no multiple of {STRIDE}"),
                (self.width % self.heads, f"width {self.width} is no multiple of {self.heads} heads"),
                (self.channels % 8, f"channels {self.channels} is no multiple of 8"),
                (
                    any(not 0 <= block < self.depth for block in self.global_blocks),
                    f"global_blocks {self.global_blocks} names blocks beyond 0 to {self.depth - 1}",
                ),
            )
            if wrong
        ]

    @property
    def grid(self) -> int:
        """Side of the token grid."""
        return self.image // STRIDE

    @property
    def logits(self) -> int:
        """Side of the low-resolution logits."""
        return self.image // LOGIT_STRIDE


@dataclass(frozen=True)
class Sam2DConfig(VitConfig):
    """SAM and what is built on it: SAM-Med2D, LoRA-SAM, LMSFE-SAM. The defaults are SAM ViT-B."""

    masks: int = 4
    """Mask tokens: 4 in SAM (one single mask and three proposals); background and structures in LoRA-SAM."""
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_hidden: int = 256
    adapter: bool = False
    """SAM-Med2D's channel-spatial adapter in every encoder block."""
    local_branch: bool = False
    """LMSFE-SAM's local encoder and its position, feature and cross-branch balancing adapters."""
    local_width: int = 32
    """Channels of the local encoder's first convolution; the others are multiples of it."""
    lora_rank: int = 0
    """Rank of LoRA; 0 means none."""
    lora_targets: str = "qv"
    """Which projections carry LoRA in the encoder: letters of q, k and v."""
    lora_place: str = "encoder"
    """Where LoRA sits: encoder, decoder or both."""
    structures: tuple[str, ...] = ()
    """Names of the structures that mask tokens 1, 2, ... stand for; empty where they are proposals."""

    def problems(self) -> list[str]:
        """Return what makes this network impossible, one clause each."""
        return (
            super().problems()
            or below_one(self, ("masks", "decoder_heads", "decoder_mlp", "iou_hidden", "local_width"))
            or [
                text
                for wrong, text in (
                    (
                        self.channels % (2 * self.decoder_heads),
                        f"channels {self.channels} is no multiple of twice the {self.decoder_heads} decoder_heads",
                    ),
                    (
                        self.adapter and self.grid % 2,
                        f"image {self.image} is no multiple of {2 * STRIDE}, which the adapter needs",
                    ),
                    (self.lora_rank < 0, f"lora_rank {self.lora_rank} is below 0"),
                    (
                        not self.lora_targets or set(self.lora_targets) - set("qkv"),
                        f"lora_targets '{self.lora_targets}' are not letters of q, k, v",
                    ),
                    (
                        self.lora_place not in LORA_PLACES,
                        f"lora_place '{self.lora_place}' is none of {', '.join(LORA_PLACES)}",
                    ),
                    (
                        self.structures and len(self.structures) != self.masks - 1,
                        f"{len(self.structures)} structures do not fit {self.masks} masks with one for the background",
                    ),
                )
                if wrong
            ]
        )
