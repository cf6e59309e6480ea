"""LMSFE-SAM's image encoder: SAM-Med2D's, and beside it a convolutional one (J. Meas. Sci. Instrum. 16(3), 359-370, 2025).

Added to SAM-Med2D (whose adapter in every block is the paper's channel-spatial adapter, section 1.3.3):

local encoder       multi-scale convolutions of the image, one vector for each token of the ViT (1.1, Eq. 1 to 3)
balancing adapter   mixes the local vectors into the global blocks, parallel to their MLP (1.2, Eq. 5 to 8)
position adapter    shrinks SAM's position table, four times the grid, to the grid (1.3.1)
feature adapter     a bottleneck on the patch embedding (1.3.2, Eq. 10)

The paper is silent on most widths and strides; they are its public ancestors' (YOLOv7's pyramid, BUSSAM's and
SAMUS's adapters), which also explain its equations. Its own Eq. 9 would delete each channel's mean from the position
table; as in its ancestors, norms are over the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.models.layers import ChannelNorm
from samkit.models.mhpm import Mhpm
from samkit.models.network import Foldable
from samkit.models.sam2d_config import Sam2DConfig

POOLS = (5, 9, 13)
"""Sides of the max-pooling windows (Eq. 2)."""
SHRINK = 4
"""Bottleneck of the feature and balancing adapters, as a divisor of the width; SAM-Med2D's ratio too."""
BALANCE = 0.5
"""The scaling factor of Eq. 8, which the paper does not give; BUSSAM's."""
TABLE_SCALE = 4
"""Side of the stored position table in grids: SAM's 64 x 64 over 16 x 16."""


class ConvNorm(Foldable):
    """Convolution without bias, batch norm, SiLU: (B, c, H, W) to (B, d, H/stride, W/stride).

    Frozen, the norm's running statistics are part of the convolution.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self._frozen: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.folded and self._frozen is not None:
            weight, bias = self._frozen
            return F.silu(F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding))
        return F.silu(self.norm(self.conv(x)))

    def freeze(self) -> None:
        """Merge the norm into the convolution, for export; later changes of either are not seen any more."""
        with torch.no_grad():
            statistics = dict(self.norm.named_buffers())
            gain = self.norm.weight / torch.sqrt(statistics["running_var"] + self.norm.eps)
            bias = self.norm.bias - statistics["running_mean"] * gain
            self._frozen = self.conv.weight * gain[:, None, None, None], bias


class LocalEncoder(nn.Module):
    """`image` (B, 3, S, S), normalised, to one vector per token (B, S/16, S/16, D); widths are multiples of `w`."""

    def __init__(self, config: Sam2DConfig) -> None:
        super().__init__()
        w = config.local_width
        self.backbone = nn.ModuleList(
            ConvNorm(before, after, 3, stride=2) for before, after in ((3, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w))
        )
        self.reduce = nn.Sequential(ConvNorm(14 * w, 8 * w, 1), ConvNorm(8 * w, 8 * w, 3), ConvNorm(8 * w, 8 * w, 1))
        self.mixers = nn.ModuleList(Mhpm(8 * w, 8 * w, config.grid) for _ in POOLS)
        self.merge = nn.Sequential(ConvNorm(32 * w, 8 * w, 1), ConvNorm(8 * w, 8 * w, 3))
        self.bypass = ConvNorm(14 * w, 8 * w, 3)
        self.out = nn.Conv2d(16 * w, config.width, 1)

    def forward(self, image: Tensor) -> Tensor:
        quarter = self.backbone[1](self.backbone[0](image))
        eighth = self.backbone[2](quarter)
        sixteenth = self.backbone[3](eighth)
        stages = torch.cat([F.max_pool2d(quarter, 4), F.max_pool2d(eighth, 2), sixteenth], dim=1)
        reduced = self.reduce(stages)  # Eq. 1
        pooled = [
            mixer(F.max_pool2d(reduced, side, stride=1, padding=side // 2))
            for side, mixer in zip(POOLS, self.mixers, strict=True)
        ]  # Eq. 2
        merged = self.merge(torch.cat([reduced, *pooled], dim=1))
        out: Tensor = self.out(torch.cat([merged, self.bypass(stages)], dim=1))  # Eq. 3
        return out.permute(0, 2, 3, 1)


class Bottleneck(nn.Module):
    """Linear down, GELU, linear up (Eq. 10 without its skip); it starts as zero, so that training starts from SAM's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, max(1, width // SHRINK))
        self.up = nn.Linear(max(1, width // SHRINK), width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(F.gelu(self.down(x)))
        return out


class BalancingAdapter(nn.Module):
    """Cross-branch balancing (Eq. 5 to 8): global and local tokens, each (B, g, g, D), to an update of that shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bottleneck = Bottleneck(width)

    def forward(self, tokens: Tensor, local: Tensor) -> Tensor:
        both = tokens + local
        extremes = torch.stack([both.amax(dim=-1), both.mean(dim=-1)], dim=1)  # (B, 2, g, g)
        weights = self.weigh(extremes).sigmoid().movedim(1, -1)
        out: Tensor = BALANCE * self.bottleneck(weights * both)
        return out


class PositionAdapter(Foldable):
    """Position table (1, 4g, 4g, D) to the grid's (1, g, g, D): pooling, convolution, norm and GELU, twice.

    The table is a weight, so `freeze` keeps the result.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width), nn.GELU()
            )
            for _ in range(2)
        )

    def forward(self, table: Tensor) -> Tensor:
        x = table.permute(0, 3, 1, 2)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 2, 3, 1)
