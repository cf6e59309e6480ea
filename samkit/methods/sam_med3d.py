"""SAM-Med3D: promptable segmentation of volumes (uni-medical/SAM-Med3D, `vit_b_ori`).

The image encoder runs once per patch, the mask decoder once per click. Differs from SAM: one input channel;
points are (i, j, k) voxel indices of the patch, not (x, y) pixels; there is always a mask prompt (zeros at the
first click), so no `has_mask_input`; no boxes. Arrays are in IJK order on RAS axes, as TorchIO's `ToCanonical`
gave them in training. The official quirks that the networks reproduce are listed in `networks/sam3d.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from samkit.errors import CheckpointError
from samkit.methods._volume_clicks import build, click_graphs, configure, z_score
from samkit.methods.method import ClickRecipe, OfficialFile, State, VolumeMethod
from samkit.networks.sam3d_config import Sam3DConfig


def _official(state: State, companions: Mapping[str, State]) -> tuple[Sam3DConfig, State]:
    """Return config and parameters of an official file; one with an adapter is M-SAM's."""
    config, state = configure(state)
    if config.adapter is not None:
        raise CheckpointError(
            "the file has a mask-enhanced adapter (bidatt.*), so it is an M-SAM checkpoint; pass {method} m-sam",
            options=("method",),
        )
    return config, state


FULL = Sam3DConfig()
SMALL = Sam3DConfig(
    patch=64, spacing=(1.0, 1.0, 1.0), width=192, depth=3, heads=6, window=7, global_blocks=(1, 2),
    channels=96, decoder_heads=4, decoder_mlp=256, iou_hidden=48,
)  # fmt: skip
TINY = Sam3DConfig(
    patch=32, spacing=(2.0, 2.0, 2.0), width=32, depth=2, heads=2, window=3, global_blocks=(1,),
    channels=24, decoder_heads=2, decoder_mlp=48, iou_hidden=16,
)  # fmt: skip

_HUGGING_FACE = "https://huggingface.co/blueyo0/SAM-Med3D/blob/main"
TURBO, CORESET = (
    OfficialFile(name, f"{_HUGGING_FACE}/{name}", "Apache-2.0", sha256, "that page")
    for name, sha256 in (
        ("sam_med3d_turbo.pth", "899a46d04d3b70f723282ceb489149373558bf0aaba389a346f5ab57da5cdd3c"),
        ("sam_med3d_turbo_cvpr_coreset.pth", "11520a8f5adf1ef331c5858400138cc7f6eed65584bdd44e0f325fda5d1e0640"),
    )
)

METHOD = VolumeMethod(
    name="sam-med3d",
    summary="3D clicks on any organ or lesion; the network M-SAM builds on",
    paper="Wang et al. 2023, SAM-Med3D (arXiv:2310.15161)",
    upstream="uni-medical/SAM-Med3D@f3de1fa",
    code_licence="Apache-2.0",
    weights_licence="Apache-2.0 (model card of sam_med3d_turbo.pth)",
    official_files=(TURBO, CORESET),
    starts_from=(TURBO,),
    sizes={"full": FULL, "small": SMALL, "tiny": TINY},
    graphs=click_graphs,
    refinements=("anchored",),
    official_refinement="anchored",
    build=build,
    official=_official,
    preprocess=z_score,
    recipes={
        # train.py: AdamW 8e-4 / 8e-5, decay 0.1, MultiStepLR [120, 180] of 200 epochs, batch 12, accumulation 20.
        "paper": ClickRecipe(
            size="full", epochs=200, batch=12, accumulate=20, stages=11, crop="label",
            needs_init=True, fit_spacing=False, precision="16-mixed",
        ),
        "small": ClickRecipe(
            size="small", epochs=150, batch=4, learning_rate=1e-3, prompt_learning_rate=1e-3, weight_decay=0.05,
            milestones=(0.75, 0.92), warmup_steps=30, stage_growth=0.7, clip_norm=1.0, validate_every=10,
        ),
        "tiny": ClickRecipe(
            size="tiny", epochs=2, batch=2, prompt_learning_rate=8e-4, stages=2, clip_norm=1.0,
        ),
    },
    frozen=lambda name, config: False,
)  # fmt: skip
