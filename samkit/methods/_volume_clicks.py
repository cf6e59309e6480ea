"""What the two 3D click methods share: graphs, preprocessing, reading an official file's shape.

Tensor names and axes of the exported graphs are a promise that clients rely on; every tensor is float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from samkit.errors import CheckpointError, InputRefused
from samkit.methods.method import GraphSpec, State
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.precisions import DECODER_TOLERANCE, ENCODER_TOLERANCE
from samkit.tensors import Axis, TensorSpec

if TYPE_CHECKING:
    from samkit.networks.sam3d import Sam3D

_BATCH = Axis("batch", 1, 1, 8)
_POINTS = Axis("points", 0, 1, 64)

CT_RANGE = (-1000.0, 1000.0)
"""Intensities [HU] kept of a CT (SAM-Med3D's data loader)."""


def _cube(name: str, channels: int, side: int) -> TensorSpec:
    i, j, k = (Axis.fixed(axis, side) for axis in "ijk")
    return TensorSpec(name, "float32", (_BATCH, Axis.fixed("channel", channels), i, j, k))


def click_graphs(config: Sam3DConfig) -> tuple[GraphSpec, ...]:
    """Return `image_encoder` (once per crop) and `mask_decoder` (once per click), and a pair for anchored adapters.

    The pair is `adapter_stem` (once per crop) and `mask_decoder_anchored`: `mask_decoder` without the work that the
    first did. Where a step starts from what the one before returned, it can't be used.

    `point_coords` are (i, j, k) voxel indices of the crop, before the half-voxel shift. The caller passes real
    points only: the padding token is inside the graph.
    """
    embeddings = _cube("image_embeddings", config.channels, config.grid)
    masks = _cube("low_res_masks", 1, config.logits)
    points = (
        TensorSpec("point_coords", "float32", (_BATCH, _POINTS, Axis.fixed("ijk", 3))),
        TensorSpec("point_labels", "float32", (_BATCH, _POINTS)),
    )
    outputs = [masks, TensorSpec("iou_predictions", "float32", (_BATCH, Axis.fixed("mask", 1)))]
    if config.adapter is not None:
        outputs.append(_cube("updated_embeddings", config.channels, config.grid))
    graphs = (
        GraphSpec(
            name="image_encoder",
            inputs=(_cube("image", 1, config.patch),),
            outputs=(embeddings,),
            tolerance=ENCODER_TOLERANCE,
        ),
        GraphSpec(
            name="mask_decoder",
            inputs=(embeddings, *points, _cube("mask_input", 1, config.logits)),
            outputs=tuple(outputs),
            tolerance=DECODER_TOLERANCE,
        ),
    )
    if config.adapter is None:
        return graphs
    i, j, k = (Axis.fixed(axis, config.grid) for axis in "ijk")
    features = TensorSpec("image_features", "float32", (_BATCH, i, j, k, Axis.fixed("channel", config.channels)))
    return (
        *graphs,
        GraphSpec(
            name="adapter_stem",
            inputs=(embeddings,),
            outputs=(features,),
            tolerance=ENCODER_TOLERANCE,
            refinements=("anchored",),
            is_rewrite=True,
        ),
        GraphSpec(
            name="mask_decoder_anchored",
            inputs=(embeddings, features, *points, _cube("mask_input", 1, config.logits)),
            outputs=tuple(outputs),
            tolerance=DECODER_TOLERANCE,
            refinements=("anchored",),
            is_rewrite=True,
            works_for="mask_decoder",
        ),
    )


def z_score(crop: np.ndarray, config: Sam3DConfig) -> np.ndarray:
    """Return `crop` (patch, patch, patch) with zero mean and unit deviation over its positive voxels, float32.

    Mean and unbiased deviation are taken over voxels > 0 and applied to all, padding included
    (methods: SAM-Med3D `utils/infer_utils.py`, TorchIO `ZNormalization`). Raises InputRefused where there is no
    positive voxel or no contrast.
    """
    values = np.asarray(crop, np.float32)
    if config.modality == "ct":
        values = np.clip(values, *CT_RANGE)
    positive = values[values > 0].astype(np.float64)
    if positive.size < 2:
        raise InputRefused(
            "no-positive-voxel",
            f"the crop around the click holds {positive.size} voxels above zero, so its z-score is undefined",
            "click inside the scanned body, or shift the intensities so that tissue is positive",
        )
    deviation = positive.std(ddof=1)
    if not deviation > 1e-6 * max(1.0, abs(positive.mean())):
        raise InputRefused(
            "constant",
            f"all positive voxels of the crop around the click have the value {positive.mean():g}",
            "give an image with contrast, not a mask or an empty scan",
        )
    normed: np.ndarray = ((values - positive.mean()) / deviation).astype(np.float32)
    return normed


def build(config: Sam3DConfig) -> Sam3D:
    """Return the network with freshly initialised weights."""
    from samkit.networks.sam3d import Sam3D  # torch only when a network is really wanted

    return Sam3D(config)


def configure(state: State, prefix: str = "") -> tuple[Sam3DConfig, State]:
    """Return config and parameters of an official `vit_b_ori` file, whose names begin with `prefix` or do not.

    The official code knows one size, so only LoRA's rank and the adapter are read.
    """
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    first = "image_encoder.blocks.0.attn.qkv.linear_a_q.weight"
    rank = state[first].shape[0] if first in state else 0
    if not any(name.startswith("image_encoder.") for name in state):
        raise CheckpointError(
            f"the file has no image encoder (its first names are {sorted(state)[:3]}); "
            "give a whole SAM-Med3D or M-SAM checkpoint"
        )
    topology = None
    if any(name.startswith("bidatt.") for name in state):
        topology = "paper" if "bidatt.image.conv1.weight" in state else "code"
    return Sam3DConfig(lora_rank=rank, adapter=topology), state
