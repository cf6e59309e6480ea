"""What decides the shape of a SAM-Med3D or M-SAM network. Plain data, no torch: records and manifests hold it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from samkit.networks.config import NetworkConfig, below_one

STRIDE = 16
"""Voxels of the patch per token, along each axis."""
LOGIT_STRIDE = 4
"""Voxels of the patch per low-resolution logit, along each axis."""

_COUNTS = (
    "patch", "width", "depth", "heads", "mlp_ratio", "window", "channels", "decoder_heads", "decoder_mlp", "iou_hidden",
    "adapter_heads",
)  # fmt: skip


@dataclass(frozen=True)
class Sam3DConfig(NetworkConfig):
    """Sizes of one network, and the input it was trained for. The defaults are SAM-Med3D's `vit_b_ori`."""

    patch: int = 128
    """Side of the cubic input [voxels], a multiple of 16."""
    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    """Voxel size [mm] along the patient's x, y, z that the network was trained at."""
    modality: str = "mr"
    """`ct` clamps intensities to [-1000, 1000] before the z-score; `mr` does not."""
    width: int = 768
    """Token dimension of the image encoder."""
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    window: int = 14
    """Side of the one attention window [tokens] of window blocks; at least the grid's side, the rest is padding."""
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    """Blocks that attend over the grid without a padded window."""
    channels: int = 384
    """Channels of the image embedding; a multiple of 24, so that PE thirds and the upscaling divide it."""
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_hidden: int = 256
    lora_rank: int = 0
    """Rank of LoRA on q and v of every encoder block; 0 means none."""
    adapter: str | None = None
    """Topology of M-SAM's mask-enhanced adapter, `code` or `paper`; None is SAM-Med3D."""
    adapter_heads: int = 6

    def problems(self) -> list[str]:
        """Return what makes this network impossible, one clause each."""
        # Counts first: the other rules divide by them.
        return below_one(self, _COUNTS) or [
            text
            for wrong, text in (
                (self.patch % STRIDE, f"patch {self.patch} is no multiple of {STRIDE}"),
                (self.width % self.heads, f"width {self.width} is no multiple of {self.heads} heads"),
                (self.channels % 24, f"channels {self.channels} is no multiple of 24"),
                (self.window < self.grid, f"window {self.window} is smaller than the grid of {self.grid} tokens"),
                (
                    len(self.spacing) != 3 or not all(0 < edge < math.inf for edge in self.spacing),
                    f"spacing {self.spacing} is not three positive numbers [mm]",
                ),
                (self.modality not in ("mr", "ct"), f"modality '{self.modality}' is neither mr nor ct"),
                (self.adapter not in (None, "code", "paper"), f"adapter '{self.adapter}' is neither code nor paper"),
                (
                    self.adapter is not None and self.channels % self.adapter_heads,
                    f"channels {self.channels} is no multiple of {self.adapter_heads} adapter_heads",
                ),
                (self.lora_rank < 0, f"lora_rank {self.lora_rank} is below 0"),
                (min(self.global_blocks, default=0) < 0, f"global_blocks {self.global_blocks} holds a negative index"),
            )
            if wrong
        ]

    @property
    def grid(self) -> int:
        """Side of the token grid."""
        return self.patch // STRIDE

    @property
    def logits(self) -> int:
        """Side of the low-resolution logits."""
        return self.patch // LOGIT_STRIDE
