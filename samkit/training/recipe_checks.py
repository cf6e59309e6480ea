"""What makes a recipe or a network impossible to train although each value has the right type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from samkit.errors import OptionError
from samkit.methods.method import ClickRecipe, Recipe, SliceRecipe
from samkit.networks.config import NetworkConfig
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.training.augmentation import AUGMENTATIONS

LOSSES = ("focal", "dice", "dice_squared", "bce", "ce", "dice_classes", "iou")
"""Terms of SliceRecipe.losses; slice_losses.py computes them."""

_POSITIVE = (
    "epochs", "batch", "stages", "accumulate", "validate_every", "learning_rate", "prompt_learning_rate",
    "masks_per_image", "samples_per_epoch",
)  # fmt: skip
_NOT_NEGATIVE = (
    "weight_decay", "warmup_steps", "warmup_epochs", "clip_norm", "stage_growth", "seed", "error_rounds", "decay",
)  # fmt: skip
_FRACTIONS = {
    "stage_growth": "of the training",
    "foreground_share": "of the slices",
    "final_rate": "of the learning rate",
    "mosaic": "of the samples",
    "flip": "of the samples",
}
_CHOICES = {
    "crop": ("click", "label"),
    "target": ("all", "each"),
    "precision": ("32-true", "bf16-mixed", "16-mixed"),
    "optimiser": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "steps", "polynomial"),
    "output": ("first", "best", "by_prompt", "classes"),
    "loss_side": ("low_res", "input"),
    "mask_prompt": ("logits", "probability"),
}


def check_recipe(recipe: Recipe) -> None:
    """Raise OptionError for values of a recipe that have the right type and make no sense."""
    for name, value in _held(recipe, _POSITIVE):
        if value is not None and not value > 0:
            raise OptionError(f"{name}={value} must be positive")
    for name, value in _held(recipe, _NOT_NEGATIVE):
        if not value >= 0:
            raise OptionError(f"{name}={value} must not be negative")
    if recipe.seed >= 2**64:  # torch.manual_seed takes no more
        raise OptionError(f"seed={recipe.seed} must be below 2**64")
    for name, value in _held(recipe, _FRACTIONS):
        if not 0 <= value <= 1:
            raise OptionError(f"{name}={value} must be a fraction {_FRACTIONS[name]}, 0 to 1")
    if not all(0 <= beta < 1 for beta in recipe.betas):
        raise OptionError(f"betas={_listed(recipe.betas)} must be at least 0 and below 1")
    for name, value in _held(recipe, _CHOICES):
        if value not in _CHOICES[name]:
            raise OptionError(f"{name}={value} is none of {', '.join(_CHOICES[name])}")
    if isinstance(recipe, ClickRecipe) and not all(0 <= milestone <= 1 for milestone in recipe.milestones):
        raise OptionError(f"milestones={_listed(recipe.milestones)} must be fractions of the training, each 0 to 1")
    if isinstance(recipe, SliceRecipe):
        _check_slices(recipe)


def _check_slices(recipe: SliceRecipe) -> None:
    _check_words("losses", [name for name, _ in recipe.losses], LOSSES)
    _check_words("prompts", recipe.prompts, ("box", "shifted_box", "point", "none"))
    _check_words("augment", recipe.augment, tuple(AUGMENTATIONS))
    if not recipe.losses or not recipe.prompts:
        raise OptionError("losses and prompts must each name one at least")
    if not 0 <= recipe.box_jitter[0] <= recipe.box_jitter[1]:
        raise OptionError(f"box_jitter={_listed(recipe.box_jitter)} must rise, from 0 on")
    if recipe.error_rounds and "none" in recipe.prompts:
        raise OptionError("error_rounds click where the mask is wrong, and prompts=none takes no clicks")


def check_network(config: NetworkConfig, refinement: str) -> None:
    """Raise OptionError for a network that can be built and can't be trained, or not as its config says."""
    if not isinstance(config, Sam3DConfig):
        return
    if config.channels % (2 * config.decoder_heads):
        raise OptionError(
            f"decoder_heads={config.decoder_heads}: twice as many must divide the {config.channels} channels; give a "
            f"divisor of {config.channels // 2}"
        )
    if beyond := [block for block in config.global_blocks if block >= config.depth]:
        raise OptionError(
            f"global_blocks={_listed(config.global_blocks)} names {_listed(beyond)}, the {config.depth} blocks of the "
            f"encoder are 0 to {config.depth - 1}; give global_blocks and depth together"
        )
    if refinement == "recurrent" and config.adapter is None:
        raise OptionError("refinement=recurrent feeds back what the adapter gives, and adapter=none has none")


def _held(recipe: Recipe, names: Iterable[str]) -> list[tuple[str, Any]]:
    """Return those fields that this kind of recipe has, with their values."""
    return [(name, getattr(recipe, name)) for name in names if hasattr(recipe, name)]


def _check_words(name: str, words: Iterable[str], known: tuple[str, ...]) -> None:
    if wrong := [word for word in words if word not in known]:
        raise OptionError(f"{name}: {_listed(wrong)} is none of {', '.join(known)}")


def _listed(values: Iterable[object]) -> str:
    return ",".join(map(str, values))
