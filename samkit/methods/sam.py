"""SAM: promptable segmentation of natural images, the network all others build on (Kirillov et al. 2023).

The longer side of an image becomes 1024 pixels, the shorter one is padded with the mean colour. A single click is
ambiguous, so it gets the proposal with the best predicted IoU; a box, several clicks, or a click with a mask get the
single mask, as the authors recommend (`segment_anything/predictor.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from samkit.errors import CheckpointError
from samkit.methods._slices import as_rgb, best_proposal, build_sam, decode, normalise, prompt_graphs, united
from samkit.methods.method import Answer, OfficialFile, RunGraph, SliceMethod, SliceRecipe, State
from samkit.networks.sam2d_config import Sam2DConfig
from samkit.placement import Placement
from samkit.prompts import SlicePrompts
from samkit.tensors import Tensor


def _preprocess(image: np.ndarray, config: Sam2DConfig) -> tuple[np.ndarray, Placement]:
    """Return the network's input and the slice's place in it (`ResizeLongestSide`, `Sam.preprocess`).

    The resize is Pillow's antialiased bilinear one on 8-bit colours, as upstream's.
    """
    from PIL import Image

    placement = Placement.longest_side((image.shape[0], image.shape[1]), config.image)
    picture = Image.fromarray(as_rgb(image.clip(0, 255).astype(np.uint8)))
    resized = picture.resize(placement.content[::-1], Image.Resampling.BILINEAR)
    return placement.place(normalise(np.asarray(resized, np.float32))), placement


def _answer(
    run: RunGraph, embeddings: Tensor, placement: Placement, prompts: SlicePrompts, config: Sam2DConfig
) -> Answer:
    low_res, iou, sizes = decode(run, embeddings, placement, prompts, config)
    proposed, proposed_iou = best_proposal(low_res, iou)
    is_ambiguous = (np.array(sizes) == 1) & (prompts.low_res is None)
    chosen = np.where(is_ambiguous[:, None, None, None], proposed, low_res[:, :1])
    return united(placement.to_slice(chosen[:, 0]), chosen, np.where(is_ambiguous, proposed_iou, iou[:, 0]))


def _official(state: State, companions: Mapping[str, State]) -> tuple[Sam2DConfig, State]:
    """Return config and parameters of a sam_vit_b, sam_vit_l or sam_vit_h file."""
    from samkit.networks.convert2d import sam_config

    config = sam_config({name: tuple(tensor.shape) for name, tensor in state.items()})
    if config.adapter:
        raise CheckpointError(
            "the file holds SAM-Med2D's adapters, and SAM has none; pass {method} sam-med2d", options=("method",)
        )
    if config.masks != FULL.masks:
        raise CheckpointError(
            f"the file has {config.masks} mask tokens, and SAM has {FULL.masks}, one mask and three proposals; "
            "give the file that the authors released"
        )
    return config, state


FULL = Sam2DConfig()
SMALL = Sam2DConfig(
    image=256, width=128, depth=3, heads=4, window=8, global_blocks=(1, 2), channels=96, decoder_heads=4,
    decoder_mlp=256, iou_hidden=64,
)  # fmt: skip
TINY = Sam2DConfig(
    image=128, width=32, depth=2, heads=2, window=3, global_blocks=(1,), channels=16, decoder_heads=2, decoder_mlp=32,
    iou_hidden=16,
)  # fmt: skip

_COPIES = "copies on Hugging Face, not by its authors; the name holds the first digits of its MD5"
VIT_B, VIT_L, VIT_H = (
    OfficialFile(name, f"https://dl.fbaipublicfiles.com/segment_anything/{name}", "Apache-2.0", sha256, _COPIES)
    for name, sha256 in (
        ("sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        ("sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        ("sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    )
)

METHOD = SliceMethod(
    name="sam",
    summary="2D boxes and clicks on any picture; the network the 2D methods build on",
    paper="Kirillov et al. 2023, Segment Anything (arXiv:2304.02643)",
    upstream="facebookresearch/segment-anything@dca509f",
    code_licence="Apache-2.0",
    weights_licence="Apache-2.0 (sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth)",
    official_files=(VIT_B, VIT_L, VIT_H),
    starts_from=(VIT_B,),
    sizes={"full": FULL, "small": SMALL, "tiny": TINY},
    build=build_sam,
    graphs=prompt_graphs,
    official=_official,
    prompts=frozenset({"box", "point"}),
    preprocess=_preprocess,
    answer=_answer,
    iou_is_trained=True,
    recipes={
        # Section A of the paper, without its data engine: AdamW, 20 focal + 1 Dice + 1 IoU, jittered boxes or a click.
        "paper": SliceRecipe(
            size="full", epochs=100, batch=2, optimiser="adamw", learning_rate=1e-5, weight_decay=0.1, warmup_steps=250,
            losses=(("focal", 20.0), ("dice", 1.0), ("iou", 1.0)), output="by_prompt", prompts=("box", "point"),
            box_jitter=(0.0, 20.0), needs_init=True,
        ),
        "small": SliceRecipe(
            size="small", epochs=40, batch=4, optimiser="adamw", learning_rate=5e-4, weight_decay=0.05,
            warmup_steps=30, losses=(("dice_squared", 1.0), ("bce", 1.0), ("iou", 1.0)), output="by_prompt",
            prompts=("box", "point"), box_jitter=(0.0, 20.0), clip_norm=1.0, augment=("mirror",),
        ),
        "tiny": SliceRecipe(size="tiny", epochs=2, batch=2, output="by_prompt", prompts=("box", "point")),
    },
    frozen=lambda name, config: name.startswith("prompt_encoder.pe_layer"),
)  # fmt: skip
