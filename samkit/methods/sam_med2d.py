"""SAM-Med2D: SAM at 256 pixels with an adapter in every encoder block (Cheng et al. 2023).

A slice smaller than the square on both sides is padded to it, any other is stretched with nearest neighbours. Of the
three proposals the one with the best predicted IoU is the mask, and the next round's mask prompt is its probability,
not its logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from samkit.errors import CheckpointError
from samkit.methods import sam
from samkit.methods._slices import best_proposal, build_sam, decode, normalise, prompt_graphs, united
from samkit.methods.method import Answer, OfficialFile, RunGraph, SliceMethod, SliceRecipe, State
from samkit.networks.sam2d_config import Sam2DConfig
from samkit.placement import Placement
from samkit.prompts import SlicePrompts
from samkit.tensors import Tensor


def preprocess(image: np.ndarray, config: Sam2DConfig) -> tuple[np.ndarray, Placement]:
    """Return the network's input and the slice's place in it.

    Normalised first, then padded with zeros, the mean colour, or stretched with nearest neighbours (`DataLoader.py`).
    An odd row or column of padding is at the bottom or right.
    """
    height, width = image.shape[:2]
    if height < config.image and width < config.image:
        placement = Placement.centred((height, width), config.image)
        return placement.place(normalise(image)), placement
    rows = np.arange(config.image) * height // config.image
    columns = np.arange(config.image) * width // config.image
    # The same numbers as upstream's, which normalises every pixel before it takes these
    return normalise(image[rows[:, None], columns]), Placement.stretched((height, width), config.image)


def answer(
    run: RunGraph, embeddings: Tensor, placement: Placement, prompts: SlicePrompts, config: Sam2DConfig
) -> Answer:
    """Return the union of the prompts' best proposals."""
    if prompts.low_res is not None:
        prompts = replace(prompts, low_res=1 / (1 + np.exp(-prompts.low_res)))
    low_res, iou, _ = decode(run, embeddings, placement, prompts, config)
    chosen, chosen_iou = best_proposal(low_res, iou)
    return united(placement.to_slice(chosen[:, 0]), chosen, chosen_iou)


def _official(state: State, companions: Mapping[str, State]) -> tuple[Sam2DConfig, State]:
    """Return config and parameters of sam-med2d_b.pth, or of the same network without adapters (FT-SAM)."""
    from samkit.networks.convert2d import sam_config

    config = sam_config({name: tuple(tensor.shape) for name, tensor in state.items()})
    if config.image != 256:
        raise CheckpointError(
            f"the file is for {config.image} pixels and SAM-Med2D's are for 256; export a SAM file with {{method}} sam",
            options=("method",),
        )
    return config, state


def adopt(state: State, config: Sam2DConfig) -> State:
    """Return SAM's parameters at this network's size; the adapters stay fresh."""
    from samkit.networks.convert2d import resize_encoder

    return resize_encoder(state, config)


FULL = replace(sam.FULL, image=256, adapter=True)
SMALL = replace(sam.SMALL, image=128, width=96, depth=3, heads=4, global_blocks=(2,), adapter=True)
TINY = replace(sam.TINY, adapter=True)
LOSSES = (("focal", 20.0), ("dice", 1.0), ("iou", 1.0))
SMALL_LOSSES = (("dice_squared", 1.0), ("bce", 1.0), ("iou", 1.0))
"""From random weights the focal term teaches too slowly what is background and what is not."""

_DRIVE = "https://drive.google.com/file/d"
BASE = OfficialFile("sam-med2d_b.pth", f"{_DRIVE}/1ARiB5RkSsWmAB_8mqWnwDF8ZKTtFwsjl", "Apache-2.0")
FT_SAM = OfficialFile("ft-sam_b.pth", f"{_DRIVE}/1J4qQt9MZZYdv1eoxMTJ4FL8Fz65iUFM8", "Apache-2.0")

METHOD = SliceMethod(
    name="sam-med2d",
    summary="2D boxes and clicks on any medical image, at 256 pixels",
    paper="Cheng et al. 2023, SAM-Med2D (arXiv:2308.16184)",
    upstream="OpenGVLab/SAM-Med2D@bfd2b93",
    code_licence="Apache-2.0",
    weights_licence="Apache-2.0 (sam-med2d_b.pth)",
    official_files=(BASE, FT_SAM),
    starts_from=(BASE,),
    sizes={"full": FULL, "small": SMALL, "tiny": TINY},
    build=build_sam,
    graphs=prompt_graphs,
    official=_official,
    prompts=frozenset({"box", "point"}),
    preprocess=preprocess,
    answer=answer,
    iou_is_trained=True,
    recipes={
        # train.py: Adam 1e-4, 15 epochs, batch 2, five masks an image, eight more steps of the decoder alone.
        "paper": SliceRecipe(
            size="full", epochs=15, batch=2, losses=LOSSES, output="best", prompts=("shifted_box", "point"),
            loss_side="input", error_rounds=8, mask_prompt="probability", masks_per_image=5, needs_init=True,
        ),
        "small": SliceRecipe(
            size="small", epochs=40, batch=4, learning_rate=5e-4, warmup_steps=30, losses=SMALL_LOSSES, output="best",
            prompts=("shifted_box", "point"), error_rounds=1, mask_prompt="probability", clip_norm=1.0,
            augment=("mirror",),
        ),
        "tiny": SliceRecipe(
            size="tiny", epochs=2, batch=2, losses=LOSSES, output="best", error_rounds=1, mask_prompt="probability",
        ),
    },
    frozen=lambda name, config: name.startswith("image_encoder.") and ".Adapter." not in name,
    base="sam",
    adopt=adopt,
)  # fmt: skip
