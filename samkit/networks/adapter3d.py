"""M-SAM's mask-enhanced adapter (MEA): mixes the embedding of a coarse mask into the image embedding.

Two topologies (arXiv:2403.05912 section 2.2 against `BiDirectionalAttentionNetwork` of the official code):

code   what the code computes, and the only variant whose parameter count fits Table 3: the default.
paper  what Fig. 2 draws: mutual residuals into every Add&Norm, plain attention, normalised sums per branch.

Everything runs channels-last, (B, g, g, g, C); norms are over the last axis with eps 1e-6.

`stem` is what depends on the image alone. Where every step starts from the encoder's output it is computed once per
image instead of once per step: the 3 x 3 x 3 convolution is a fifth of the adapter's work.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from samkit.networks.attention3d import RelPosAttention
from samkit.networks.layers import ChannelNorm, MLPBlock
from samkit.networks.sam3d_config import Sam3DConfig

_MLP_RATIO = 4


class _Norm(ChannelNorm):
    """The same norm on channels-last tensors."""

    def forward(self, x: Tensor) -> Tensor:
        if self.folded:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-6)
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


def _convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    out: Tensor = conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    return out


def _mlp(channels: int) -> MLPBlock:
    return MLPBlock(channels, _MLP_RATIO * channels)


def _attention(config: Sam3DConfig) -> RelPosAttention:
    return RelPosAttention(config.channels, config.adapter_heads, config.grid, config.grid)


class _AttentionUnit(RelPosAttention):
    """`code` wraps each attention in norms, a residual and an MLP without one."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__(config.channels, config.adapter_heads, config.grid, config.grid)
        self.norm1 = _Norm(config.channels)
        self.norm2 = _Norm(config.channels)
        self.mlp = _mlp(config.channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.norm2(x + super().forward(self.norm1(x))))
        return out


class _CodeBlock(nn.Module):
    """The mutual feature enhancement block as coded: the other branch enters through the attention's input."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        c = config.channels
        for branch in ("prompt", "image"):
            self.add_module(f"{branch}_conv1", nn.Conv3d(c, c, 3, padding=1))
            self.add_module(f"{branch}_conv2", nn.Conv3d(c, c, 1))
            self.add_module(f"{branch}_norm", _Norm(c))
            for number in (1, 2, 3):
                self.add_module(f"{branch}_addnorm{number}", _Norm(c))
            self.add_module(f"{branch}_multiheadattn", _AttentionUnit(config))
        self.mlp1 = _mlp(c)
        self.mlp2 = _mlp(c)
        self.act = nn.GELU()

    def stem(self, branch: str, x: Tensor) -> Tensor:
        """Return the branch's convolutions of its normed embedding, (B, g, g, g, C) as that."""
        part = self.get_submodule
        hidden = part(f"{branch}_norm")(_convolve(part(f"{branch}_conv1"), x))  # type: ignore[arg-type]
        hidden = _convolve(part(f"{branch}_conv2"), self.act(hidden))  # type: ignore[arg-type]
        out: Tensor = part(f"{branch}_addnorm1")(hidden + x)
        return out

    def forward(self, image: Tensor, prompt: Tensor, image_stem: Tensor) -> tuple[Tensor, Tensor]:
        part = self.get_submodule
        prompt_stem = self.stem("prompt", prompt)
        attended = part("image_multiheadattn")(image_stem + image + prompt)
        image_out = part("image_addnorm2")(attended + image_stem)
        attended = part("prompt_multiheadattn")(image + prompt_stem + prompt)
        prompt_out = part("prompt_addnorm2")(attended + prompt_stem)
        image_out = part("image_addnorm3")(self.mlp1(image_out) + image_out)
        prompt_out = part("prompt_addnorm3")(self.mlp2(prompt_out) + prompt_out)
        return image_out, prompt_out


class CodeAdapter(nn.Module):
    """Topology `code`; parameter names are the official ones."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        c = config.channels
        self.bidirectional_attentions = nn.ModuleList([_CodeBlock(config)])
        self.multi_head_self_attention = _AttentionUnit(config)
        self.add_norm = _Norm(c)
        self.add_norm2 = _Norm(c)
        self.add_norm3 = _Norm(c)
        self.add_norm4 = _Norm(c)  # in the official files, read by nothing
        self.mlp = _mlp(c)

    def stem(self, image: Tensor) -> Tensor:
        """Return what `forward` needs of the image embedding besides itself, (B, g, g, g, C) as that."""
        out: Tensor = self.bidirectional_attentions[0].stem("image", self.add_norm3(image))  # type: ignore[operator]
        return out

    def forward(self, image: Tensor, mask: Tensor, stem: Tensor) -> Tensor:
        """Return the updated image embedding (B, g, g, g, C) of the two embeddings and the image's stem."""
        i, p = self.add_norm3(image), self.add_norm2(mask)
        new_i, new_p = self.bidirectional_attentions[0](i, p, stem)
        x = new_i + i + new_p + p
        y = self.add_norm(self.multi_head_self_attention(x) + x)
        out: Tensor = y + self.mlp(y)
        return out


class _PaperBranch(nn.Module):
    """One column of Fig. 2 (b), and its Add&Norm of Fig. 2 (a)."""

    def __init__(self, config: Sam3DConfig, second_kernel: int) -> None:
        super().__init__()
        c = config.channels
        self.conv1 = nn.Conv3d(c, c, 3, padding=1)
        self.conv2 = nn.Conv3d(c, c, second_kernel, padding=second_kernel // 2)
        self.conv_norm = _Norm(c)
        self.norm1, self.norm2, self.norm3, self.out_norm = _Norm(c), _Norm(c), _Norm(c), _Norm(c)
        self.attention = _attention(config)
        self.mlp = _mlp(c)
        self.act = nn.GELU()

    def stem(self, x: Tensor) -> Tensor:
        """Return the convolutions of an embedding with the embedding itself, (B, g, g, g, C) as that."""
        return _convolve(self.conv2, self.act(self.conv_norm(_convolve(self.conv1, x)))) + x


class PaperAdapter(nn.Module):
    """Topology `paper`: 17,428,800 parameters at full size."""

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        self.image = _PaperBranch(config, second_kernel=1)
        self.prompt = _PaperBranch(config, second_kernel=3)
        self.attention = _attention(config)
        self.norm = _Norm(config.channels)
        self.mlp = _mlp(config.channels)

    def stem(self, image: Tensor) -> Tensor:
        """Return what `forward` needs of the image embedding besides itself, (B, g, g, g, C) as that."""
        out: Tensor = self.image.stem(image)
        return out

    def forward(self, image: Tensor, mask: Tensor, stem: Tensor) -> Tensor:
        """Return the updated image embedding (B, g, g, g, C) of the two embeddings and the image's stem."""
        i, p = self.image, self.prompt
        u_i = i.norm1(stem + mask)
        u_p = p.norm1(p.stem(mask) + image)
        v_i = i.norm2(i.attention(u_i) + u_i + u_p)
        v_p = p.norm2(p.attention(u_p) + u_p + u_i)
        new_i = i.norm3(i.mlp(v_i) + v_i + v_p)
        new_p = p.norm3(p.mlp(v_p) + v_p + v_i)
        sum_i, sum_p = i.out_norm(new_i + image), p.out_norm(new_p + mask)
        out: Tensor = self.mlp(self.norm(self.attention(sum_i + sum_p) + sum_i))
        return out
