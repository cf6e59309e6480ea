"""Patches to train and validate on, drawn so that a resumed run sees what an uninterrupted one would.

A training sample has a key, `epoch * samples + position`; all that is random about it (case, target, crop, flips,
clicks) comes from generators seeded by the recipe's seed and that key. Preprocessing is inference's own code:
`geometry.Grid`, `geometry.crop` and the method's `preprocess`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.data import CacheDataset
from monai.transforms import Flip, Transform
from torch.utils.data import Dataset

from samkit.clicks import first_click
from samkit.errors import InputRefused
from samkit.geometry import Grid, crop, crop_origin
from samkit.methods.method import ClickRecipe, VolumeMethod
from samkit.networks.sam3d_config import Sam3DConfig
from samkit.prompts import FOREGROUND, Point
from samkit.training.click_cases import CheckedCase, read_case

CACHE_BYTES = 6_000_000_000
"""Memory for cases kept on the network's grid; the rest is read again each time."""

_ATTEMPTS = 16
"""Draws of one sample before a case whose crops have no contrast is refused."""

_DRAW, _CLICK, _ORDER, _VALIDATION = range(4)  # one stream of random numbers for each purpose


@dataclass(frozen=True)
class GridCase:
    """A case on the network's grid."""

    name: str
    image: np.ndarray
    """(I, J, K) float32 raw intensities."""
    targets: tuple[np.ndarray, ...]
    """(I, J, K) boolean masks; none is empty."""


@dataclass(frozen=True)
class Sample:
    """One patch and its target, and where the first click falls (a voxel of the patch)."""

    image: np.ndarray
    target: np.ndarray
    first: Point
    key: int
    name: str


def load_on_grid(checked: CheckedCase, config: Sam3DConfig, target: str) -> GridCase:
    """Return a case resampled to the config's spacing; a target too small to leave a voxel there is dropped."""
    scan, labels = read_case(checked.case)
    image = scan.volume
    i, j, k = image.array.shape
    grid = Grid.over((i, j, k), image.affine, config.spacing)
    groups = [(v,) for v in checked.values] if target == "each" else [checked.values]
    # Linear and >= 0.5 keeps the border where nearest would shift it by up to half a voxel.
    masks = [grid.from_file(np.isin(labels.array, group).astype(np.float32)) >= 0.5 for group in groups]
    kept = tuple(mask for mask in masks if mask.any())
    if not kept:
        raise InputRefused(
            "target-too-small", f"case {checked.case.name}: no target is left at a spacing of {config.spacing} mm",
            "train at a finer spacing ({set} spacing=...) or remove the case",
            options=("set",),
        )  # fmt: skip
    return GridCase(checked.case.name, grid.from_file(image.array), kept)


class _Load(Transform):
    """`load_on_grid` as a MONAI transform: of plain functions MONAI caches nothing."""

    def __init__(self, config: Sam3DConfig, target: str) -> None:
        self.config, self.target = config, target

    def __call__(self, case: CheckedCase) -> GridCase:
        return load_on_grid(case, self.config, self.target)


def cache_cases(cases: Sequence[CheckedCase], config: Sam3DConfig, target: str) -> Any:
    """Return a sequence of GridCase, loaded once and kept as far as CACHE_BYTES reach."""
    first = load_on_grid(cases[0], config, target)
    size = first.image.nbytes + sum(mask.nbytes for mask in first.targets)
    return CacheDataset(
        list(cases),
        transform=_Load(config, target),
        cache_num=max(1, CACHE_BYTES // max(1, size)),
        num_workers=2,
        progress=False,
        copy_cache=False,
    )


class TrainingSamples(Dataset[Sample]):
    """Random patches; indexed by key, not by position."""

    def __init__(self, cases: Any, method: VolumeMethod, config: Sam3DConfig, recipe: ClickRecipe) -> None:
        self.cases, self.method, self.config, self.recipe = cases, method, config, recipe
        self.samples = recipe.samples_per_epoch or len(cases)

    def __getitem__(self, key: int) -> Sample:
        epoch, position = divmod(key, self.samples)
        lap, slot = divmod(position, len(self.cases))
        order = np.random.default_rng((self.recipe.seed, _ORDER, epoch, lap)).permutation(len(self.cases))
        case: GridCase = self.cases[int(order[slot])]
        rng = np.random.default_rng((self.recipe.seed, _DRAW, key))
        for attempt in range(_ATTEMPTS):
            target = case.targets[int(rng.integers(len(case.targets)))]
            origin, first = self._place(target, rng)
            try:
                image = self.method.preprocess(crop(case.image, origin, self.config.patch), self.config)
                break
            except InputRefused as error:  # a crop without contrast: the next draw may lie elsewhere
                if attempt == _ATTEMPTS - 1:
                    raise error.about(f"case {case.name}") from error
        mask = crop(target, origin, self.config.patch)
        if first is None:
            first = first_click(mask, rng) or Point((0.0, 0.0, 0.0), FOREGROUND)
        axes = [axis for axis in range(3) if rng.random() < 0.5]
        flip = Flip(spatial_axis=axes)
        side = self.config.patch - 1
        i, j, k = (side - v if axis in axes else v for axis, v in enumerate(first.index))
        return Sample(
            np.asarray(flip(image[None]))[0] if axes else image,
            np.asarray(flip(mask[None]))[0] if axes else mask,
            Point((i, j, k), FOREGROUND),
            key,
            case.name,
        )

    def _place(self, target: np.ndarray, rng: np.random.Generator) -> tuple[tuple[int, int, int], Point | None]:
        """Return where the crop starts, and the first click where it is at the crop's centre already."""
        patch = self.config.patch
        if self.recipe.crop == "label":
            box = [np.flatnonzero(target.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
            return crop_origin(np.array([(side[0] + side[-1]) / 2 for side in box]), patch), None
        clicked = first_click(target, rng)
        index = np.asarray(clicked.index if clicked else (0, 0, 0))
        # Half of the samples see the click that placed the crop, as deployment does; the others one anywhere in it,
        # as a later or moved crop does.
        centre = Point((float(patch // 2),) * 3, FOREGROUND) if rng.random() < 0.5 else None
        return crop_origin(index, patch), centre

    def __len__(self) -> int:
        return self.samples

    def click_rng(self, key: int) -> np.random.Generator:
        """Return the generator of a sample's later clicks."""
        return np.random.default_rng((self.recipe.seed, _CLICK, key))


def validation_samples(cases: Any, method: VolumeMethod, config: Sam3DConfig, seed: int) -> list[Sample]:
    """Return one fixed sample per held-back target: the crop centred on its first click, as deployment crops."""
    samples: list[Sample] = []
    for number in range(len(cases)):
        case: GridCase = cases[number]
        for which, target in enumerate(case.targets):
            key = len(samples)
            clicked = first_click(target, np.random.default_rng((seed, _VALIDATION, number, which)))
            origin = crop_origin(np.asarray(clicked.index if clicked else (0, 0, 0)), config.patch)
            try:
                image = method.preprocess(crop(case.image, origin, config.patch), config)
            except InputRefused as error:
                raise error.about(f"held-back case {case.name}") from error
            centre = Point((float(config.patch // 2),) * 3, FOREGROUND)
            samples.append(Sample(image, crop(target, origin, config.patch), centre, key, case.name))
    return samples


def validation_rng(seed: int, key: int) -> np.random.Generator:
    """Return the generator of a validation sample's later clicks: the same in every epoch."""
    return np.random.default_rng((seed, _VALIDATION, key))
