"""LMSFE-SAM: lesions in ultrasound, SAM-Med2D with a local multi-scale encoder beside its image encoder.

Pre- and postprocessing, prompts and decoder are SAM-Med2D's. Nobody released code or weights; what the paper leaves
open follows its public ancestors (docs/explanation/numerics.md, methods section 3).
"""

from __future__ import annotations

from dataclasses import replace

from samkit.methods import sam_med2d
from samkit.methods._slices import build_sam, none_released, prompt_graphs
from samkit.methods.method import SliceMethod, SliceRecipe, State
from samkit.networks.sam2d_config import Sam2DConfig

_ADDED = (".Adapter.", ".local_encoder.", ".position_adapter.", ".feature_adapter.", ".balancing_adapters.")
"""Parts of the image encoder that train; the rest is the frozen ViT (Fig. 1)."""


def _adopt(state: State, config: Sam2DConfig) -> State:
    from samkit.networks.lmsfe import lmsfe_from_sam_med2d

    return lmsfe_from_sam_med2d(state, config)


METHOD = SliceMethod(
    name="lmsfe-sam",
    summary="lesions in ultrasound by boxes, with a local multi-scale encoder",
    modality="US",
    paper="Di et al. 2025, SAM with an integrated local multi-scale feature encoder (LMSFE-SAM)",
    upstream="OpenGVLab/SAM-Med2D@bfd2b93; JCruan519/EGE-UNet@f52ba30 (MHPM)",
    code_licence="Apache-2.0",
    weights_licence="none released; it starts from SAM-Med2D's (Apache-2.0)",
    starts_from=(sam_med2d.BASE,),
    sizes={
        "full": replace(sam_med2d.FULL, local_branch=True),
        "small": replace(sam_med2d.SMALL, local_branch=True, local_width=4),
        "tiny": replace(sam_med2d.TINY, local_branch=True, local_width=4),
    },
    build=build_sam,
    graphs=prompt_graphs,
    official=none_released("lmsfe-sam", sam_med2d.BASE.name),
    prompts=frozenset({"box", "point"}),
    preprocess=sam_med2d.preprocess,
    answer=sam_med2d.answer,
    iou_is_trained=True,
    recipes={
        # Section 2.3: Adam 1e-4, 15 epochs, batch 2; the rest is SAM-Med2D's.
        "paper": SliceRecipe(
            size="full", epochs=15, batch=2, losses=sam_med2d.LOSSES, output="best", prompts=("shifted_box", "point"),
            loss_side="input", error_rounds=8, mask_prompt="probability", masks_per_image=5, needs_init=True,
        ),
        "small": SliceRecipe(
            size="small", epochs=40, batch=4, learning_rate=5e-4, warmup_steps=30, losses=sam_med2d.SMALL_LOSSES,
            output="best", prompts=("shifted_box", "shifted_box", "point"), error_rounds=1, mask_prompt="probability",
            clip_norm=1.0, augment=("mirror",),
        ),
        "tiny": SliceRecipe(
            size="tiny", epochs=2, batch=2, losses=sam_med2d.LOSSES, output="best", error_rounds=1,
            mask_prompt="probability",
        ),
    },
    frozen=lambda name, config: name.startswith("image_encoder.") and not any(word in name for word in _ADDED),
    base="sam-med2d",
    adopt=_adopt,
)  # fmt: skip
