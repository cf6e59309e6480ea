"""What decides the shape of BrainSegDMIF. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from samkit.networks.config import below_one
from samkit.networks.sam2d_config import VitConfig


@dataclass(frozen=True)
class DmifConfig(VitConfig):
    """One image encoder for each sequence, fused in every layer. The defaults are the paper's, with four sequences."""

    image: int = 256
    sequences: tuple[str, ...] = ("t1n", "t1c", "t2w", "t2f")
    """The co-registered sequences, in the order of the input's channels."""
    shared_encoder: bool = False
    """One encoder for all sequences instead of one each."""
    hidden: int = 4
    """Hidden channels of the fusion per sequence."""
    bottleneck: int = 96
    """Bottleneck of the fusion's enhancement."""
    masks: int = 4
    """Learned mask tokens of the prompt generator; the first one is the mask."""
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    upscaled: int = 64
    """Channels of the three upsampled maps."""

    def problems(self) -> list[str]:
        """Return what makes this network impossible, one clause each."""
        counts = ("hidden", "bottleneck", "masks", "decoder_heads", "decoder_mlp", "upscaled")
        return (
            super().problems()
            or below_one(self, counts)
            or [
                text
                for wrong, text in (
                    (
                        self.channels % (2 * self.decoder_heads),
                        f"channels {self.channels} is no multiple of twice the {self.decoder_heads} decoder_heads",
                    ),
                    (
                        not 1 <= len(set(self.sequences)) == len(self.sequences) <= 4,
                        f"sequences {self.sequences} are not one to four different names",
                    ),
                )
                if wrong
            ]
        )

    @property
    def encoders(self) -> int:
        """How many image encoders there are."""
        return 1 if self.shared_encoder else len(self.sequences)
