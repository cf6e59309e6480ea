"""Finding and checking the cases of a folder before any training starts.

Three layouts are read: `images/` beside `labels/` (or `masks/`), matched by file stem; one folder per case, with one
image and one file whose name holds label, mask, seg or lesion; and a decathlon-style `dataset.json`. What can't be used
is refused with every offender named at once; only a case without foreground is skipped, and said so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samkit.errors import InputRefused
from samkit.geometry import MAX_SHIFT, Grid, Triple, Volume, corner_shift
from samkit.imageio.reading import SCAN_SUFFIXES, list_scans, read_label, read_scan, stem_of
from samkit.imageio.scan import Scan, count_kinds
from samkit.json_files import read_json

_LABEL_WORDS = ("label", "mask", "seg", "lesion")
_LAYOUTS = (
    "lay the data out as images/ and labels/ with equal file names, as one folder per case, or with a decathlon-style "
    "dataset.json"
)


@dataclass(frozen=True)
class VolumeCase:
    """One scan and its label on disk."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class CheckedCase:
    """A case that can be trained on, and what its label holds."""

    case: VolumeCase
    values: tuple[int, ...]
    """Label values that are foreground here."""
    extent_mm: Triple
    """Longest box edges of its targets along the patient's x, y, z [mm]."""
    finest_mm: float
    """Smallest voxel edge of the image [mm]."""
    remarks: tuple[str, ...] = ()
    """What is unusual about the image."""


@dataclass(frozen=True)
class CheckedCases:
    """All cases of a folder: those to use, and a sentence for each that is skipped."""

    cases: tuple[CheckedCase, ...]
    skipped: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """What is unusual about images, and of how many."""


def find_cases(folder: Path) -> list[VolumeCase]:
    """Return the cases of `folder`, sorted by name; InputRefused where there are none or a partner is missing."""
    if not folder.is_dir():
        raise InputRefused("no-data", f"there is no folder {folder}", _LAYOUTS)
    if (folder / "dataset.json").is_file():
        cases = _from_dataset_json(folder)
    elif (folder / "images").is_dir():
        cases = _from_images_and_labels(folder)
    else:
        cases = _from_case_folders(folder)
    if not cases:
        raise InputRefused("no-data", f"{folder} holds no case ({', '.join(SCAN_SUFFIXES)} were looked for)", _LAYOUTS)
    return sorted(cases, key=lambda case: case.name)


def check_cases(
    cases: list[VolumeCase], label: int | None, target: str, report: Callable[[VolumeCase], object] | None = None
) -> CheckedCases:
    """Return what the files of `cases` hold; read once each.

    `label` is the foreground value, None takes every value above zero; `target` is Recipe.target. Raises InputRefused
    for files that can't be used, naming all of them, and where no case has foreground.
    """
    good, skipped, problems = [], [], []
    for case in cases:
        if report is not None:
            report(case)
        try:
            checked = _check_case(case, label, target)
        except InputRefused as error:
            problems.append(f"case {case.name}: {error}")
            continue
        if isinstance(checked, str):
            skipped.append(checked)
        else:
            good.append(checked)
    if problems:
        raise InputRefused(
            "bad-cases", f"{len(problems)} of {len(cases)} cases can't be used: {' | '.join(problems)}",
            "repair or remove these files",
        )  # fmt: skip
    if not good:
        wanted = "above 0" if label is None else f"equal to {label}"
        raise InputRefused(
            "no-foreground", f"none of the {len(cases)} labels holds a voxel {wanted}",
            "check that the labels are the right files, or name a value that they hold with {label}",
            options=("label",),
        )  # fmt: skip
    return CheckedCases(tuple(good), tuple(skipped), count_kinds([one.remarks for one in good], "cases"))


def read_case(case: VolumeCase) -> tuple[Scan, Volume]:
    """Return scan and label of a case, in one place; raises InputRefused where the gate or the other file says no."""
    scan, labels = read_scan(case.image), read_label(case.label)
    image = scan.volume
    if image.array.shape != labels.array.shape:
        raise InputRefused(
            "shapes-differ",
            f"the image is {image.array.shape}, its label {labels.array.shape}",
            "resample the label onto the image",
        )
    i, j, k = labels.array.shape
    shift = corner_shift((i, j, k), image.affine, labels.affine)
    if not shift <= MAX_SHIFT:
        raise InputRefused(
            "affines-differ",
            f"image and label have one shape, but by their affines the label lies {shift:.3g} voxels off the image",
            "resample the label onto the image, or restore the affine that it was drawn with",
        )
    return scan, labels


def _check_case(case: VolumeCase, label: int | None, target: str) -> CheckedCase | str:
    """Return the checked case, or why it is skipped."""
    scan, labels = read_case(case)
    found = [int(value) for value in np.unique(labels.array)]
    values = tuple(v for v in found if (v > 0 if label is None else v == label))
    if not values:
        held = ", ".join(str(v) for v in found[:8])
        return f"{case.name} skipped: its label holds only {held}, no foreground"
    groups = [(v,) for v in values] if target == "each" else [values]
    i, j, k = labels.array.shape
    grid = Grid.over((i, j, k), labels.affine, (1.0, 1.0, 1.0))  # a grid of 1 mm measures along the patient's axes
    extents = []
    for group in groups:
        index = np.argwhere(np.isin(labels.array, group))
        corners = grid.points_from_file(np.stack([index.min(axis=0) - 0.5, index.max(axis=0) + 0.5]))
        extents.append(np.abs(corners[1] - corners[0]))
    x, y, z = (float(edge) for edge in np.max(extents, axis=0))
    return CheckedCase(case, values, (x, y, z), min(scan.volume.spacing), scan.warnings)


def _volumes(folder: Path) -> dict[str, Path]:
    return {stem_of(path): path for path in list_scans(folder.iterdir())}


def _from_images_and_labels(folder: Path) -> list[VolumeCase]:
    beside = next((folder / name for name in ("labels", "masks") if (folder / name).is_dir()), None)
    if beside is None:
        raise InputRefused("no-labels", f"{folder} has images/ but neither labels/ nor masks/", _LAYOUTS)
    images, labels = _volumes(folder / "images"), _volumes(beside)
    if lonely := sorted(set(images) ^ set(labels)):
        listed = ", ".join(f"{stem} (no {'label' if stem in images else 'image'})" for stem in lonely[:20])
        raise InputRefused(
            "unmatched", f"{len(lonely)} of {len(set(images) | set(labels))} stems have no partner: {listed}",
            f"give images/ and {beside.name}/ the same file names, or remove these files",
        )  # fmt: skip
    return [VolumeCase(stem, images[stem], labels[stem]) for stem in images]


def _from_case_folders(folder: Path) -> list[VolumeCase]:
    cases, wrong = [], []
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for own in folders or [folder]:  # a folder without folders may be a case
        volumes = _volumes(own)
        labels = [p for stem, p in volumes.items() if any(word in stem.lower() for word in _LABEL_WORDS)]
        images = [p for p in volumes.values() if p not in labels]
        if len(images) == 1 and len(labels) == 1:
            cases.append(VolumeCase(own.name, images[0], labels[0]))
        elif volumes:
            wrong.append(f"{own.name} ({len(images)} images, {len(labels)} labels)")
    if wrong:
        raise InputRefused(
            "unmatched", f"{len(wrong)} case folders do not hold one image and one label: {', '.join(wrong[:20])}",
            f"keep one image and one file named with {', '.join(_LABEL_WORDS)} in each",
        )  # fmt: skip
    return cases


def _from_dataset_json(folder: Path) -> list[VolumeCase]:
    form = 'it needs {"training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}, ...]}'
    try:
        data = read_json(folder / "dataset.json")
        entries = [(str(entry["image"]), str(entry["label"])) for entry in data["training"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputRefused("bad-dataset-json", f"dataset.json can't be used ({error!r})", form) from error
    root = folder.resolve()
    cases = []
    for image, label in entries:
        paths = [(folder / name).resolve() for name in (image, label)]
        for path in paths:
            if not path.is_relative_to(root) or not path.is_file():
                raise InputRefused(
                    "bad-dataset-json", f"dataset.json names '{path.name}', which is no file inside {folder.name}", form
                )
        cases.append(VolumeCase(stem_of(paths[0]), paths[0], paths[1]))
    return cases
