"""SAM's two-way transformer (Kirillov et al. 2023, appendix A): prompt tokens and a map attend to each other.

It is the same in the 2D and the 3D networks. Parameter names are the official ones. Attention between the two has two
formulations of one function:

official  every token of the image is projected to keys and values, and to queries the other way round.
folded    the few prompt tokens are projected instead, through the same weights turned round: q . (W x) = (W^T q) . x.
          At one click, seven tokens times eight heads take the place of three projections to 128 channels, so a third
          of the products is left, and nothing of the image's size is moved between heads. Positions of the image meet
          the weights alone: one table for each attention.

Axes: B rows of prompts, T prompt tokens, N image tokens, C channels, h heads, e head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.networks.layers import MLPBlock
from samkit.networks.lora import LoraLinear, full_weight
from samkit.networks.network import Foldable
from samkit.prompts import ABSENT_LOGIT


class _Attention(Foldable):
    """Multi-head attention whose inner width may be smaller than the token dimension; LoRA sits on q and v."""

    def __init__(self, dim: int, heads: int, shrink: int = 1, lora_rank: int = 0) -> None:
        super().__init__()
        inner = dim // shrink
        self.heads = heads
        self.q_proj = LoraLinear(dim, inner, lora_rank) if lora_rank else nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = LoraLinear(dim, inner, lora_rank) if lora_rank else nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, penalty: Tensor | None = None) -> Tensor:
        """Return (B, Q, C) for queries (B, Q, C), keys and values (B, K, C); `penalty` is (B, 1, 1, K)."""
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if penalty is not None:
            logits = logits + penalty
        return self._join(logits.softmax(dim=-1) @ v)

    def _split(self, x: Tensor) -> Tensor:
        """Return (B, h, T, e) of (B, T, h e)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        """Return the projected output (B, T, C) of (B, h, T, e)."""
        out: Tensor = self.out_proj(x.transpose(1, 2).flatten(2))
        return out


class _ImageAttention(_Attention):
    """Attention between prompt tokens and the image."""

    def __init__(self, dim: int, heads: int, lora_rank: int = 0) -> None:
        super().__init__(dim, heads, shrink=2, lora_rank=lora_rank)
        self._frozen: Tensor | None = None

    def freeze_positions(self, image_pe: Tensor) -> None:
        """Compute the table once, for export, of the image's positions (1, N, C)."""
        with torch.no_grad():
            self._frozen = self._table(image_pe).clone()

    def _positions(self, image_pe: Tensor) -> Tensor:
        return self._table(image_pe) if self._frozen is None else self._frozen

    def _table(self, image_pe: Tensor) -> Tensor:
        raise NotImplementedError

    def _by_head(self, projection: nn.Linear) -> Tensor:
        """Return the weight of q, k or v as (h, e, C)."""
        return full_weight(projection).unflatten(0, (self.heads, -1))


class _TokenToImage(_ImageAttention):
    """The tokens ask the image."""

    def forward(self, placed: Tensor, image: Tensor, image_pe: Tensor) -> Tensor:
        """Return the update of the tokens (B, T, C); `placed` (B, T, C) are they with positions, `image` (B, N, C)."""
        if not self.folded:
            return self.attend(placed, image + image_pe, image)
        q = self._split(self.q_proj(placed))
        q = q * q.shape[-1] ** -0.5
        asked = (q @ self._by_head(self.k_proj)).flatten(1, 2)  # (B, hT, C)
        logits = asked @ image.transpose(1, 2) + (q @ self._positions(image_pe)).flatten(1, 2)
        seen = (logits.softmax(dim=-1) @ image).unflatten(1, (self.heads, -1))  # (B, h, T, C)
        values = seen @ self._by_head(self.v_proj).transpose(1, 2)
        # The weights of a softmax sum to one, so that the values' bias is added once.
        return self._join(values + self.v_proj.bias.unflatten(0, (self.heads, 1, -1)))

    def _table(self, image_pe: Tensor) -> Tensor:
        """Return what positions add to the keys, (h, e, N)."""
        return self._split(self.k_proj(image_pe))[0].transpose(1, 2)


class _ImageToToken(_ImageAttention):
    """The image asks the tokens."""

    def forward(
        self, image: Tensor, image_pe: Tensor, placed: Tensor, tokens: Tensor, penalty: Tensor | None
    ) -> Tensor:
        """Return the update of the image (B, N, C) of itself (1 or B, N, C) and the tokens, with and without positions.

        `penalty` is (B, 1, 1, T).
        """
        if not self.folded:
            return self.attend(image + image_pe, placed, tokens, penalty)
        k, v = self._split(self.k_proj(placed)), self._split(self.v_proj(tokens))
        k = k * k.shape[-1] ** -0.5
        asked = (k @ self._by_head(self.q_proj)).flatten(1, 2)  # (B, hT, C)
        positions = (self._positions(image_pe) @ k.transpose(2, 3)).transpose(1, 2)  # (B, N, h, T)
        logits = (image @ asked.transpose(1, 2)).unflatten(2, (self.heads, -1)) + positions
        if penalty is not None:
            logits = logits + penalty
        # A share of the bias for each head: the weights of each sum to one.
        bias = self.out_proj.bias / self.heads
        values = v @ self.out_proj.weight.unflatten(1, (self.heads, -1)).permute(1, 2, 0) + bias  # (B, h, T, C)
        return logits.softmax(dim=-1).flatten(2) @ values.flatten(1, 2)

    def _table(self, image_pe: Tensor) -> Tensor:
        """Return what positions add to the queries, and their bias, (h, N, e)."""
        return self._split(self.q_proj(image_pe))[0]


class _TwoWayBlock(Foldable):
    def __init__(self, dim: int, heads: int, hidden: int, first: bool, lora_rank: int) -> None:
        super().__init__()
        self.first = first
        self.self_attn = _Attention(dim, heads, 1, lora_rank)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = _TokenToImage(dim, heads, lora_rank)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, hidden, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = _ImageToToken(dim, heads, lora_rank)

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor, penalty: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.first:
            tokens = self.self_attn.attend(tokens, tokens, tokens, penalty)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn.attend(placed, placed, tokens, penalty)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, image, image_pe))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.cross_attn_image_to_token(image, image_pe, tokens + token_pe, tokens, penalty)
        if not self.folded:
            return tokens, self.norm4(image + update)
        # The axis between keeps ONNX Runtime from joining sum and norm to an operator that takes three times as long.
        normed: Tensor = self.norm4((image + update).unsqueeze(1))
        return tokens, normed.squeeze(1)


class TwoWayTransformer(nn.Module):
    """Tokens and image attend to each other in turn; the tokens' initial values serve as their positions."""

    def __init__(self, channels: int, heads: int, mlp: int, depth: int = 2, lora_rank: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _TwoWayBlock(channels, heads, mlp, first=index == 0, lora_rank=lora_rank) for index in range(depth)
        )
        self.final_attn_token_to_image = _TokenToImage(channels, heads, lora_rank)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self, image: Tensor, image_pe: Tensor, tokens: Tensor, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens (B, T, C) and the image's tokens (B, N, C), N the product of its sides.

        `image` (1 or B, C, ...) and `image_pe` (1, C, ...) are maps of two or three axes, `tokens` (B, T, C); `present`
        (B, P) is true where one of the last P tokens counts: absent ones are masked as keys, so they change nothing.
        The tokens before them count always, and all do where it is None.
        """
        penalty = None
        if present is not None:
            penalty = torch.where(present, 0.0, ABSENT_LOGIT).to(tokens.dtype)
            penalty = F.pad(penalty, (tokens.shape[1] - present.shape[1], 0))[:, None, None]
        image, image_pe = image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2)
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe, penalty)
        update = self.final_attn_token_to_image(tokens + token_pe, image, image_pe)
        return self.norm_final_attn(tokens + update), image

    def freeze_positions(self, image_pe: Tensor) -> None:
        """Compute once, for export, what the positions (1, C, ...) of the image make of the weights.

        Later changes of the weights are not seen any more.
        """
        for module in self.modules():
            if isinstance(module, _ImageAttention):
                module.freeze_positions(image_pe.flatten(2).transpose(1, 2))
