"""Method and GraphSpec: the frozen records that say all that differs between methods.

A method is one of two kinds. A `VolumeMethod` takes clicks on a volume and refines its mask in cubic crops; a
`SliceMethod` answers slice by slice, from prompts, from a detector or by itself. What a record does with arrays runs
on numpy, so that training, export, sessions and servers share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from samkit.networks.config import NetworkConfig
from samkit.placement import Placement
from samkit.precisions import Tolerance
from samkit.prompts import SlicePrompts
from samkit.tensors import Tensor, TensorSpec

if TYPE_CHECKING:
    import torch

    from samkit.networks.network import Network

State: TypeAlias = "dict[str, torch.Tensor]"
"""Parameter name to value."""
RunGraph: TypeAlias = Callable[[str, Mapping[str, Tensor]], dict[str, np.ndarray]]
"""Runs the graph of a name: inputs by name to outputs by name."""


IMAGES = "images"
"""Name of a first axis that has the batch's size, or 1: then one image serves all rows."""


@dataclass(frozen=True)
class GraphSpec:
    """One exported graph = one ONNX file = one engine = one Triton model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerance: Mapping[str, Tolerance]
    """Per precision, by its name: ENCODER_TOLERANCE or DECODER_TOLERANCE of `samkit.precisions`."""
    refinements: tuple[str, ...] = ()
    """The refinements in which it exists; empty: in all."""
    is_rewrite: bool = False
    """Whether the exact fast form alone has it: upstream's formulation does its work inside another graph."""
    works_for: str | None = None
    """The graph of upstream's formulation that gives the same outputs, where that has another name: this one is
    compared with it, and where this one is missing it runs in its place, if what it takes besides may be zeros."""

    @property
    def official(self) -> str:
        """Return the name of the graph of upstream's formulation that gives these outputs."""
        return self.works_for or self.name

    def is_in(self, refinement: str | None, folded: bool) -> bool:
        """Return whether an export has this graph; a refinement that is not known yet (None) has those of all."""
        return (folded or not self.is_rewrite) and (not self.refinements or refinement in self.refinements)

    def to_dict(self) -> dict[str, Any]:
        """Return name, inputs and outputs as JSON."""
        return {
            "name": self.name,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }


# --- Recipes: how a method is trained; one preset of `sam-train`. `--set name=value` changes any field. ---


@dataclass(frozen=True)
class Recipe:
    """What every training has."""

    size: str
    """Which network: full, small or tiny."""
    epochs: int
    batch: int
    samples_per_epoch: int | None = None
    """Patches or slices drawn per epoch; None draws each case or slice once."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    """Optimiser steps over which the learning rate rises from zero."""
    accumulate: int = 1
    """Batches per optimiser step."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    precision: str = "32-true"
    """Lightning's precision: 32-true, bf16-mixed or 16-mixed."""
    needs_init: bool = False
    """Refuse to start from random weights."""
    validate_every: int = 1
    """Epochs between validations."""
    seed: int = 2023


@dataclass(frozen=True)
class ClickRecipe(Recipe):
    """A training by clicks on volumes, over the stages of a refinement loop."""

    learning_rate: float = 8e-4
    """Image encoder (LoRA only where it is frozen) and adapter."""
    prompt_learning_rate: float = 8e-5
    """Prompt encoder and mask decoder."""
    weight_decay: float = 0.1
    milestones: tuple[float, ...] = (0.6, 0.9)
    """Where the learning rate falls to a tenth, as fractions of the training."""
    stages: int = 10
    """Clicks per sample; the loss is summed over them."""
    stage_growth: float = 0.0
    """Fraction of the training over which the stages grow from one to `stages`; 0 gives all from the start, as the
    papers. From random weights the first stage has to be learnt before the later ones can gain by it."""
    crop: str = "click"
    """Training crops: `label` centres on the label's box (the papers), `click` on a random foreground voxel, as
    deployment does."""
    target: str = "all"
    """What a sample's mask is: `all` foreground of the label, or `each` of its values alone, one drawn per sample."""
    fit_spacing: bool = True
    """Choose the spacing from the training labels, so that the largest targets and a margin fill the patch
    along each axis."""


@dataclass(frozen=True)
class SliceRecipe(Recipe):
    """A training on slices."""

    optimiser: str = "adam"
    """adam, adamw or sgd (momentum is the first of `betas`)."""
    schedule: str = "constant"
    """constant; `steps` multiplies the rate by `decay` at each epoch of `milestones`; `polynomial` falls to zero with
    `decay` as its power."""
    milestones: tuple[int, ...] = ()
    decay: float = 0.5
    losses: tuple[tuple[str, float], ...] = (("bce", 1.0), ("dice", 1.0))
    """Name and weight of each term; training/slice_losses.py defines them."""
    output: str = "first"
    """Which masks are trained: the `first` token's, the `best` proposal by predicted IoU, `by_prompt` the best for a
    lone click and the first otherwise, or all as `classes`."""
    loss_side: str = "low_res"
    """Where the loss is taken: `low_res` logits against resized labels, or logits resized to the `input`."""
    prompts: tuple[str, ...] = ("box",)
    """What a step is prompted with, one drawn per object: box (jittered), shifted_box (as SAM-Med2D), point, none."""
    box_jitter: tuple[float, float] = (0.0, 0.0)
    """Least and most pixels, of 1024 along the input's side, by which each side of a box moves out."""
    error_rounds: int = 0
    """Decoder-only steps after the first, with clicks where the prediction is wrong (SAM-Med2D)."""
    mask_prompt: str = "logits"
    """What of the mask before such a step is given: its `logits`, or its `probability` (SAM-Med2D)."""
    masks_per_image: int = 1
    """Masks drawn from one slice in a step."""
    augment: tuple[str, ...] = ()
    """Names of training/augmentation.py's functions, applied in order."""
    foreground_share: float = 1.0
    """Smallest part of the slices drawn that hold some of the target."""
    cache_embeddings: bool = False
    """Encode every slice once, where nothing of the image encoder is trained and nothing augmented."""


@dataclass(frozen=True)
class DetectorRecipe(Recipe):
    """A training of the detector on boxes: SGD, a linear fall of the rate, an average of the weights."""

    learning_rate: float = 0.01
    final_rate: float = 0.01
    """What is left of the learning rate at the end, as a fraction."""
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.937, 0.999)
    """The first is SGD's momentum."""
    clip_norm: float = 10.0
    warmup_epochs: float = 3.0
    mosaic: float = 1.0
    """How often four slices are joined to one."""
    flip: float = 0.5
    average: float = 0.9999
    """Decay of the exponential average of the weights."""


# --- Methods ---


@dataclass(frozen=True)
class Part:
    """A piece of a network that has a checkpoint of its own and can be replaced alone."""

    name: str
    """As on the command line, `--detector`, and the field of the config that describes it."""
    prefix: str
    """What its parameters are called inside the network."""
    official: Callable[[State], tuple[NetworkConfig, State]]
    """Config and parameters, without the prefix, of a file from elsewhere."""
    build: Callable[[Any], Network]
    """The part alone, with freshly initialised weights, from its config."""
    recipes: Mapping[str, Recipe]


@dataclass(frozen=True)
class OfficialFile:
    """Weights that others give out; samkit does not ship them. docs/reference/checkpoints.md is made of these."""

    name: str
    address: str
    """Where its authors offer it."""
    licence: str
    """Of these weights, as their authors' page states it."""
    sha256: str = ""
    """What `stated` says it is; nobody compared it with a file here. Empty where nobody states one."""
    stated: str = "nobody"
    """Who states that hash."""
    option: str = "checkpoint"
    """What `sam-export` takes it as: checkpoint, or the name of a part."""
    beside: tuple[tuple[str, str], ...] = ()
    """Option and name of each file that has to be given with it."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Method:
    """One segmentation method: everything that tells it from the others."""

    name: str
    """As on the command line, `m-sam`."""
    summary: str
    modality: str = ""
    """What all of its weights have learnt from, in DICOM's short words (MR, US); empty where it takes any."""
    paper: str
    upstream: str
    """Repository and commit that the parity tests compare with."""
    code_licence: str
    weights_licence: str
    """Licence of the official weights, which samkit does not ship."""
    official_files: tuple[OfficialFile, ...] = ()
    """All that `official`, and that of the parts, take."""
    starts_from: tuple[OfficialFile, ...] = ()
    """What training by the paper's recipe begins with, `--init`."""
    sizes: Mapping[str, NetworkConfig]
    """The networks: full, small (the demo weights) and tiny (for tests)."""
    build: Callable[[Any], Network]
    """The network with freshly initialised weights, from its config."""
    graphs: Callable[[Any], tuple[GraphSpec, ...]]
    """All graphs of a network of this config; an export holds `ExportPlan.specs`."""
    official: Callable[[State, Mapping[str, State]], tuple[NetworkConfig, State]]
    """Config and parameters, in our names, of an official file and its companions."""
    companions: tuple[str, ...] = ()
    """Files that an official checkpoint needs beside it, as on the command line: `base`."""
    parts: tuple[Part, ...] = ()
    recipes: Mapping[str, Recipe]
    frozen: Callable[[str, Any], bool]
    """Whether a parameter of this name stays as `--init` gave it, in a network of this config."""
    base: str | None = None
    """The method whose weights `--init` also takes: its network plus parts makes this one."""
    adopt: Callable[[State, Any], State] = lambda state, config: state
    """The base's parameters as this method's, for a network of this config; what it leaves out stays fresh."""
    refinements: tuple[str, ...] = ("none",)
    """What feeds the next step's image embedding: `anchored` the encoder's output, `recurrent` the step's own
    updated one; `none` where there is no loop. The first is what our training uses."""
    official_refinement: str = "none"
    """What files from the official script were trained with."""
    iou_is_trained: bool = False
    """Whether `iou_predictions` was ever given a loss; if not, it must not rank anything."""
    prompts: frozenset[str] = field(default_factory=frozenset)
    """What a user may give: box, point. Empty where the method takes none."""
    is_automatic: bool = False
    """Whether a slice without prompts gets an answer, too: then a whole volume does."""
    sequences: Callable[[Any], tuple[str, ...]] = lambda config: ()
    """The co-registered sequences it needs, in order; none where it takes one grey volume or a colour image."""
    structures: Callable[[Any], tuple[str, ...]] = lambda config: ()
    """Names of the labels 1, 2, ...; none where there is one mask."""

    def __repr__(self) -> str:
        """Return what it does and what it is prompted with."""
        prompts = " or ".join(sorted(self.prompts)) or "no prompt"
        return f"<{type(self).__name__} {self.name}: {self.summary}; takes {prompts}>"


@dataclass(frozen=True, kw_only=True, repr=False)
class VolumeMethod(Method):
    """Clicks on a volume: each one refines the mask in cubic crops."""

    prompts: frozenset[str] = frozenset({"point"})
    preprocess: Callable[[np.ndarray, Any], np.ndarray]
    """One crop (patch, patch, patch) of raw intensities to the network's input, float32."""
    mask_threshold: float = 0.0
    """The mask the user sees is logits above this. Upstream's training script scores at 0.5."""


@dataclass(frozen=True)
class Answer:
    """What a method says about one slice."""

    labels: np.ndarray
    """(H, W) uint8: 0 background, else the number of the structure; 1 where there is one mask."""
    scores: np.ndarray
    """(H, W) float32: logit of the foreground, above 0 where `labels` is; for `--save-logits`."""
    low_res: np.ndarray | None = None
    """(B, 1, S/4, S/4) logits of the chosen masks, one row per prompt: the next prompt's `low_res`."""
    iou: tuple[float, ...] = ()
    """Predicted IoU of the chosen masks, where the method trained that head."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SliceMethod(Method):
    """Slice by slice: from prompts, from a detector, or by itself."""

    plane: str = "axial"
    """Which slices of a volume: axial, coronal or sagittal."""
    window: Callable[[Any], tuple[int, int] | None] = lambda config: None
    """Height and width [pixels] that slices are cut to around what is not zero in the volume; None takes them whole."""
    preprocess: Callable[[np.ndarray, Any], tuple[np.ndarray, Placement]]
    """One slice (H, W, C) of intensities 0..255, float32, to the network's input (C', S, S), float32, and its place.
    C is one per sequence, else 1 for grey or 3 for colour."""
    propose: Callable[[RunGraph, np.ndarray, Any], SlicePrompts] | None = None
    """Prompts for a slice (H, W, C) that the user gave none for; where it finds nothing the mask is empty."""
    answer: Callable[[RunGraph, Tensor, Placement, SlicePrompts, Any], Answer]
    """The answer to prompts on one slice, from its `image_embeddings` (1, C, g, g), which may lie on a device."""
