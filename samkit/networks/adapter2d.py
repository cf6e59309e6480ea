"""The channel-spatial adapter of SAM-Med2D (Cheng et al. 2023, section 3.2), beside the MLP of every block."""

from __future__ import annotations

from torch import Tensor, nn


class ChannelSpatialAdapter(nn.Module):
    """Gate the channels, then mix neighbours at half the resolution; no batch norm.

    The grid must be even: the strided convolution and the transposed one undo each other's sizes only then.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, width // 4, bias=False),
            nn.ReLU(),
            nn.Linear(width // 4, width, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the tokens, (B, g, g, D), from normalised tokens of that shape."""
        gated = x * self.channel(x.mean(dim=(1, 2)))[:, None, None]
        # The skip is around both: it carries the channels as they were before the gate.
        mixed: Tensor = self.norm(x + self.spatial(gated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return mixed
