"""MHPM, the multi-axis Hadamard product module of LMSFE-SAM (section 1.1.1, Algorithm 1, Eq. 4).

A quarter of the channels is multiplied by a learned map over H x W, a quarter by one over C x H, a quarter by one
over C x W, and a quarter is convolved. The paper's algorithm leaves out what its ancestor has, EGE-UNet's grouped
attention: that function is computed here, under its parameter names (`zx` is the paper's xz, `zy` its yz).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.networks.layers import ChannelNorm
from samkit.networks.network import Foldable

TABLE = 8
"""Entries of the learned maps along each spatial axis, whatever the grid (Algorithm 1, a = b = 8)."""


def _spread(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map (1, ..., h, w) at another size, bilinear, corners on corners."""
    return F.interpolate(table, size=size, mode="bilinear", align_corners=True)


class Mhpm(Foldable):
    """Features (B, c, g, g) to (B, d, g, g); c a multiple of 4.

    The three maps don't depend on the input. `freeze` keeps them; until then every pass computes them.
    """

    map_xy: Tensor | None
    map_zx: Tensor | None
    map_zy: Tensor | None

    def __init__(self, channels: int, out: int, grid: int) -> None:
        super().__init__()
        part = channels // 4
        self.grid = grid
        for axes in ("xy", "zx", "zy"):
            self.register_buffer(f"map_{axes}", None, persistent=False)
        self.params_xy = nn.Parameter(torch.ones(1, part, TABLE, TABLE))
        self.params_zx = nn.Parameter(torch.ones(1, 1, part, TABLE))
        self.params_zy = nn.Parameter(torch.ones(1, 1, part, TABLE))
        self.conv_xy = nn.Sequential(
            nn.Conv2d(part, part, 3, padding=1, groups=part), nn.GELU(), nn.Conv2d(part, part, 1)
        )
        self.conv_zx = nn.Sequential(
            nn.Conv1d(part, part, 3, padding=1, groups=part), nn.GELU(), nn.Conv1d(part, part, 1)
        )
        self.conv_zy = nn.Sequential(
            nn.Conv1d(part, part, 3, padding=1, groups=part), nn.GELU(), nn.Conv1d(part, part, 1)
        )
        self.dw = nn.Sequential(nn.Conv2d(part, part, 1), nn.GELU(), nn.Conv2d(part, part, 3, padding=1, groups=part))
        self.norm1 = ChannelNorm(channels)
        self.norm2 = ChannelNorm(channels)
        self.ldw = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.GELU(), nn.Conv2d(channels, out, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        xy, zx, zy = self._maps()
        plane, rows, columns, rest = self.norm1(x).chunk(4, dim=1)
        mixed = torch.cat([plane * xy, rows * zx, columns * zy, self.dw(rest)], dim=1)
        out: Tensor = self.ldw(self.norm2(mixed))
        return out

    def freeze(self) -> None:
        """Compute the maps once, for export; later changes of the weights are not seen any more."""
        with torch.no_grad():
            self.map_xy, self.map_zx, self.map_zy = self._maps()

    def _maps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the maps over H x W, C x H and C x W: (1, c/4, g, g), (1, c/4, g, 1), (1, c/4, 1, g)."""
        if self.folded and self.map_xy is not None and self.map_zx is not None and self.map_zy is not None:
            return self.map_xy, self.map_zx, self.map_zy
        part, g = self.params_xy.shape[1], self.grid
        plane = self.conv_xy(_spread(self.params_xy, (g, g)))
        rows = self.conv_zx(_spread(self.params_zx, (part, g))[0])
        columns = self.conv_zy(_spread(self.params_zy, (part, g))[0])
        return plane, rows[..., None], columns[..., None, :]
