"""LMSFE-SAM's image encoder: SAM-Med2D's, and beside it a convolutional one.

Source: Di et al. 2025, J. Meas. Sci. Instrum. 16(3), 359-370. Added to SAM-Med2D, whose adapter in every block is the
paper's channel-spatial adapter (section 1.3.3):

local encoder       multi-scale convolutions of the image, one vector for each token of the ViT (1.1, Eq. 1 to 3)
balancing adapter   mixes the local vectors into the global blocks, parallel to their MLP (1.2, Eq. 5 to 8)
position adapter    shrinks SAM's position table, four times the grid, to the grid (1.3.1)
feature adapter     a bottleneck on the patch embedding (1.3.2, Eq. 10)

The paper is silent on most widths and strides; they are its public ancestors' (YOLOv7's pyramid, BUSSAM's and
SAMUS's adapters), which also explain its equations. Its own Eq. 9 would delete each channel's mean from the position
table; as in its ancestors, norms are over the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.errors import CheckpointError
from samkit.networks.image_encoder2d import Branch, ImageEncoder2D
from samkit.networks.layers import ChannelNorm
from samkit.networks.mhpm import Mhpm
from samkit.networks.network import Foldable
from samkit.networks.sam2d_config import Sam2DConfig
from samkit.networks.yolo_layers import Conv  # batch norms as in YOLOv7, which the local encoder's pyramid is from

POOLS = (5, 9, 13)
"""Sides of the max-pooling windows (Eq. 2)."""
SHRINK = 4
"""Bottleneck of the feature and balancing adapters, as a divisor of the width; SAM-Med2D's ratio too."""
BALANCE = 0.5
"""The scaling factor of Eq. 8, which the paper does not give; BUSSAM's."""
TABLE_SCALE = 4
"""Side of the stored position table in grids: SAM's 64 x 64 over 16 x 16."""


class LocalEncoder(nn.Module):
    """`image` (B, 3, S, S), normalised, to one vector per token (B, S/16, S/16, D); widths are multiples of `w`."""

    def __init__(self, config: Sam2DConfig) -> None:
        super().__init__()
        w = config.local_width
        self.backbone = nn.ModuleList(
            Conv(before, after, 3, stride=2) for before, after in ((3, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w))
        )
        self.reduce = nn.Sequential(Conv(14 * w, 8 * w, 1), Conv(8 * w, 8 * w, 3), Conv(8 * w, 8 * w, 1))
        self.mixers = nn.ModuleList(Mhpm(8 * w, 8 * w, config.grid) for _ in POOLS)
        self.merge = nn.Sequential(Conv(32 * w, 8 * w, 1), Conv(8 * w, 8 * w, 3))
        self.bypass = Conv(14 * w, 8 * w, 3)
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
        self.down = nn.Linear(width, width // SHRINK)
        self.up = nn.Linear(width // SHRINK, width)
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


class PositionAdapter(nn.Sequential):
    """Position table (1, D, 4g, 4g) to the grid's (1, D, g, g): pooling, convolution, norm and GELU, twice."""

    def __init__(self, width: int) -> None:
        super().__init__(
            *(
                nn.Sequential(
                    nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width), nn.GELU()
                )
                for _ in range(2)
            )
        )


class LmsfeImageEncoder(ImageEncoder2D, Foldable):
    """The encoder with a local branch: `image` (B, 3, S, S), normalised, to `image_embeddings` (B, C, g, g).

    Positions don't depend on the image. `freeze` keeps them; until then every pass computes them.
    """

    adapted: Tensor | None

    def __init__(self, config: Sam2DConfig) -> None:
        super().__init__(config)
        side = TABLE_SCALE * config.grid
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.width))
        self.position_adapter = PositionAdapter(config.width)
        self.feature_adapter = Bottleneck(config.width)
        self.local_encoder = LocalEncoder(config)
        self.balancing_adapters = nn.ModuleDict(
            {str(index): BalancingAdapter(config.width) for index in config.global_blocks}
        )
        self.register_buffer("adapted", None, persistent=False)

    def embed(self, image: Tensor) -> Tensor:
        """Return the patch embedding (B, g, g, D) with the feature adapter's update."""
        tokens = super().embed(image)
        return tokens + self.feature_adapter(tokens)

    def positions(self) -> Tensor:
        """Return the table of absolute positions, (1, g, g, D)."""
        if self.folded and self.adapted is not None:
            return self.adapted
        return self.position_adapter(self.pos_embed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def branches(self, image: Tensor) -> Sequence[Branch]:
        """Return the balancing adapters of the global blocks, which hold the local vectors of `image`."""
        local = self.local_encoder(image)
        adapters = dict(self.balancing_adapters.items())
        return [
            partial(adapters[str(index)], local=local) if str(index) in adapters else None
            for index in range(len(self.blocks))
        ]

    def freeze(self) -> None:
        """Compute the positions once, for export; later changes of the weights are not seen any more."""
        with torch.no_grad():
            self.adapted = self.positions().clone()


def lmsfe_from_sam_med2d(
    state: Mapping[str, Tensor], config: Sam2DConfig, position_table: Tensor | None = None
) -> dict[str, Tensor]:
    """Return SAM-Med2D's `state` as far as LMSFE-SAM has it; what LMSFE-SAM adds is not among it and starts fresh.

    `position_table` is SAM ViT-B's own, (1, 64, 64, D). Without it SAM-Med2D's (1, 16, 16, D) is enlarged, bilinear.
    """
    name = "image_encoder.pos_embed"
    own = state.get(name)
    if own is None or own.ndim != 4 or own.shape[-1] != config.width:
        found = "no such tensor" if own is None else f"shape {tuple(own.shape)}"
        raise CheckpointError(
            f"lmsfe-sam starts from SAM-Med2D, whose {name} is (1, g, g, {config.width}), but this file has {found}; "
            "give a SAM-Med2D checkpoint or a config of its width"
        )
    table = own if position_table is None else position_table
    if table.shape[-1] != config.width:
        raise CheckpointError(
            f"the position table is {table.shape[-1]} wide and the network {config.width}; "
            "give the table of the SAM that SAM-Med2D was made from, ViT-B"
        )
    side = TABLE_SCALE * config.grid
    if table.shape[1:3] != (side, side):
        table = F.interpolate(
            table.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", align_corners=False
        ).permute(0, 2, 3, 1)
    return {**state, name: table}
