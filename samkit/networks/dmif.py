"""BrainSegDMIF: SAM for co-registered sequences and no prompts (arXiv:2505.06133, section 3).

One ViT for each sequence. After every layer i, DMIF fuses the token maps f (B, M, N, D) of the M sequences into one:

    interaction  f'' = W2 GELU(norm(W1 f))                       along M; Eq. 1, 2
    weights      w = softmax over M of V2 GELU(V1 f'')           Eq. 3, 4
    aggregation  f_fus = sum of f'' w + enhance(all f) + mean f  Eq. 5 to 7

and f_fus goes back into every sequence's stream (section 3), through a learned factor that starts at zero: f_fus
holds the mean of the streams, so a plain sum would double them in every layer and undo SAM's weights at once. The last
f_fus passes SAM's neck. The prompt generator (3.2) is SAM's two-way transformer on learned tokens, and the
layer-by-layer upsampling decoder (3.3) reads its first token.

The paper is silent on sizes; the config's defaults are the ones that agree with its 354 M parameters and 311 GFLOP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samkit.errors import CheckpointError
from samkit.networks.convert2d import resize_encoder, sam_config
from samkit.networks.dmif_config import DmifConfig
from samkit.networks.image_encoder2d import Block, Neck
from samkit.networks.layers import MLP, ChannelNorm
from samkit.networks.network import Foldable, Network
from samkit.networks.prompt_encoder2d import PositionEmbedding
from samkit.networks.sam2d_config import PIXEL_MEAN, PIXEL_STD, STRIDE
from samkit.networks.two_way import TwoWayTransformer

UPSAMPLINGS = (2, 4, 8)
"""Kernel and stride of the three transposed convolutions (Eq. 10); the last gives the grid where they are added."""


class GreyPatchEmbed(Foldable):
    """SAM's patch embedding for grey pixels: (B, 1, S, S), 0..255, to tokens (B, S/16, S/16, D).

    plain   the pixels three times as red, green and blue, normalised with SAM's mean and deviation, then convolved.
    folded  one convolution of the pixels as they are; exact, because the kernel never leaves the image.
    """

    kernel: Tensor | None
    offset: Tensor | None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(len(PIXEL_MEAN), width, STRIDE, STRIDE)
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(PIXEL_MEAN).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(PIXEL_STD).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("kernel", None, persistent=False)
        self.register_buffer("offset", None, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if self.folded:
            kernel, offset = self._grey()
            tokens = F.conv2d(image, kernel, offset, STRIDE)
        else:
            tokens = self.proj((image - self._mean) / self._std)
        return tokens.permute(0, 2, 3, 1)

    def freeze(self) -> None:
        """Compute the grey kernel once, for export; later changes of the weights are not seen any more."""
        with torch.no_grad():
            self.kernel, self.offset = self._grey()

    def _grey(self) -> tuple[Tensor, Tensor]:
        """Return the kernel (D, 1, 16, 16) and the offset (D) for raw pixels."""
        if self.kernel is not None and self.offset is not None:
            return self.kernel, self.offset
        scaled = self.proj.weight / self._std
        bias: Tensor = self.proj.bias  # type: ignore[assignment]
        return scaled.sum(1, keepdim=True), bias - (scaled * self._mean).sum((1, 2, 3))


class SequenceEncoder(nn.Module):
    """SAM's image encoder without its neck, in parts: after every block the sequences meet."""

    def __init__(self, config: DmifConfig) -> None:
        super().__init__()
        self.patch_embed = GreyPatchEmbed(config.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.width))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))


class Dmif(nn.Module):
    """Dynamic modal interactive fusion of one layer: (B, M, N, D) to (B, N, D)."""

    def __init__(self, config: DmifConfig) -> None:
        super().__init__()
        count = len(config.sequences)
        hidden = config.hidden * count
        # Linear layers along M, written as 1 x 1 convolutions: every token and channel is a pixel of its own.
        self.interaction = nn.Sequential(
            nn.Conv2d(count, hidden, 1), ChannelNorm(hidden), nn.GELU(), nn.Conv2d(hidden, count, 1)
        )
        self.scores = nn.Sequential(nn.Conv2d(count, hidden, 1), nn.GELU(), nn.Conv2d(hidden, count, 1))
        self.enhancement = nn.Sequential(
            nn.Linear(count * config.width, config.bottleneck), nn.GELU(), nn.Linear(config.bottleneck, config.width)
        )

    def forward(self, features: Tensor) -> Tensor:
        mixed = self.interaction(features)
        fused = (mixed * self.scores(mixed).softmax(dim=1)).sum(dim=1)
        side_by_side = features.transpose(1, 2).flatten(2)  # (B, N, M * D)
        out: Tensor = fused + self.enhancement(side_by_side) + features.mean(dim=1)
        return out


class PromptGenerator(Foldable):
    """Learned tokens in place of prompts (3.2): they and the image attend to each other."""

    positions: Tensor | None

    def __init__(self, config: DmifConfig) -> None:
        super().__init__()
        channels = config.channels
        self.grid = config.grid
        self.mask_tokens = nn.Embedding(config.masks, channels)
        self.pe_layer = PositionEmbedding(channels // 2)
        self.transformer = TwoWayTransformer(channels, config.decoder_heads, config.decoder_mlp)
        self.register_buffer("positions", None, persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map M'' (B, C, g, g; Eq. 9) and the tokens O_Q (B, K, C) of an image embedding (B, C, g, g)."""
        positions = self.pe_layer.of_grid(self.grid) if self.positions is None else self.positions
        tokens = self.mask_tokens.weight.expand(image.shape[0], -1, -1)
        tokens, attended = self.transformer(image, positions, tokens)
        return attended.transpose(1, 2).reshape(image.shape), tokens

    def freeze(self) -> None:
        """Compute the positions of the image's tokens once, for export."""
        with torch.no_grad():
            self.positions = self.pe_layer.of_grid(self.grid)
        self.transformer.freeze_positions(self.positions)


class UpsamplingDecoder(nn.Module):
    """The layer-by-layer upsampling decoder (3.3): image map (B, C, g, g) and token (B, C) to logits (B, 1, S, S)."""

    def __init__(self, config: DmifConfig) -> None:
        super().__init__()
        self.side = config.image
        channels, upscaled = config.channels, config.upscaled
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(channels, upscaled, factor, factor),
                ChannelNorm(upscaled),
                nn.GELU(),
                nn.Conv2d(upscaled, upscaled, 3, padding=1),
                nn.GELU(),
            )
            for factor in UPSAMPLINGS
        )
        self.hypernetworks = nn.ModuleList(MLP(channels, channels, upscaled) for _ in UPSAMPLINGS)

    def forward(self, image: Tensor, token: Tensor) -> Tensor:
        half = self.side // 2
        levels = [
            # The sum over channels commutes with the resizing of Eq. 12 and comes first: one channel instead of 64.
            _resize((branch(image) * hypernetwork(token)[..., None, None]).sum(dim=1, keepdim=True), half)
            for branch, hypernetwork in zip(self.branches, self.hypernetworks, strict=True)
        ]
        return _resize(sum(levels[1:], start=levels[0]), self.side)


def _resize(x: Tensor, side: int) -> Tensor:
    """Return a square map (B, C, ...) with another side, bilinear; as it is where it has that side."""
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


class BrainSegDmif(Network):
    """The network. B slices, M sequences, S side of the input [pixels], g = S/16, D and C channels."""

    GRAPHS: ClassVar = {"image_encoder": "encode", "mask_decoder": "decode"}
    config: DmifConfig

    def __init__(self, config: DmifConfig) -> None:
        super().__init__()
        self.config = config
        count = len(config.sequences)
        self.encoders = nn.ModuleList(SequenceEncoder(config) for _ in range(config.encoders))
        self.fusions = nn.ModuleList(Dmif(config) for _ in range(config.depth))
        # How much of f_fus each stream takes; none after the last block, where the streams end.
        self.feedback = nn.Parameter(torch.zeros(config.depth - 1, count))
        self.neck = Neck(config)
        self.prompt_generator = PromptGenerator(config)
        self.mask_decoder = UpsamplingDecoder(config)

    def encode(self, image: Tensor) -> Tensor:
        """Return `image_embeddings` (B, C, g, g) of slices (B, M, S, S), 0..255, in the order of `config.sequences`."""
        g, count = self.config.grid, len(self.config.sequences)
        positions = torch.cat([encoder.get_parameter("pos_embed") for encoder in self.encoders])
        streams = self._each("patch_embed", image.unsqueeze(2)) + positions  # (B, M, g, g, D)
        fused = streams
        for index, fusion in enumerate(self.fusions):
            streams = self._each(f"blocks.{index}", streams)
            fused = fusion(streams.flatten(2, 3)).reshape(-1, g, g, self.config.width)
            if index < self.config.depth - 1:
                streams = streams + self.feedback[index].reshape(count, 1, 1, 1) * fused.unsqueeze(1)
        out: Tensor = self.neck(fused.permute(0, 3, 1, 2))
        return out

    def decode(self, image_embeddings: Tensor) -> Tensor:
        """Return `low_res_masks` (B, 1, S, S), logits of the lesion, of `image_embeddings` (B, C, g, g)."""
        image, tokens = self.prompt_generator(image_embeddings)
        out: Tensor = self.mask_decoder(image, tokens[:, 0])
        return out

    def _each(self, part: str, x: Tensor) -> Tensor:
        """Run a part of every sequence's encoder on its stream, (B, M, ...) to (B, M, ...)."""
        if self.config.shared_encoder:
            out: Tensor = self.encoders[0].get_submodule(part)(x.flatten(0, 1))
            return out.reshape(-1, *x.shape[1:2], *out.shape[1:])
        return torch.stack([e.get_submodule(part)(x[:, number]) for number, e in enumerate(self.encoders)], dim=1)


def dmif_from_sam(sam_state: Mapping[str, Tensor], config: DmifConfig) -> dict[str, Tensor]:
    """Return what BrainSegDMIF takes from SAM's official state: encoder for each sequence, neck, two-way transformer.

    Positions are resized to `config.image`. Fusion, feedback and upsampling are not among it and start fresh; so do the
    mask tokens where `config.masks` differs. Raises CheckpointError for the state of another network.
    """
    found = sam_config({name: tuple(tensor.shape) for name, tensor in sam_state.items()})
    fields = ("width", "depth", "heads", "mlp_ratio", "window", "global_blocks", "channels", "decoder_mlp")
    if unlike := [name for name in fields if getattr(found, name) != getattr(config, name)]:
        sizes = ", ".join(f"{name} {getattr(found, name)} where {getattr(config, name)} is planned" for name in unlike)
        raise CheckpointError(
            f"this SAM can't start the network: it has {sizes}; give sam_vit_b_01ec64.pth, as the paper does, "
            "or plan the sizes of the file"
        )
    targets = {
        "image_encoder.neck.": ["neck."],
        "image_encoder.": [f"encoders.{number}." for number in range(config.encoders)],
        "prompt_encoder.pe_layer.": ["prompt_generator.pe_layer."],
        "mask_decoder.transformer.": ["prompt_generator.transformer."],
        "mask_decoder.mask_tokens.": ["prompt_generator.mask_tokens."] if found.masks == config.masks else [],
    }
    state: dict[str, Tensor] = {}
    for name, tensor in resize_encoder(sam_state, config).items():
        prefix = next((prefix for prefix in targets if name.startswith(prefix)), None)
        if prefix is not None:
            state.update({target + name.removeprefix(prefix): tensor for target in targets[prefix]})
    return state
