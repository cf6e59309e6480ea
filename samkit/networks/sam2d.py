"""SAM and what is built on it: SAM, MedSAM, SAM-Med2D, LMSFE-SAM, LoRA-SAM.

Parameter names are the official ones. One graph encodes an image, the other decodes prompts; the choice among the
masks is made outside, as upstream's PyTorch code makes it.

One addition: a point labelled ABSENT is masked as an attention key everywhere and changes nothing.

Sources: facebookresearch/segment-anything@dca509f, OpenGVLab/SAM-Med2D@bfd2b93, hitachinsk/SAMed@e351840.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from samkit.networks import lora
from samkit.networks.image_encoder2d import ImageEncoder2D
from samkit.networks.lmsfe import LmsfeImageEncoder
from samkit.networks.mask_decoder2d import MaskDecoder2D
from samkit.networks.network import Network
from samkit.networks.prompt_encoder2d import PromptEncoder2D
from samkit.networks.sam2d_config import Sam2DConfig


class Sam2D(Network):
    """The network. B images or rows of prompts, S side of the input [pixels], g = S/16, C channels, K masks."""

    GRAPHS: ClassVar = {
        "image_encoder": "encode",
        "mask_decoder": "decode",
        "mask_decoder_no_mask": "decode_without_mask",
    }
    config: Sam2DConfig

    def __init__(self, config: Sam2DConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = LmsfeImageEncoder(config) if config.local_branch else ImageEncoder2D(config)
        self.prompt_encoder = PromptEncoder2D(config)
        self.mask_decoder = MaskDecoder2D(config)

    def encode(self, image: Tensor) -> Tensor:
        """Return `image_embeddings` (B, C, g, g) of images (B, 3, S, S), normalised as the method says."""
        out: Tensor = self.image_encoder(image)
        return out

    def decode(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, K, S/4, S/4) and predicted IoU (B, K) of all mask tokens.

        `image_embeddings` (1 or B, C, g, g): one row serves all prompts. `point_coords` (B, P, 2) x, y [pixels of the
        network's input] before the half-pixel shift; `point_labels` (B, P), see `PromptEncoder2D.points`; without
        any point that is not ABSENT there is no sparse prompt, as in SAM's automatic call. `mask_input`
        (B, 1, S/4, S/4), which counts in rows where `has_mask_input` (B, 1, 1, 1) is 1.0.
        """
        tokens, present = self.prompt_encoder.points(point_coords, point_labels)
        source = image_embeddings + self.prompt_encoder.mask(mask_input, has_mask_input)
        masks, iou = self.mask_decoder(source, self.prompt_encoder.dense_pe(), tokens, present)
        return masks, iou

    def decode_without_mask(
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what `decode` does where no row has a mask prompt; `image_embeddings` is (1, C, g, g).

        All rows share one image, which becomes B images only where the first row's prompts have changed it.
        """
        tokens, present = self.prompt_encoder.points(point_coords, point_labels)
        source = image_embeddings + self.prompt_encoder.without_mask()
        masks, iou = self.mask_decoder(source, self.prompt_encoder.dense_pe(), tokens, present)
        return masks, iou

    def freeze(self) -> None:
        """Compute once what depends on the weights alone, for export; they must not change afterwards."""
        super().freeze()
        self.mask_decoder.transformer.freeze_positions(self.prompt_encoder.dense_pe())

    def merge_lora(self) -> None:
        """Replace every LoRA projection by one linear layer that computes the same."""
        lora.merge_lora(self)
