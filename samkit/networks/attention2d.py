"""Windowed self-attention over a square token grid with SAM's decomposed relative positions, exact and fast.

`WindowAttention` computes one function in two formulations:

official  the grid is padded at its bottom and right to whole windows; padding tokens are real zeros after the norm,
          take part in the softmax, and their positions count.
folded    padding tokens are never computed. Windows are grouped by the part of them that holds the image, and in each
          group all padding keys together are one virtual key: its value is the value bias, its logit a log-sum-exp
          that factorises into rows and columns. At 256 pixels, 784 tokens become 256. Same weights, same numbers.

Axes: B batch, N windows, h heads, e head dimension, g side of the grid, n side of the window, r and c rows and columns
of a window that hold the image. A query sits at (i, j) of its window, a key at (a, b); the logit is

    q . k / sqrt(e)  +  q . R_h[i - a + n-1]  +  q . R_w[j - b + n-1]

Source: Kirillov et al. 2023, Segment Anything, appendix A (relative positions of Li et al. 2022, MViTv2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.networks.layers import append_value, log_add_exp, log_sum_exp
from samkit.networks.lora import LoraQKV
from samkit.networks.network import Foldable

LARGEST_LOGITS = 2**28
"""Bytes of one window's logits beyond which heads take turns, so that those of one alone are held.

It costs no time. Only attention over the whole grid of 1024 pixels is that large (0.8 GB in ViT-B).
"""


class _Constants(NamedTuple):
    """What the folded form needs besides its input: functions of the weights alone."""

    table_h: Tensor
    """(i, e, a)"""
    table_w: Tensor
    """(j, e, b)"""
    bias_k: Tensor
    """(h, e, 1)"""
    bias_v: Tensor
    """(h, 1, e)"""

    def of_head(self, head: int) -> _Constants:
        """Return those of one head, which keeps its axis."""
        return self._replace(bias_k=self.bias_k[head : head + 1], bias_v=self.bias_v[head : head + 1])


class WindowAttention(Foldable):
    """Multi-head self-attention, (B, g, g, D) to the same shape; `window` = `grid` attends globally."""

    def __init__(
        self, dim: int, heads: int, grid: int, window: int, lora_rank: int = 0, lora_targets: str = "qv"
    ) -> None:
        super().__init__()
        self.heads, self.grid, self.window = heads, grid, window
        self._frozen: _Constants | None = None
        self.qkv: nn.Module = LoraQKV(dim, lora_rank, lora_targets) if lora_rank else nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # Upstream initialises to zero, which hides every error of the positions until weights are trained.
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * window - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * window - 1, dim // heads))
        self._offsets: Tensor
        offsets = torch.arange(window)[:, None] - torch.arange(window)[None, :] + window - 1
        self.register_buffer("_offsets", offsets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens (B, g, g, D) of normalised tokens of that shape."""
        if not self.folded:
            return self._official_attention(x)
        projected: Tensor = self.proj(self._folded_attention(x))
        return projected

    def _official_attention(self, x: Tensor) -> Tensor:
        """Return what `forward` does; padding tokens are projected, too, as upstream does before it drops them."""
        batch, g, n, dim = x.shape[0], self.grid, self.window, x.shape[-1]
        padding = -g % n
        side = (g + padding) // n
        x = F.pad(x, (0, 0, 0, padding, 0, padding))
        q, k, v = self._windows(self.qkv(x), n, n)
        logits = ((q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)).unflatten(3, (n, n)).unflatten(2, (n, n))
        square = q.unflatten(2, (n, n))
        logits = logits + torch.einsum("zhije,iae->zhija", square, self.rel_pos_h[self._offsets])[..., None]
        logits = logits + torch.einsum("zhije,jbe->zhijb", square, self.rel_pos_w[self._offsets])[..., None, :]
        out = logits.flatten(4).flatten(2, 3).softmax(dim=-1) @ v
        projected: Tensor = self.proj(self._grid(out, batch, side * n, side * n, n, n))
        return projected[:, :g, :g]

    def freeze(self) -> None:
        """Compute the constants once, for export; later changes of the weights are not seen any more."""
        with torch.no_grad():
            self._frozen = _Constants(*(c.clone() for c in self._constants()))

    def _constants(self) -> _Constants:
        if self._frozen is not None:
            return self._frozen
        bias: Tensor = self.qkv.bias  # type: ignore[assignment]
        _, bias_k, bias_v = bias.reshape(3, self.heads, 1, -1)
        table_h, table_w = (table[self._offsets].transpose(1, 2) for table in (self.rel_pos_h, self.rel_pos_w))
        return _Constants(table_h, table_w, bias_k.transpose(1, 2), bias_v)

    def _folded_attention(self, x: Tensor) -> Tensor:
        whole = self.grid // self.window * self.window
        spans = [span for span in ((0, whole), (whole, self.grid)) if span[0] < span[1]]
        qkv, constants = self.qkv(x), self._constants()
        rows = [
            torch.cat([self._group(qkv[:, top:bottom, left:right], constants) for left, right in spans], dim=2)
            for top, bottom in spans
        ]
        return torch.cat(rows, dim=1)

    def _group(self, qkv: Tensor, constants: _Constants) -> Tensor:
        """Return the attended tokens (B, R, C, D) of windows that hold the image alike; `qkv` is (B, R, C, 3D)."""
        batch, height, width = qkv.shape[0], qkv.shape[1], qkv.shape[2]
        r, c = min(self.window, height), min(self.window, width)
        q, k, v = self._windows(qkv, r, c)
        if 4 * self.heads * (r * c) ** 2 <= LARGEST_LOGITS:
            return self._grid(self._attend(q, k, v, constants, r, c), batch, height, width, r, c)
        heads = [
            self._attend(q[:, i : i + 1], k[:, i : i + 1], v[:, i : i + 1], constants.of_head(i), r, c)
            for i in range(self.heads)
        ]
        return self._grid(torch.cat(heads, dim=1), batch, height, width, r, c)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, constants: _Constants, r: int, c: int) -> Tensor:
        """Return the attended values (BN, h, rc, e) of q, k, v of that shape, for all heads or one."""
        n, heads = self.window, q.shape[1]
        scaled = q * q.shape[-1] ** -0.5
        square = q.reshape(-1, heads, r, c, q.shape[-1])
        # Tables broadcast against `square`; see attention3d.py for the exporter's rule that forbids reshaping it.
        along_h = square @ constants.table_h[:r]  # (BN, h, i, j, a)
        along_w = (square.transpose(2, 3) @ constants.table_w[:c]).transpose(2, 3)  # (BN, h, i, j, b)
        position = along_h[..., :r, None] + along_w[..., None, :c]
        logits = scaled @ k.transpose(-2, -1) + position.reshape(-1, heads, r * c, r * c)
        if r < n or c < n:
            beyond = self._padding_logit(along_h, along_w, r, c).reshape(-1, heads, r * c, 1)
            logits = torch.cat([logits, scaled @ constants.bias_k + beyond], dim=-1)
            v = append_value(v, constants.bias_v)
        return logits.softmax(dim=-1) @ v

    def _padding_logit(self, along_h: Tensor, along_w: Tensor, r: int, c: int) -> Tensor:
        """Return the log of the summed position terms over all padding keys, (BN, h, i, j).

        A key is padding when its row or its column is beyond the image, so the sum runs over disjoint parts; "all
        minus real" would cancel.
        """
        n, parts = self.window, []
        if r < n:  # rows beyond, every column
            parts.append(log_sum_exp(along_h[..., r:]) + log_sum_exp(along_w))
        if c < n:  # rows of the image, columns beyond
            parts.append(log_sum_exp(along_h[..., :r]) + log_sum_exp(along_w[..., c:]))
        return parts[0] if len(parts) == 1 else log_add_exp(*parts)

    def _windows(self, qkv: Tensor, r: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v, each (BN, h, rc, e), of a map (B, R, C, 3D) cut into windows of r by c."""
        batch, height, width, dim = qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
        cut = qkv.reshape(batch, height // r, r, width // c, c, 3, self.heads, dim // self.heads)
        parts = cut.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, self.heads, r * c, dim // self.heads)
        return parts[0], parts[1], parts[2]

    def _grid(self, out: Tensor, batch: int, height: int, width: int, r: int, c: int) -> Tensor:
        """Return the map (B, R, C, D) of windows (BN, h, rc, e): the inverse of `_windows`."""
        size = out.shape[-1]
        windows = out.reshape(batch, height // r, width // c, self.heads, r, c, size)
        return windows.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, self.heads * size)
