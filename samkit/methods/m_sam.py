"""M-SAM: mask-enhanced SAM for 3D tumour lesions (arXiv:2403.05912).

SAM-Med3D with LoRA in the frozen image encoder and a mask-enhanced adapter before the mask decoder: each step
mixes the embedding of the last logits into the image embedding. The decoder graph returns that mixture as
`updated_embeddings`; the host feeds back either it (`recurrent`, the paper) or the encoder's output (`anchored`,
the official script). Mixing the two up fails silently, so checkpoint and manifest both record it.

Where paper and official code disagree, this follows the resolutions listed in docs/explanation/numerics.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from samkit.errors import CheckpointError
from samkit.methods import sam_med3d
from samkit.methods._volume_clicks import build, click_graphs, configure, z_score
from samkit.methods.method import ClickRecipe, State, VolumeMethod
from samkit.networks.sam3d_config import Sam3DConfig


def _official(state: State, companions: Mapping[str, State]) -> tuple[Sam3DConfig, State]:
    """Return config and parameters of an official file; one without the adapter is SAM-Med3D's."""
    config, state = configure(state, "lora_sam.sam.")
    if config.adapter is None:
        raise CheckpointError(
            "the file has no mask-enhanced adapter (bidatt.*), so it is no M-SAM checkpoint; export a SAM-Med3D file "
            "with {method} sam-med3d, or train M-SAM from it with sam-train --init",
            options=("method",),
        )
    return config, state


def _is_frozen(name: str, config: Sam3DConfig) -> bool:
    """LoRA, prompt encoder, decoder and adapter train; the rest of the image encoder stays (paper, Fig. 1)."""
    return name.startswith("image_encoder.") and ".linear_" not in name


def _adopt(state: State, config: Sam3DConfig) -> State:
    """Return SAM-Med3D's parameters where LoRA has them: it wraps the fused projection, which moves one level down."""
    if not config.lora_rank:
        return state
    return {
        name.replace(".attn.qkv.", ".attn.qkv.qkv.") if name.startswith("image_encoder.blocks.") else name: tensor
        for name, tensor in state.items()
    }


METHOD = VolumeMethod(
    name="m-sam",
    summary="3D tumour lesions by clicks, refined through a mask-enhanced adapter",
    paper="Shi et al. 2024, Mask-Enhanced SAM for 3D Tumor Lesion Segmentation (arXiv:2403.05912)",
    upstream="nanase1025/M-SAM@fcec7ef",
    code_licence="Apache-2.0",
    weights_licence="none released; it starts from SAM-Med3D's (Apache-2.0)",
    starts_from=(sam_med3d.TURBO,),
    sizes={
        # Rank 16 is the only one that gives all four parameter figures of Tables 1 and 3.
        "full": replace(sam_med3d.FULL, lora_rank=16, adapter="code"),
        "small": replace(sam_med3d.SMALL, lora_rank=4, adapter="code", adapter_heads=4),
        "tiny": replace(sam_med3d.TINY, lora_rank=2, adapter="code", adapter_heads=2),
    },
    graphs=click_graphs,
    refinements=("recurrent", "anchored"),
    official_refinement="anchored",
    build=build,
    official=_official,
    preprocess=z_score,
    recipes={
        # Section 3.1: AdamW 8e-4, decay 0.1, 200 epochs, batch 4; 8e-5 and the milestones are train_msam.py's.
        "paper": ClickRecipe(
            size="full", epochs=200, batch=4, crop="label", needs_init=True, fit_spacing=False,
        ),
        "small": ClickRecipe(
            size="small", epochs=150, batch=4, learning_rate=1e-3, prompt_learning_rate=1e-3, weight_decay=0.05,
            milestones=(0.75, 0.92), warmup_steps=30, stage_growth=0.7, clip_norm=1.0, validate_every=10,
        ),
        "tiny": ClickRecipe(
            size="tiny", epochs=2, batch=2, prompt_learning_rate=8e-4, stages=2, clip_norm=1.0,
        ),
    },
    frozen=_is_frozen,
    base=sam_med3d.METHOD.name,
    adopt=_adopt,
)  # fmt: skip
