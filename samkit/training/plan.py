"""What a training will do, decided before any work: network, recipe, refinement, target; `--set` changes any of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from samkit.checkpoints import CheckpointInfo
from samkit.errors import CheckpointError, OptionError
from samkit.methods import get_method
from samkit.methods.method import ClickRecipe, Method, Part, Recipe
from samkit.networks.config import NetworkConfig
from samkit.networks.sam2d_config import ARCHS, VitConfig
from samkit.training.recipe_checks import check_network, check_recipe
from samkit.training.settings import parse_settings, settable


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a training but its data, its folder and the machine."""

    method: str
    preset: str
    config: NetworkConfig
    """Of the whole network, or of the part that trains alone."""
    recipe: Recipe
    refinement: str
    label: int | None = None
    """The foreground value; None takes every value above zero."""
    part: str = ""
    """The part of the network that trains alone, such as `detector`; empty for the whole one."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "config": self.config.to_dict(), "recipe": asdict(self.recipe)}


def recipes_of(method: Method, part: str = "") -> Mapping[str, Recipe]:
    """Return the presets of a method, or of the part of it that trains alone."""
    return part_of(method, part).recipes if part else method.recipes


def part_of(method: Method, name: str) -> Part:
    """Return the part called `name`; OptionError where the method has none of that name."""
    for part in method.parts:
        if part.name == name:
            return part
    known = ", ".join(part.name for part in method.parts) or "none"
    raise OptionError(f"{method.name} has no part '{name}' that trains alone; it has: {known}")


def plan_training(
    method: Method,
    preset: str,
    settings: Sequence[str] = (),
    *,
    label: int | None = None,
    part: str = "",
    arch: str | None = None,
    start: CheckpointInfo | None = None,
) -> TrainingPlan:
    """Return the plan of `preset` with `settings` (`name=value`) applied; OptionError where one is wrong.

    `arch` is one of SAM's image encoders. `start` is what the checkpoint of `--init` says: the network has its sizes,
    with what the method adds to its base as the preset has it, and trains for the refinement that the same method's
    weights know.
    """
    recipe = recipes_of(method, part)[preset]
    known = {**settable(type(recipe)), **settable(type(_sized(method, recipe.size, part))), "refinement": str}
    values = parse_settings(settings, known, method.name)
    size = str(values.get("size", recipe.size))
    if size not in method.sizes:
        raise OptionError(f"size={size} is none of {', '.join(method.sizes)}")
    config = _sized(method, size, part)
    if arch is not None:
        config = _with_arch(config, arch, size)
    if start is not None:
        config = _started(config, start, method, part)
        if arch is not None and any(getattr(config, k) != v for k, v in ARCHS[arch].items()):
            raise OptionError(
                f"{{init}} is another network than {{arch}} {arch}; leave {{arch}} out, the file decides",
                options=("init", "arch"),
            )
        recipe = replace(recipe, size=start.size)
    if isinstance(recipe, ClickRecipe) and (start is not None or "spacing" in values):
        recipe = replace(recipe, fit_spacing=False)  # the weights were trained at the checkpoint's spacing
    own = start.refinement if start is not None and start.method == method.name else method.refinements[0]
    refinement = str(values.pop("refinement", own))
    if refinement not in method.refinements:
        raise OptionError(f"refinement={refinement} is none of {', '.join(method.refinements)} of {method.name}")
    recipe = replace(recipe, **{k: v for k, v in values.items() if k in _names(recipe)})
    try:
        config = replace(config, **{k: v for k, v in values.items() if k in _names(config)})
    except CheckpointError as error:
        raise OptionError(f"{{set}}: {error.text}", options=("set", *error.options)) from error
    check_recipe(recipe)
    check_network(config, refinement)
    return TrainingPlan(method.name, preset, config, recipe, refinement, label, part)


def _sized(method: Method, size: str, part: str) -> NetworkConfig:
    """Return the network of a size, or its part."""
    config = method.sizes[size]
    if not part:
        return config
    own: NetworkConfig = getattr(config, part_of(method, part).name)
    return own


def _with_arch(config: NetworkConfig, arch: str, size: str) -> NetworkConfig:
    if not isinstance(config, VitConfig):
        raise OptionError(
            "{arch} chooses SAM's image encoder, which this network does not have; leave it out", options=("arch",)
        )
    if size != "full":
        raise OptionError(
            f"{{arch}} is of full-size networks and this preset's is {size}; give {{preset}} paper",
            options=("arch", "preset"),
        )
    return replace(config, **ARCHS[arch])


def _started(config: NetworkConfig, start: CheckpointInfo, method: Method, part: str) -> NetworkConfig:
    """Return the network that continues `start`: the file's sizes, and of `config` what the method adds to its base."""
    given = start.config
    if method.base is None or part:
        return given
    added = _added(method, get_method(method.base))
    if start.method == method.name:
        return replace(given, **{f: getattr(config, f) for f in added if not getattr(given, f)})
    taken = {f: getattr(given, f) for f in _names(config) if f not in added and hasattr(given, f)}
    return replace(config, **taken)


def _added(method: Method, base: Method) -> set[str]:
    """Return the fields of a method's config that are not its base's to decide, such as LoRA's rank.

    Those are what the base does not know, what differs between the two at full size, and what varies with the size in
    the method alone.
    """
    added = set()
    for name in _names(method.sizes["full"]):
        own = {size: getattr(config, name) for size, config in method.sizes.items()}
        others = {size: getattr(config, name, None) for size, config in base.sizes.items()}
        if own["full"] != others["full"] or len(set(others.values())) == 1 < len(set(own.values())):
            added.add(name)
    return added


def _names(record: Any) -> list[str]:
    return [f.name for f in fields(record)]
