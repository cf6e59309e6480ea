"""LoRA-SAM: twelve subcortical structures of the brain in coronal MR slices, at once or by prompts.

SAMed with 13 mask tokens: token 0 is the background, each other one a structure, and the softmax over them decides. The
image encoder is SAM's, frozen, with low-rank updates of q and v that an export merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from samkit.errors import CheckpointError, PromptError
from samkit.methods import sam
from samkit.methods._slices import as_rgb, build_sam, decode, prompt_graphs
from samkit.methods.method import Answer, OfficialFile, RunGraph, SliceMethod, SliceRecipe, State
from samkit.networks.sam2d_config import SUBCORTICAL, Sam2DConfig
from samkit.placement import Placement, resize_bilinear
from samkit.prompts import SlicePrompts
from samkit.tensors import Tensor


def _structures(config: Sam2DConfig) -> tuple[str, ...]:
    """Return the names of labels 1 and on; a file with another number of masks does not tell them."""
    return config.structures or tuple(f"structure_{number}" for number in range(1, config.masks))


def _preprocess(image: np.ndarray, config: Sam2DConfig) -> tuple[np.ndarray, Placement]:
    """Return the network's input, 0..1, and the slice's place in it: it fills the square (SAMed `dataset_synapse.py`).

    Splines of order 3 whose first and last samples lie on the first and last pixels. SAM's mean and deviation are not
    used.
    """
    from scipy import ndimage

    shape, side = (image.shape[0], image.shape[1]), config.image
    unit = image.astype(np.float32) / np.float32(255)
    stretched = as_rgb(ndimage.zoom(unit, (side / shape[0], side / shape[1], 1), order=3))
    return np.ascontiguousarray(stretched.transpose(2, 0, 1)), Placement.stretched(shape, side, ends_aligned=True)


def _answer(
    run: RunGraph, embeddings: Tensor, placement: Placement, prompts: SlicePrompts, config: Sam2DConfig
) -> Answer:
    """Return the label of the largest probability at each pixel.

    Prompts that name no structure steer one run whose classes are all used; without prompts that run is automatic. Each
    structure with prompts of its own gets its probability from a run with those alone, and the background is what the
    likeliest structure leaves.
    """
    names = _structures(config)
    named = ({point.structure for point in prompts.points} | {box.structure for box in prompts.boxes}) - {""}
    if unknown := sorted(named - set(names)):
        raise PromptError(f"there is no structure {', '.join(unknown)}; this network knows {', '.join(names)}")
    probabilities = _classes(run, embeddings, placement, _of(prompts, ""), config)
    for name in sorted(named):
        number = 1 + names.index(name)
        probabilities[number] = _classes(run, embeddings, placement, _of(prompts, name), config)[number]
    if named:
        probabilities[0] = 1 - probabilities[1:].max(axis=0)
    picked = np.ix_(*(_ends_aligned(config.image, size) for size in placement.shape))
    labels = probabilities.argmax(axis=0).astype(np.uint8)[picked]
    foreground = probabilities[1:].max(axis=0)[picked]
    background = probabilities[0][picked]
    return Answer(labels, (np.log(foreground + 1e-30) - np.log(background + 1e-30)).astype(np.float32))


def _of(prompts: SlicePrompts, structure: str) -> SlicePrompts:
    return replace(
        prompts,
        points=tuple(point for point in prompts.points if point.structure == structure),
        boxes=tuple(box for box in prompts.boxes if box.structure == structure),
    )


def _classes(
    run: RunGraph, embeddings: Tensor, placement: Placement, prompts: SlicePrompts, config: Sam2DConfig
) -> np.ndarray:
    """Return the probability of every class (K, S, S) of the input; of several objects the likeliest wins."""
    low_res, _, _ = decode(run, embeddings, placement, prompts, config)
    logits = resize_bilinear(low_res, (config.image, config.image))
    logits -= logits.max(axis=1, keepdims=True)
    exponents = np.exp(logits)
    probabilities: np.ndarray = (exponents / exponents.sum(axis=1, keepdims=True)).max(axis=0)
    return probabilities


def _ends_aligned(old: int, new: int) -> np.ndarray:
    """Return the nearest of `old` samples for each of `new`, first on first and last on last (SAMed's `zoom`)."""
    return np.rint(np.arange(new) * ((old - 1) / max(1, new - 1))).astype(int)


def _official(state: State, companions: Mapping[str, State]) -> tuple[Sam2DConfig, State]:
    """Return config and parameters of a LoRA file of SAMed's script on SAM's own."""
    from samkit.networks.convert2d import lora_sam

    if "base" not in companions:
        raise CheckpointError(
            "a LoRA file of SAMed holds no image encoder; give SAM's weights beside it, {base} sam_vit_b_01ec64.pth",
            options=("base",),
        )
    return lora_sam(state, companions["base"])


def _adopt(state: State, config: Sam2DConfig) -> State:
    from samkit.networks.convert2d import start_lora_sam

    return start_lora_sam(state, config)


def _is_frozen(name: str, config: Sam2DConfig) -> bool:
    """LoRA trains; so do prompt encoder and mask decoder, save what the decoder's own LoRA stands for (SAMed_s)."""
    if ".linear_" in name:
        return False
    has_decoder_lora = config.lora_place != "encoder"
    return name.startswith("image_encoder.") or (has_decoder_lora and name.startswith("mask_decoder.transformer."))


def _with_lora(config: Sam2DConfig, image: int, rank: int) -> Sam2DConfig:
    return replace(config, image=image, lora_rank=rank, masks=len(SUBCORTICAL) + 1, structures=SUBCORTICAL)


_SAMED = tuple(
    OfficialFile(name, f"https://drive.google.com/file/d/{key}", "MIT", beside=(("base", sam.VIT_B.name),))
    for name, key in (
        ("epoch_159.pth", "1P0Bm-05l-rfeghbrT1B62v5eN-3A-uOr"),
        ("checkpoints_s/epoch_159.pth", "1rQM2md-h66RlRF3wC0m9N8aheOCvKfYv"),
    )
)

METHOD = SliceMethod(
    name="lora-sam",
    summary="12 subcortical structures of a brain MR, automatic or prompted",
    modality="MR",
    paper="Sui et al. 2025, Cross-domain subcortical brain structure segmentation by LoRA-SAM (BMC Med Imaging 25:248)",
    upstream="hitachinsk/SAMed@e351840",
    code_licence="MIT",
    weights_licence="none released for the 12 structures; SAM's (Apache-2.0) and SAMed's (MIT) load",
    official_files=_SAMED,
    starts_from=(sam.VIT_B,),
    sizes={
        "full": _with_lora(sam.FULL, 512, 16),
        "small": _with_lora(sam.SMALL, 256, 8),
        "tiny": _with_lora(sam.TINY, 128, 2),
    },
    build=build_sam,
    graphs=prompt_graphs,
    official=_official,
    companions=("base",),
    plane="coronal",
    prompts=frozenset({"box", "point"}),
    is_automatic=True,
    structures=_structures,
    window=lambda config: (112, 128),
    preprocess=_preprocess,
    answer=_answer,
    recipes={
        # AdamW 0.005, decay 0.1, warm-up 250, then a polynomial fall; 0.2 CE + 0.8 Dice (methods 4.3, Table 10). Slices
        # without any structure train, too, as SAMed's lists have them: a whole volume is answered.
        "paper": SliceRecipe(
            size="full", epochs=200, batch=12, optimiser="adamw", learning_rate=0.005, weight_decay=0.1,
            warmup_steps=250, schedule="polynomial", decay=0.9, losses=(("ce", 0.2), ("dice_classes", 0.8)),
            output="classes", prompts=("none",), foreground_share=0.0, augment=("rot90_flip_or_rotate",),
            needs_init=True,
        ),
        "small": SliceRecipe(
            size="small", epochs=60, batch=8, optimiser="adamw", learning_rate=0.0015, weight_decay=0.05,
            warmup_steps=30, schedule="polynomial", decay=0.9, losses=(("ce", 0.5), ("dice_classes", 0.5)),
            output="classes", prompts=("none",), foreground_share=0.8, clip_norm=1.0,
            augment=("place_anew", "brightness_contrast"),
        ),
        "tiny": SliceRecipe(
            size="tiny", epochs=2, batch=2, losses=(("ce", 0.2), ("dice_classes", 0.8)), output="classes",
            prompts=("none",),
        ),
    },
    frozen=_is_frozen,
    base="sam",
    adopt=_adopt,
)  # fmt: skip
