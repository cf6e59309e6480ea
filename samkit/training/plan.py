"""What a training will do, decided before any work: network, recipe, refinement, target; `--set` changes any of it."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import click

from samkit.checkpoints import CheckpointInfo
from samkit.errors import CheckpointError
from samkit.geometry import Triple
from samkit.methods.method import Method, Recipe
from samkit.models.sam3d_config import Sam3DConfig

FIT_MARGIN = 1.05
"""How much longer than the largest target the patch is, where the spacing is chosen from the labels."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a training but its data, its folder and the machine."""

    method: str
    preset: str
    config: Sam3DConfig
    recipe: Recipe
    refinement: str
    label: int | None = None
    """The foreground value; None takes every value above zero."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "config": self.config.to_dict(), "recipe": asdict(self.recipe)}


def plan_training(
    method: Method,
    preset: str,
    settings: Sequence[str] = (),
    *,
    label: int | None = None,
    start: CheckpointInfo | None = None,
) -> TrainingPlan:
    """Return the plan of `preset` with `settings` (`name=value`) applied; click.UsageError where one is wrong.

    `start` is what the checkpoint of `--init` says: the network has its size, patch and spacing, with the preset's LoRA
    and adapter where the checkpoint has none, and trains for the refinement that the same method's weights know.
    """
    recipe = method.recipes[preset]
    config = method.sizes[recipe.size]
    values = _parse(settings, method)
    size = str(values.get("size", recipe.size))
    if size not in method.sizes:
        raise click.UsageError(f"size={size} is none of {', '.join(method.sizes)}")
    config = method.sizes[size]
    if start is not None:
        given = start.config
        config = replace(
            given,
            lora_rank=given.lora_rank or config.lora_rank,
            adapter=given.adapter or config.adapter,
            adapter_heads=given.adapter_heads if given.adapter else config.adapter_heads,
        )
        # The weights were trained at the checkpoint's spacing.
        recipe = replace(recipe, fit_spacing=False, size=start.size)
    if "spacing" in values:
        recipe = replace(recipe, fit_spacing=False)
    own = start.refinement if start is not None and start.method == method.name else method.refinements[0]
    refinement = str(values.pop("refinement", own))
    if refinement not in method.refinements:
        raise click.UsageError(f"refinement={refinement} is none of {', '.join(method.refinements)} of {method.name}")
    recipe = replace(recipe, **{k: v for k, v in values.items() if k in _names(Recipe)})
    try:
        config = replace(config, **{k: v for k, v in values.items() if k in _names(Sam3DConfig)})
    except CheckpointError as error:
        raise click.UsageError(f"--set: {error}") from error
    _check(recipe)
    _check_network(config, refinement)
    return TrainingPlan(method.name, preset, config, recipe, refinement, label)


def fitted_spacing(extent_mm: Triple, patch: int, finest_mm: float) -> Triple:
    """Return the spacing [mm] at which the largest targets and a margin fill the patch, along each RAS axis.

    The logits lie at a quarter of the patch, so every millimetre of the patch that no target needs costs sharpness.
    `extent_mm` is the longest box edge of any training target along each axis. The spacing is
    `FIT_MARGIN * extent_mm / patch`, rounded up to 0.05 mm; never finer than half the finest voxel edge of the data,
    where there is no more to see and less context, nor than half the coarsest axis.

    >>> fitted_spacing((27.0, 44.0, 35.0), 64, 1.0)
    (0.5, 0.75, 0.6)
    """
    wanted = [FIT_MARGIN * extent / patch for extent in extent_mm]
    floor = max(0.5 * finest_mm, 0.5 * max(wanted))
    a, b, c = (round(math.ceil(round(max(w, floor) / 0.05, 6)) * 0.05, 2) for w in wanted)
    return a, b, c


def _check(recipe: Recipe) -> None:
    """Raise click.UsageError for values of a recipe that have the right type and make no sense."""
    positive = ("epochs", "batch", "stages", "accumulate", "validate_every", "learning_rate", "prompt_learning_rate")
    for name in positive:
        if not getattr(recipe, name) > 0:
            raise click.UsageError(f"{name}={getattr(recipe, name)} must be positive")
    if recipe.samples_per_epoch is not None and recipe.samples_per_epoch < 1:
        raise click.UsageError(f"samples_per_epoch={recipe.samples_per_epoch} must be positive")
    for name in ("weight_decay", "warmup_steps", "clip_norm", "stage_growth", "seed"):
        if not getattr(recipe, name) >= 0:
            raise click.UsageError(f"{name}={getattr(recipe, name)} must not be negative")
    if recipe.seed >= 2**64:  # torch.manual_seed takes no more
        raise click.UsageError(f"seed={recipe.seed} must be below 2**64")
    if recipe.stage_growth > 1:
        raise click.UsageError(f"stage_growth={recipe.stage_growth} must be a fraction of the training, 0 to 1")
    if not all(0 <= beta < 1 for beta in recipe.betas):
        raise click.UsageError(f"betas={_listed(recipe.betas)} must be at least 0 and below 1")
    if not all(0 <= milestone <= 1 for milestone in recipe.milestones):
        raise click.UsageError(
            f"milestones={_listed(recipe.milestones)} must be fractions of the training, each 0 to 1"
        )
    for name, known in (("crop", ("click", "label")), ("target", ("all", "each"))):
        if getattr(recipe, name) not in known:
            raise click.UsageError(f"{name}={getattr(recipe, name)} is none of {', '.join(known)}")
    if recipe.precision not in ("32-true", "bf16-mixed", "16-mixed"):
        raise click.UsageError(f"precision={recipe.precision} is none of 32-true, bf16-mixed, 16-mixed")


def _check_network(config: Sam3DConfig, refinement: str) -> None:
    """Raise click.UsageError for a network that can be built and can't be trained, or not as its config says."""
    if config.channels % (2 * config.decoder_heads):
        raise click.UsageError(
            f"decoder_heads={config.decoder_heads}: twice as many must divide the {config.channels} channels; give a "
            f"divisor of {config.channels // 2}"
        )
    if beyond := [block for block in config.global_blocks if block >= config.depth]:
        raise click.UsageError(
            f"global_blocks={_listed(config.global_blocks)} names {_listed(beyond)}, the {config.depth} blocks of the "
            f"encoder are 0 to {config.depth - 1}; give global_blocks and depth together"
        )
    if refinement == "recurrent" and config.adapter is None:
        raise click.UsageError("refinement=recurrent feeds back what the adapter gives, and adapter=none has none")


def _listed(values: Sequence[float]) -> str:
    return ",".join(map(str, values))


def _names(record: type) -> list[str]:
    return [f.name for f in fields(record)]


def _parse(settings: Sequence[str], method: Method) -> dict[str, Any]:
    """Return name to typed value of `name=value` texts."""
    hints: Mapping[str, Any] = {
        **typing.get_type_hints(Recipe),
        **typing.get_type_hints(Sam3DConfig),
        "refinement": str,
    }
    values: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise click.UsageError(f"--set {text} has no value; write --set name=value")
        if name not in hints:
            raise click.UsageError(
                f"--set {name}: no such setting for {method.name}; known are {', '.join(sorted(hints))}"
            )
        try:
            values[name] = _typed(value.strip(), hints[name])
        except ValueError:
            raise click.UsageError(f"--set {text}: '{value}' is not {_describe(hints[name])}") from None
    return values


def _typed(text: str, wanted: Any) -> Any:
    """Return `text` as the type `wanted`; ValueError where it is none. One number fills a tuple of fixed length."""
    kind = typing.get_origin(wanted)
    if kind in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        return _typed(text, next(a for a in typing.get_args(wanted) if a is not type(None)))
    if kind is tuple:
        inner = typing.get_args(wanted)
        parts = [part for part in text.strip("()").split(",") if part.strip()]
        if inner[-1] is Ellipsis:
            return tuple(_typed(part.strip(), inner[0]) for part in parts)
        if len(parts) == 1:
            parts = parts * len(inner)
        return tuple(_typed(part.strip(), one) for part, one in zip(parts, inner, strict=True))
    if wanted is bool:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError
        return text.lower() in ("true", "yes", "1")
    if wanted is float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError
        return number
    convert: Callable[[str], Any] = wanted
    return convert(text)


def _describe(wanted: Any) -> str:
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word"}
    kind = typing.get_origin(wanted)
    if kind is tuple:
        inner = typing.get_args(wanted)
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"{count}values with commas between, each {names[inner[0]]}"
    if kind is not None:
        return f"{_describe(next(a for a in typing.get_args(wanted) if a is not type(None)))} or none"
    return names[wanted]
