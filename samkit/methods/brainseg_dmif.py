"""BrainSegDMIF: lesions in two to four co-registered MR sequences, without a prompt (arXiv:2505.06133).

Each sequence has an image encoder of its own; a dynamic interaction fuses them in every layer, learned tokens take
the place of prompts, and three upsampled maps make the mask. Nobody released code or weights; the reading of what the
paper leaves open, and how its parameter count pins it, is in docs/explanation/numerics.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from samkit.methods import sam
from samkit.methods._slices import encoder_graph, none_released, square, united
from samkit.methods.method import Answer, GraphSpec, RunGraph, SliceMethod, SliceRecipe, State
from samkit.networks.dmif_config import DmifConfig
from samkit.placement import Placement, resize_bilinear
from samkit.precisions import DECODER_TOLERANCE
from samkit.prompts import SlicePrompts
from samkit.tensors import Tensor

if TYPE_CHECKING:
    from samkit.networks.dmif import BrainSegDmif


def _build(config: DmifConfig) -> BrainSegDmif:
    from samkit.networks.dmif import BrainSegDmif

    return BrainSegDmif(config)


def _graphs(config: DmifConfig) -> tuple[GraphSpec, ...]:
    """Return `image_encoder`, raw intensities of all sequences in, and `mask_decoder`."""
    encoder = encoder_graph(config, len(config.sequences))
    decoder = GraphSpec(
        name="mask_decoder",
        inputs=encoder.outputs,
        outputs=(square("low_res_masks", 1, config.image, channel="mask"),),
        tolerance=DECODER_TOLERANCE,
    )
    return encoder, decoder


def _preprocess(image: np.ndarray, config: DmifConfig) -> tuple[np.ndarray, Placement]:
    """Return the network's input, raw intensities, and the slice's place in it.

    An axis shorter than the square is padded with black on both sides, a longer one is shrunk, bilinear.
    """
    shape, side = (image.shape[0], image.shape[1]), config.image
    content = (min(shape[0], side), min(shape[1], side))
    placement = Placement(shape, side, content, ((side - content[0]) // 2, (side - content[1]) // 2))
    return placement.place(resize_bilinear(image.transpose(2, 0, 1), content)), placement


def _answer(
    run: RunGraph, embeddings: Tensor, placement: Placement, prompts: SlicePrompts, config: DmifConfig
) -> Answer:
    logits = run("mask_decoder", {"image_embeddings": embeddings})["low_res_masks"]
    return united(placement.to_slice(logits[:, 0]), logits, None)


def _adopt(state: State, config: DmifConfig) -> State:
    from samkit.networks.dmif import dmif_from_sam

    return dmif_from_sam(state, config)


METHOD = SliceMethod(
    name="brainseg-dmif",
    summary="brain lesions in 2 to 4 co-registered MR sequences, automatic",
    modality="MR",
    paper="Wang et al. 2025, BrainSegDMIF: dynamic fusion-enhanced SAM (arXiv:2505.06133)",
    upstream="none released; SAM ViT-B (facebookresearch/segment-anything@dca509f) inside",
    code_licence="Apache-2.0",
    weights_licence="none released; it starts from SAM's (Apache-2.0)",
    starts_from=(sam.VIT_B,),
    sizes={
        "full": DmifConfig(),
        "small": DmifConfig(
            image=128, width=80, depth=4, heads=4, window=4, global_blocks=(1, 3), channels=64, bottleneck=12,
            decoder_heads=4, decoder_mlp=128, upscaled=16,
        ),
        "tiny": DmifConfig(
            image=64, width=32, depth=2, heads=2, window=3, global_blocks=(1,), channels=16, bottleneck=4,
            decoder_heads=2, decoder_mlp=32, upscaled=8,
        ),
    },
    build=_build,
    graphs=_graphs,
    official=none_released("brainseg-dmif", sam.VIT_B.name),
    is_automatic=True,
    sequences=lambda config: config.sequences,
    preprocess=_preprocess,
    answer=_answer,
    recipes={
        # Section 4.1: 0.5 focal + Dice, Adam 1e-4 halved at epochs 7 and 12 of 200.
        "paper": SliceRecipe(
            size="full", epochs=200, batch=4, schedule="steps", milestones=(7, 12),
            losses=(("focal", 0.5), ("dice", 1.0)), prompts=("none",), needs_init=True,
        ),
        "small": SliceRecipe(
            size="small", epochs=40, batch=8, learning_rate=1e-3, warmup_steps=30, schedule="polynomial", decay=0.9,
            losses=(("focal", 0.5), ("dice", 1.0)), prompts=("none",), foreground_share=0.6, clip_norm=1.0,
            augment=("mirror", "place_anew", "brightness_contrast"),
        ),
        "tiny": SliceRecipe(
            size="tiny", epochs=2, batch=2, losses=(("focal", 0.5), ("dice", 1.0)), prompts=("none",),
        ),
    },
    frozen=lambda name, config: False,
    base="sam",
    adopt=_adopt,
)  # fmt: skip
