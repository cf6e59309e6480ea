"""MedSAM: SAM ViT-B tuned on medical images, prompted with boxes (Ma et al. 2024).

The network is SAM's; what differs is around it: a slice is stretched to the square with cubic splines and scaled to its
own range, always the first mask is taken, and the probability, not the logit, is interpolated and thresholded
(`MedSAM_Inference.py`).
"""

from __future__ import annotations

import numpy as np

from samkit.methods import sam
from samkit.methods._slices import as_rgb, build_sam, decode, prompt_graphs, united
from samkit.methods.method import Answer, OfficialFile, RunGraph, SliceMethod, SliceRecipe
from samkit.networks.sam2d_config import Sam2DConfig
from samkit.placement import Placement, resize_bilinear
from samkit.prompts import SlicePrompts
from samkit.tensors import Tensor


def preprocess(image: np.ndarray, config: Sam2DConfig) -> tuple[np.ndarray, Placement]:
    """Return the network's input, each slice scaled to 0..1 by its own range, and its place: it fills the square.

    Splines of order 3 after a Gaussian where the slice shrinks, clipped to the slice's range; cut to whole numbers
    before and after, as `skimage.transform.resize(order=3, anti_aliasing=True)` and the official script do.
    """
    from scipy import ndimage

    side, values = config.image, np.floor(image).astype(np.float64)
    shrink = np.array([values.shape[0] / side, values.shape[1] / side, 1.0])
    smooth = ndimage.gaussian_filter(values, np.maximum(0, (shrink - 1) / 2), mode="mirror")
    resized = ndimage.zoom(smooth, 1 / shrink, order=3, mode="mirror", grid_mode=True)
    whole = np.floor(np.clip(resized, values.min(), values.max()))
    span = max(float(np.ptp(whole)), 1e-8)
    scaled = as_rgb(((whole - whole.min()) / span).astype(np.float32)).transpose(2, 0, 1)
    return np.ascontiguousarray(scaled), Placement.stretched((image.shape[0], image.shape[1]), side)


def answer(
    run: RunGraph, embeddings: Tensor, placement: Placement, prompts: SlicePrompts, config: Sam2DConfig
) -> Answer:
    """Return the union of the prompts' first masks, thresholded as interpolated probabilities."""
    low_res, _, _ = decode(run, embeddings, placement, prompts, config)
    probability = 1 / (1 + np.exp(-low_res[:, 0].astype(np.float64)))
    on_slice = np.clip(resize_bilinear(probability, placement.shape).astype(np.float64), 1e-7, 1 - 1e-7)
    return united(np.log(on_slice / (1 - on_slice)), low_res[:, :1], None)


VIT_B = OfficialFile(
    "medsam_vit_b.pth", "https://drive.google.com/drive/folders/1ETWmi4AiniJeWOt6HAsYgTjYv_fkgzoN", "Apache-2.0"
)

METHOD = SliceMethod(
    name="medsam",
    summary="2D boxes on any medical image",
    paper="Ma et al. 2024, Segment anything in medical images (Nature Communications 15:654)",
    upstream="bowang-lab/MedSAM@d71e8a1",
    code_licence="Apache-2.0",
    weights_licence="Apache-2.0 (medsam_vit_b.pth)",
    official_files=(VIT_B, *sam.METHOD.official_files),
    starts_from=(sam.VIT_B,),
    sizes=sam.METHOD.sizes,
    build=build_sam,
    graphs=prompt_graphs,
    official=sam.METHOD.official,
    prompts=frozenset({"box", "point"}),
    preprocess=preprocess,
    answer=answer,
    recipes={
        # train_one_gpu.py: encoder and decoder, Dice + BCE on logits at the input's size, boxes enlarged by 0 to 20.
        "paper": SliceRecipe(
            size="full", epochs=1000, batch=2, optimiser="adamw", weight_decay=0.01, loss_side="input",
            losses=(("dice_squared", 1.0), ("bce", 1.0)), box_jitter=(0.0, 20.0), needs_init=True,
        ),
        "small": SliceRecipe(
            size="small", epochs=40, batch=4, optimiser="adamw", learning_rate=5e-4, weight_decay=0.01,
            warmup_steps=30, losses=(("dice_squared", 1.0), ("bce", 1.0)), box_jitter=(0.0, 20.0), clip_norm=1.0,
            augment=("mirror",),
        ),
        "tiny": SliceRecipe(size="tiny", epochs=2, batch=2, losses=(("dice_squared", 1.0), ("bce", 1.0))),
    },
    frozen=lambda name, config: name.startswith("prompt_encoder."),
    base="sam",
)  # fmt: skip
