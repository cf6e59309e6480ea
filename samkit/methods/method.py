"""Method and GraphSpec: the frozen records that say all that differs between methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.models.sam3d_config import Sam3DConfig
from samkit.tensors import TensorSpec

if TYPE_CHECKING:
    from samkit.models.sam3d import Sam3D


@dataclass(frozen=True)
class Tolerance:
    """How far a converted graph may drift from PyTorch float32 on the same input."""

    relative: float
    """Largest norm(ours - torch) / norm(torch) of any output."""
    min_dice: float
    """Smallest Dice of the masks; masks under 1000 voxels may differ in at most `max_voxels` instead."""
    max_voxels: int = 5


@dataclass(frozen=True)
class GraphSpec:
    """One exported graph = one ONNX file = one engine = one Triton model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance: Mapping[str, Tolerance]
    """Per precision, `fp32` and `fp16`; the reasons stand in docs/numerics.md."""

    def to_dict(self) -> dict[str, Any]:
        """Return name, inputs and outputs as JSON."""
        return {
            "name": self.name,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }


@dataclass(frozen=True)
class Recipe:
    """How a method is trained: one preset of `sam-train`. `--set name=value` changes any field."""

    size: str
    """Which network: full, small or tiny."""
    epochs: int
    batch: int
    samples_per_epoch: int | None = None
    """Patches drawn per epoch; None draws each case once."""
    learning_rate: float = 8e-4
    """Image encoder (LoRA only where it is frozen) and adapter."""
    prompt_learning_rate: float = 8e-5
    """Prompt encoder and mask decoder."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    milestones: tuple[float, ...] = (0.6, 0.9)
    """Where the learning rate falls to a tenth, as fractions of the training."""
    warmup_steps: int = 0
    """Optimiser steps over which the learning rate rises from zero."""
    stages: int = 10
    """Clicks per sample; the loss is summed over them."""
    stage_growth: float = 0.0
    """Fraction of the training over which the stages grow from one to `stages`; 0 gives all from the start, as the
    papers. From random weights the first stage has to be learnt before the later ones can gain by it."""
    accumulate: int = 1
    """Batches per optimiser step."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    precision: str = "32-true"
    """Lightning's precision: 32-true, bf16-mixed or 16-mixed."""
    crop: str = "click"
    """Training crops: `label` centres on the label's box (the papers), `click` on a random foreground voxel, as
    deployment does."""
    target: str = "all"
    """What a sample's mask is: `all` foreground of the label, or `each` of its values alone, one drawn per sample."""
    needs_init: bool = False
    """Refuse to start from random weights."""
    fit_spacing: bool = True
    """Choose the spacing from the training labels, so that the largest targets and a margin fill the patch
    along each axis."""
    validate_every: int = 1
    """Epochs between validations."""
    seed: int = 2023


@dataclass(frozen=True)
class Method:
    """One segmentation method: everything that tells it from the others."""

    name: str
    """As on the command line, `m-sam`."""
    summary: str
    paper: str
    upstream: str
    """Repository and commit that the parity tests compare with."""
    code_licence: str
    weights_licence: str
    """Licence of the official weights, which samkit does not ship."""
    sizes: Mapping[str, Sam3DConfig]
    """The networks: full, small (the demo weights) and tiny (for tests)."""
    graphs: Callable[[Sam3DConfig], tuple[GraphSpec, ...]]
    refinements: tuple[str, ...]
    """What feeds the next step's image embedding: `anchored` the encoder's output, `recurrent` the step's own
    updated one. The first is what our training uses."""
    official_refinement: str
    """What files from the official script were trained with."""
    official_prefix: str
    """Prefix of the network's parameters in official files; the rest of each name is kept."""
    configure: Callable[[Mapping[str, tuple[int, ...]]], Sam3DConfig]
    """The config of an official file, read from its parameters' names and shapes."""
    preprocess: Callable[[np.ndarray, Sam3DConfig], np.ndarray]
    """One crop (patch, patch, patch) of raw intensities to the network's input, float32."""
    recipes: Mapping[str, Recipe]
    frozen: Callable[[str], bool]
    """Whether a parameter of this name stays as `--init` gave it."""
    base: str | None = None
    """The method whose weights `--init` also takes: its network plus parts makes this one."""
    mask_threshold: float = 0.0
    """The mask the user sees is logits above this. Upstream's training script scores at 0.5."""
    iou_is_trained: bool = False
    """Whether `iou_predictions` was ever given a loss; if not, it must not rank anything."""

    def build(self, config: Sam3DConfig) -> Sam3D:
        """Return the network with freshly initialised weights."""
        from samkit.models.sam3d import Sam3D  # torch only when a network is really wanted

        return Sam3D(config)
