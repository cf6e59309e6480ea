"""Self-attention over a cubic token grid with SAM-Med3D's relative position bias, exact and fast.

`RelPosAttention` computes one function in two formulations:

official  the window's padding tokens are real zeros that take part in the softmax, the bias comes from einsums;
          2,744 keys per query where 512 carry an image. It is the baseline of `sam-export --no-fold`.
folded    padding tokens equal the qkv bias, so all of them together are one virtual key, whose value is the value
          bias and whose logit is a log-sum-exp that factorises per axis. Same weights, same numbers, 3.5 times
          fewer operations at full size. Training and every export use it.

Axes: B batch, h heads, e head dimension, g side of the grid, n side of the window; a query sits at (a, b, c), a key
at (a', b', c'). The bias is the one the official code computes, which is not the one it meant (see sam3d.py):

    q[a,b,c] . R_d[a - c' + n-1]  +  q[a,b,a'] . R_h[b - c' + n-1]  +  q[a,b,b'] . R_w[b' - c' + n-1]
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.networks.layers import append_value, log_add_exp, log_sum_exp
from samkit.networks.lora import LoraQKV
from samkit.networks.network import Foldable


class _Constants(NamedTuple):
    """What the folded form needs besides its input: functions of the weights alone."""

    table_d: Tensor
    """(a, 1, e, c')"""
    table_h: Tensor
    """(b, e, c')"""
    table_w: Tensor
    """(b', e, c')"""
    keys_d: Tensor
    """(a, 1, e, b' c'): `table_d` on the grid, the same for every b'. Sums over long last axes are fast ones."""
    keys_h: Tensor
    """(b, e, b' c'): `table_h` likewise."""
    bias_k: Tensor
    """(h, e, 1)"""
    bias_v: Tensor
    """(h, 1, e)"""
    padding_h: Tensor
    """(h, 1, b, c'): log-sum of the second term over padding a'."""
    padding_w: Tensor
    """(h, 1, 1, c'): log-sum of the third term over padding b'."""


class RelPosAttention(Foldable):
    """Multi-head self-attention, (B, g, g, g, C) to the same shape."""

    def __init__(self, dim: int, heads: int, grid: int, window: int, lora_rank: int = 0) -> None:
        super().__init__()
        self.heads, self.grid, self.window = heads, grid, window
        self._frozen: _Constants | None = None
        self.qkv: nn.Module = LoraQKV(dim, lora_rank) if lora_rank else nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # Upstream initialises to zero, which hides every error of the bias until weights are trained.
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * window - 1, dim // heads))
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * window - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * window - 1, dim // heads))
        self._offsets: Tensor
        offsets = torch.arange(window)[:, None] - torch.arange(window)[None, :] + window - 1
        self.register_buffer("_offsets", offsets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens (B, g, g, g, C) of normalised tokens of that shape."""
        if not self.folded:
            return self._official_attention(x)
        projected: Tensor = self.proj(self._folded_attention(x))
        return projected

    def _qkv(self, x: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v, each (B, h, side^3, e)."""
        batch, dim = x.shape[0], x.shape[-1]
        qkv = self.qkv(x).reshape(batch, side**3, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def _table(self, rel_pos: Tensor, rows: int) -> Tensor:
        """Return (rows, e, n): for each index of one axis, the table's vector for every c'."""
        return rel_pos[self._offsets[:rows]].transpose(1, 2)

    def _official_attention(self, x: Tensor) -> Tensor:
        """Return what `forward` does; padding tokens are projected, too, as upstream does before it drops them."""
        batch, g, n, dim = x.shape[0], self.grid, self.window, x.shape[-1]
        x = F.pad(x, (0, 0, 0, n - g, 0, n - g, 0, n - g))
        q, k, v = self._qkv(x, n)
        logits = ((q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)).reshape(batch, self.heads, *(n,) * 6)
        cube = q.reshape(batch, self.heads, n, n, n, dim // self.heads)
        d, h, w = (self._table(t, n) for t in (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w))
        logits = logits + torch.einsum("zyabce,aek->zyabck", cube, d)[:, :, :, :, :, None, None]
        logits = logits + torch.einsum("zyabce,bek->zyabck", cube, h)[:, :, :, :, None, :, None]
        logits = logits + torch.einsum("zyabce,cek->zyabck", cube, w)[:, :, :, :, None, None]
        out = logits.reshape(batch, self.heads, n**3, n**3).softmax(dim=-1) @ v
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, n, n, n, dim))
        return projected[:, :g, :g, :g]

    def freeze(self) -> None:
        """Compute the constants once, for export; later changes of the weights are not seen any more."""
        with torch.no_grad():
            self._frozen = _Constants(*(c.clone() for c in self._constants()))

    def _constants(self) -> _Constants:
        if self._frozen is not None:
            return self._frozen
        g, n = self.grid, self.window
        bias: Tensor = self.qkv.bias  # type: ignore[assignment]
        bias_q, bias_k, bias_v = bias.reshape(3, self.heads, 1, -1)
        d, h, w = (self._table(t, n) for t in (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w))
        padding_h = (bias_q[:, None] @ h[:g]).transpose(1, 2)
        padding_w = torch.zeros_like(padding_h[:, :, :1])
        if n > g:
            padding_h = padding_h + math.log(n - g)
            padding_w = log_sum_exp((bias_q[:, None] @ w[g:]).squeeze(2), dim=1)[:, None, None]
        keys_d, keys_h = d[:g, None, :, :g].repeat(1, 1, 1, g), h[:g, :, :g].repeat(1, 1, g)
        bias_k = bias_k.transpose(1, 2)
        return _Constants(d[:g, None], h[:g], w[:g], keys_d, keys_h, bias_k, bias_v, padding_h, padding_w)

    def _folded_attention(self, x: Tensor) -> Tensor:
        batch, g, dim = x.shape[0], self.grid, x.shape[-1]
        size = dim // self.heads
        q, k, v = self._qkv(x, g)
        scaled = q * size**-0.5
        cube = q.reshape(batch, self.heads, g, g, g, size)
        constants = self._constants()
        # Tables broadcast against `cube`; reshaping it instead would meet the exporter's faulty rule that drops
        # Reshape-MatMul-Reshape wherever shapes agree, which they do on a cubic grid (onnxscript 0.7).
        t3 = (cube.transpose(3, 4) @ constants.table_w).transpose(3, 4)  # (B, h, a, b, b', c')

        # (B, h, ab, c, a', b'c')
        single = (cube @ constants.keys_d).reshape(batch, self.heads, g * g, g, 1, g * g)
        pairs = (cube @ constants.keys_h).reshape(batch, self.heads, g * g, g, g * g)  # (B, h, ab, a', b'c')
        pairs = (pairs + t3[..., :g].reshape(batch, self.heads, g * g, 1, g * g))[:, :, :, None]
        logits = (scaled @ k.transpose(-2, -1)).reshape(batch, self.heads, g * g, g, g, g * g)
        logits = (logits + (pairs + single)).reshape(batch, self.heads, g**3, g**3)
        if self.window > g:
            t1 = cube @ constants.table_d  # (B, h, a, b, c, c')
            t2 = cube @ constants.table_h  # (B, h, a, b, a', c')
            position = self._padding_logit(t1, t2, t3, constants).reshape(batch, self.heads, g**3, 1)
            logits = torch.cat([logits, scaled @ constants.bias_k + position], dim=-1)
            v = append_value(v, constants.bias_v)
        out: Tensor = logits.softmax(dim=-1) @ v
        return out.transpose(1, 2).reshape(batch, g, g, g, dim)

    def _padding_logit(self, t1: Tensor, t2: Tensor, t3: Tensor, constants: _Constants) -> Tensor:
        """Return the log of the summed position terms over all padding keys, (B, h, a, b, c).

        A key is padding when any of a', b', c' is beyond the grid, so the sum runs over disjoint parts; "all minus
        real" would cancel. Padding queries enter through a' and b' and are the bias vector.
        """
        g = self.grid
        real_h, real_w = log_sum_exp(t2, dim=4), log_sum_exp(t3, dim=4)  # (B, h, a, b, c')
        all_w = log_add_exp(real_w, constants.padding_w)
        beyond = log_add_exp(real_h, constants.padding_h) + all_w  # c' >= g: every a', b'
        within = log_add_exp(constants.padding_h + all_w, real_h + constants.padding_w)  # c' < g: a' or b' beyond
        terms = torch.cat([within[..., :g], beyond[..., g:]], dim=-1)
        return log_sum_exp(t1 + terms[:, :, :, :, None], dim=5)
