"""Blocks of YOLOv5: parameter names are the official ones, `cv1.conv.weight`, `m.0.cv1.bn.bias` and so on.

Written from the published architecture (layer table, shapes and constants of YOLOv5 v6.0), not from its code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.networks.network import Foldable


class Conv(Foldable):
    """Convolution, batch norm, SiLU: (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""

    kernel: Tensor | None
    offset: Tensor | None

    def __init__(self, inputs: int, outputs: int, side: int = 1, stride: int = 1, padding: int | None = None) -> None:
        super().__init__()
        padding = side // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, side, stride, padding, bias=False)
        # Neither number is stored in a checkpoint, and neither is torch's default.
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.register_buffer("kernel", None, persistent=False)
        self.register_buffer("offset", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.folded and self.kernel is not None:
            return F.silu(F.conv2d(x, self.kernel, self.offset, self.conv.stride, self.conv.padding))
        return F.silu(self.bn(self.conv(x)))

    def freeze(self) -> None:
        """Put the batch norm of evaluation mode, one scale and shift per channel, into the convolution's weights."""
        bn = self.bn
        with torch.no_grad():
            mean, variance = bn.running_mean.double(), bn.running_var.double()  # type: ignore[union-attr]
            scale = bn.weight.double() / torch.sqrt(variance + bn.eps)
            weight = self.conv.weight
            self.kernel = (weight.double() * scale[:, None, None, None]).to(weight.dtype)
            self.offset = (bn.bias.double() - mean * scale).to(weight.dtype)


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution on (B, C, H, W), added to what came in where `shortcut`."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.cv1 = Conv(channels, channels)
        self.cv2 = Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv2(self.cv1(x))
        return x + out if self.shortcut else out


class C3(nn.Module):
    """Two branches, one through `depth` bottlenecks, joined: (B, inputs, H, W) to (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1 = Conv(inputs, half)
        self.cv2 = Conv(inputs, half)
        self.cv3 = Conv(2 * half, outputs)
        self.m = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))
        return out


class SPPF(nn.Module):
    """Largest values in growing neighbourhoods (5, 9, 13 cells, as three poolings in a row), (B, C, H, W) to itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels // 2)
        self.cv2 = Conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.cv1(x)]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, stride=1, padding=2))
        out: Tensor = self.cv2(torch.cat(pooled, 1))
        return out


class Detect(nn.Module):
    """The head: one 1x1 convolution per grid, and what its numbers mean in pixels."""

    anchors: Tensor
    centres: Tensor

    def __init__(
        self, inputs: tuple[int, ...], classes: int, anchors: Tensor, strides: tuple[int, ...], longest: int
    ) -> None:
        """Take `anchors` (grid, A, 2), width and height in strides, and the longest side of an image [pixels]."""
        super().__init__()
        self.values, self.strides, self.finest, self.longest = 5 + classes, strides, min(strides), longest
        self.register_buffer("anchors", anchors)
        self.m = nn.ModuleList(nn.Conv2d(n, anchors.shape[1] * self.values, 1) for n in inputs)
        # Made once for the largest image and sliced: an exported graph then counts no cells of its own.
        steps = (torch.arange(math.ceil(longest / self.finest), dtype=torch.float32) + 0.5) * self.finest
        centres = torch.stack(torch.meshgrid(steps, steps, indexing="xy"))[None]  # x and y of the finest cells [pixels]
        self.register_buffer("centres", centres, persistent=False)
        self._set_priors()

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return logits (B, A, h, w, 5 + classes) of each grid's features (B, C, h, w)."""
        maps = []
        for convolution, x in zip(self.m, features, strict=True):
            out = convolution(x).unflatten(1, (-1, self.values))
            maps.append(out.permute(0, 1, 3, 4, 2))
        return tuple(maps)

    def decode(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Return predictions (B, rows, 5 + classes) of `forward`'s logits, see Yolo.detect."""
        height, width = maps[self.strides.index(self.finest)].shape[2:4]
        finest = self.centres[..., :height, :width]  # (1, 2, h, w)
        rows = []
        for logits, anchors, stride in zip(maps, self.anchors, self.strides, strict=True):
            # The mean of the cells that a coarser cell is made of: TensorRT pays for every slice, hardly for a pooling.
            centres = F.avg_pool2d(finest, stride // self.finest)
            out = logits.movedim(-1, 2).sigmoid()  # (B, A, 5 + classes, h, w), which parts faster
            centre = (centres - stride) + out[:, :, :2] * (2 * stride)  # up to half a cell outside its own cell
            twice = out[:, :, 2:4] * 2  # a side is at most four times its anchor's
            size = twice * twice * (anchors * stride)[..., None, None]
            rows.append(torch.cat([centre, size, out[:, :, 4:]], 2).movedim(2, -1).flatten(1, 3))
        return torch.cat(rows, 1)

    def _set_priors(self) -> None:
        """Start from few objects (8 in 640 x 640 pixels) and, with several classes, from each being unlikely.

        Without such a prior the empty cells' loss drowns the rest at first (arXiv:1708.02002, section 4.1).
        The only class of a detector is certain, as no loss trains its logit.
        """
        classes = self.values - 5
        for convolution, stride in zip(self.m, self.strides, strict=True):
            bias = convolution.bias.detach().view(-1, self.values)  # type: ignore[operator]
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / (classes - 1)) if classes > 1 else 11.0
