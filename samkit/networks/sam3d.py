"""SAM-Med3D and M-SAM as one network: parts, and the two functions that a refinement loop calls.

Official quirks that are reproduced, because released weights were trained with them:

1. The relative position bias is mis-broadcast: "k" lands on the last key axis for all three tables, and query
   vectors of *other* tokens enter (attention3d.py has the formula). The textbook bias is another function.
2. Window blocks pad the token grid to the window and do not mask the padding, which takes part in the softmax.
3. The dense position embedding swaps axes 0 and 1 against the points' (prompt_encoder3d.py).
4. The last third of every position embedding repeats the first.
5. A not-a-point token is appended to the points and takes part in attention.
6. The first of four mask tokens is read always; the IoU head never had a loss, so its output ranks nothing.
7. The first click gets a mask prompt of zeros, never `no_mask_embed`, which is in the files but unused; so is
   `add_norm4` of M-SAM's adapter.

One addition: a point labelled ABSENT is masked as an attention key everywhere and changes nothing.

Sources: uni-medical/SAM-Med3D@f3de1fa, nanase1025/M-SAM@fcec7ef. Parameter names are the official ones, without
M-SAM's prefix `lora_sam.sam.`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from samkit.networks import lora
from samkit.networks.adapter3d import CodeAdapter, PaperAdapter
from samkit.networks.image_encoder3d import ImageEncoder3D
from samkit.networks.mask_decoder3d import MaskDecoder3D
from samkit.networks.network import Network
from samkit.networks.prompt_encoder3d import PromptEncoder3D
from samkit.networks.sam3d_config import Sam3DConfig


class Sam3D(Network):
    """The network. `config.adapter` and `config.lora_rank` make it M-SAM."""

    GRAPHS: ClassVar = {
        "image_encoder": "encode",
        "mask_decoder": "decode",
        "adapter_stem": "encode_stem",
        "mask_decoder_anchored": "decode_anchored",
    }
    config: Sam3DConfig

    def __init__(self, config: Sam3DConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder3D(config)
        self.prompt_encoder = PromptEncoder3D(config)
        self.mask_decoder = MaskDecoder3D(config)
        if config.adapter is not None:
            self.bidatt = CodeAdapter(config) if config.adapter == "code" else PaperAdapter(config)

    def encode(self, image: Tensor) -> Tensor:
        """Return `image_embeddings` (B, C, g, g, g) of z-scored patches (B, 1, P, P, P)."""
        out: Tensor = self.image_encoder(image)
        return out

    def decode(
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run one refinement step.

        `image_embeddings` (B, C, g, g, g); `point_coords` (B, N, 3) voxel indices (i, j, k) of the patch;
        `point_labels` (B, N), see samkit.prompts; `mask_input` (B, 1, P/4, P/4, P/4) raw logits of the step before,
        zeros at first. Returns logits of that shape, the predicted IoU (B, 1), and the updated embedding
        (B, C, g, g, g), None without an adapter.
        """
        features = None if self.config.adapter is None else self.encode_stem(image_embeddings)
        return self._decode(image_embeddings, point_coords, point_labels, mask_input, features)

    def encode_stem(self, image_embeddings: Tensor) -> Tensor:
        """Return `image_features` (B, g, g, g, C): the adapter's work that depends on the image alone."""
        out: Tensor = self.bidatt.stem(image_embeddings.permute(0, 2, 3, 4, 1))
        return out

    def decode_anchored(
        self,
        image_embeddings: Tensor,
        image_features: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run one refinement step as `decode` does, with what `encode_stem` gave for these embeddings."""
        return self._decode(image_embeddings, point_coords, point_labels, mask_input, image_features)

    def _decode(
        self, embeddings: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor, features: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        dense = self.prompt_encoder.mask(mask_input)
        tokens, present = self.prompt_encoder.points(coords, labels)
        updated = None
        if features is None:
            source = embeddings + dense
        else:
            mixed = self.bidatt(embeddings.permute(0, 2, 3, 4, 1), dense.permute(0, 2, 3, 4, 1), features)
            # The adapter's output takes the place of embedding + dense; the mask is not added again.
            source = updated = mixed.permute(0, 4, 1, 2, 3)
        masks, iou = self.mask_decoder(source, self.prompt_encoder.dense_pe(), tokens, present)
        return masks, iou, updated

    def freeze(self) -> None:
        """Compute once what depends on the weights alone, for export; they must not change afterwards."""
        super().freeze()
        self.mask_decoder.transformer.freeze_positions(self.prompt_encoder.dense_pe())

    def merge_lora(self) -> None:
        """Replace every LoRA projection by one linear layer that computes the same."""
        lora.merge_lora(self)
