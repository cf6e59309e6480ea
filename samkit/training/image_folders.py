"""Folders of pictures and masks.

Masks lie in masks/ (or labels/) beside images/, at any depth, or beside the pictures themselves. A mask belongs to the
picture whose name its own begins with: `x_mask.png`, `x_mask_1.png` and, in masks/, `x.png` and `x_1.png` are united as
the one target `mask` of `x.png`. In masks/, what else follows the picture's name is the target's: `x_liver_000.png`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from samkit.errors import InputRefused
from samkit.imageio.reading import PICTURE_SUFFIXES, is_picture, picture_shape, read_picture, read_picture_mask
from samkit.training.slice_cases import FoundCases, LoadedCase, SliceCase, nothing_usable

IMAGES = "images"
MASK_FOLDERS = ("masks", "labels")
MASK = "mask"
"""The target of masks that are not said to be anything else."""

_MASK_WORDS = r"(?:masks?|seg|segmentation|labels?|annotation|gt)"
_NUMBER = re.compile(r"(?:^|[ _-])\d+$")
_BESIDE = re.compile(rf"(?P<stem>.+?)[ _-]+{_MASK_WORDS}(?:[ _-]?\d+)?", re.IGNORECASE)
_ONLY_MASK = re.compile(rf"{_MASK_WORDS}?\d*", re.IGNORECASE)


def find_images(folder: Path) -> FoundCases:
    """Return one case for each picture with a mask, an empty one too; groups are the folders they lie in."""
    skipped: list[str] = []
    matched: list[tuple[Path, str, list[tuple[Path, str]]]] = []
    for own in sorted({path.parent for path in folder.rglob("*") if is_picture(path)}):
        beside = next((own.parent / name for name in MASK_FOLDERS if (own.parent / name).is_dir()), None)
        if own.name in MASK_FOLDERS and (own.parent / IMAGES).is_dir():
            continue  # read together with images/
        paths = sorted(path for path in own.iterdir() if is_picture(path))
        if own.name == IMAGES and beside is not None:
            masks = sorted(path for path in beside.iterdir() if is_picture(path))
            pictures, group = paths, own.parent
        else:
            masks = [path for path in paths if _BESIDE.fullmatch(path.stem)]
            pictures, group = [path for path in paths if path not in masks], own
        found = _match(pictures, masks, named=own.name == IMAGES and beside is not None, skipped=skipped)
        name = group.relative_to(folder).as_posix() if group != folder else ""
        matched += [(picture, name, targets) for picture, targets in found]
    names = _names(name for _, _, targets in matched for _, name in targets)
    cases = []
    for picture, group_name, targets in matched:
        name = f"{group_name}/{picture.stem}" if group_name else picture.stem
        try:
            _check_sizes(picture, [mask for mask, _ in targets])
        except InputRefused as error:
            skipped.append(f"{name} skipped: {error}")
            continue
        values = tuple(names.index(target) + 1 for _, target in targets)
        cases.append(
            SliceCase(name, group_name, (picture,), tuple(mask for mask, _ in targets), read_image, label_values=values)
        )
    if not cases:
        raise nothing_usable(skipped) if skipped else InputRefused(
            "no-data", f"{folder} holds no picture ({', '.join(PICTURE_SUFFIXES)} were looked for)",
            "lay the data out as images/ and masks/, or put x_mask.png beside x.png",
        )  # fmt: skip
    return FoundCases("images", tuple(cases), tuple(skipped), names)


def read_image(case: SliceCase) -> LoadedCase:
    """Return a picture and its masks as one label; masks of two targets may not overlap."""
    image = read_picture(case.images[0])
    labels = np.zeros(image.array.shape[:2], np.uint8)
    remarks = list(image.remarks)
    for path, value in zip(case.labels, case.label_values, strict=True):
        read = read_picture_mask(path)
        mask = read.array
        remarks += read.remarks
        if mask.shape != labels.shape:
            raise _sizes_differ(path, mask.shape, case.images[0], labels.shape)
        if ((labels[mask] != 0) & (labels[mask] != value)).any():
            raise InputRefused(
                "overlap", f"{path.name} overlaps another target of {case.images[0].name}",
                "give each pixel one target, or train on one target alone",
            )  # fmt: skip
        labels[mask] = value
    return LoadedCase(image.array[None], labels[None], (1.0, 1.0), remarks=tuple(dict.fromkeys(remarks)))


def _match(
    pictures: list[Path], masks: list[Path], *, named: bool, skipped: list[str]
) -> list[tuple[Path, list[tuple[Path, str]]]]:
    """Return each picture with its masks and what they show; what has no partner is added to `skipped`."""
    of: dict[Path, list[tuple[Path, str]]] = {picture: [] for picture in pictures}
    for mask in masks:
        stem = mask.stem.lower()
        owners = [
            picture for picture in pictures if stem == picture.stem.lower() or
            stem.startswith(tuple(picture.stem.lower() + separator for separator in " _-"))
        ]  # fmt: skip
        if not owners:
            skipped.append(f"{mask.name} skipped: {mask.parent.name} has this mask but there is no picture of its name")
            continue
        owner = max(owners, key=lambda picture: len(picture.stem))
        rest = mask.stem[len(owner.stem) :].strip(" _-")
        target = MASK if not named or _ONLY_MASK.fullmatch(rest) else _NUMBER.sub("", rest)
        of[owner].append((mask, MASK if _ONLY_MASK.fullmatch(target) else target))
    skipped += [
        f"{picture.name} skipped: it has no mask; an empty one says that there is nothing to see"
        for picture, targets in of.items() if not targets
    ]  # fmt: skip
    return [(picture, targets) for picture, targets in of.items() if targets]


def _names(found: Iterable[str]) -> tuple[str, ...]:
    """Return the targets in the order of their label values: `mask` first, then by name."""
    names = tuple(sorted(set(found), key=lambda name: (name != MASK, name)))
    if len(names) > 255:
        raise InputRefused("too-many-targets", f"the masks show {len(names)} targets, 255 fit", "train on fewer")
    return names


def _check_sizes(picture: Path, masks: list[Path]) -> None:
    shape = picture_shape(picture)
    for mask in masks:
        if (found := picture_shape(mask)) != shape:
            raise _sizes_differ(mask, found, picture, shape)


def _sizes_differ(mask: Path, found: tuple[int, ...], picture: Path, shape: tuple[int, ...]) -> InputRefused:
    return InputRefused(
        "shapes-differ",
        f"{mask.name} is {found[1]} x {found[0]} and {picture.name} {shape[1]} x {shape[0]} pixels",
        "give the mask the size of its picture",
    )
