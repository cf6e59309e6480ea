"""Volumes cut into slices: folders of co-registered sequences, and FreeSurfer's images with their labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from samkit.errors import GeometryError, InputRefused
from samkit.geometry import MAX_SHIFT, Index, by, corner_shift
from samkit.imageio import freesurfer
from samkit.imageio.reading import SCAN_SUFFIXES, list_scans, read_geometry, read_label, read_scan, stem_of
from samkit.intensities import PERCENTILES, scale_intensities
from samkit.planes import PlaneView
from samkit.sequences import LABEL, choose, sort_files
from samkit.training.click_cases import find_cases
from samkit.training.slice_cases import FoundCases, LoadedCase, SliceCase, nothing_usable

FREESURFER = freesurfer.READER.suffixes
VOLUMES = tuple(end for end in SCAN_SUFFIXES if end not in FREESURFER)
"""What the layout `volumes` is made of; FreeSurfer's files are of the other one, whose label values mean more."""

STRUCTURES = {"thalamus": (10, 49), "caudate": (11, 50), "putamen": (12, 51), "pallidum": (13, 52),
              "hippocampus": (17, 53), "amygdala": (18, 54)}  # fmt: skip
"""Values in FreeSurfer's colour table of the structures that LoRA-SAM segments, left and right."""
STRUCTURE_NAMES = tuple(f"{name}_{side}" for side in ("left", "right") for name in STRUCTURES)
"""What the values 1 to 12 of our labels stand for: the left six, then the right six."""
STRUCTURE_VALUES = tuple(pair[side] for side in (0, 1) for pair in STRUCTURES.values())

# The first that is there: of a subject's folder the most processed image, and the label without the cortex's parts.
_FREESURFER_IMAGES = ("norm", "brain", "nu", "T1", "orig")
_FREESURFER_LABELS = ("aseg", "aparc+aseg", "aparc.DKTatlas+aseg", "aparc.a2009s+aseg", "seg", "label", "labels")


def find_volumes(
    folder: Path, sequences: Sequence[str], patterns: Mapping[str, str] | None = None, plane: str = "axial"
) -> FoundCases:
    """Return one case for each folder with scans: `sequences` in their order, and the label.

    Without `sequences` every case has one image, in any layout of `cases.find_cases`. Two files that claim one
    sequence are refused; a case that lacks one, or whose files are not co-registered, is skipped.
    """
    if not sequences:
        single = [(case.name, (case.image,), case.label) for case in find_cases(folder)]
        return _found("volumes", single, [], read_labelled_volume, plane)
    ready: list[tuple[str, tuple[Path, ...], Path]] = []
    skipped: list[str] = []
    for name, files in _case_folders(folder, VOLUMES):
        found = sort_files(files, patterns)
        try:
            *images, label = choose(found, (*sequences, LABEL))
        except InputRefused as error:
            skipped.append(f"{name} skipped: {error.reason}; add the file, or a pattern that names it")
            continue
        ready.append((name, tuple(images), label))
    return _found("volumes", ready, skipped, read_labelled_volume, plane)


def find_freesurfer(folder: Path, plane: str = "coronal") -> FoundCases:
    """Return one case for each folder with an .mgz image and label; labels become the twelve of STRUCTURE_NAMES."""
    ready: list[tuple[str, tuple[Path, ...], Path]] = []
    skipped: list[str] = []
    for name, files in _case_folders(folder, FREESURFER):
        by_stem = {stem_of(path): path for path in files}
        image = next((by_stem[stem] for stem in _FREESURFER_IMAGES if stem in by_stem), None)
        label = next((by_stem[stem] for stem in _FREESURFER_LABELS if stem in by_stem), None)
        if image is None or label is None:
            lacking, choices = ("image", _FREESURFER_IMAGES) if image is None else ("label", _FREESURFER_LABELS)
            skipped.append(
                f"{name} skipped: no {lacking} among {', '.join(sorted(by_stem))}; "
                f"name it {' or '.join(choices[:3])}.mgz"
            )
            continue
        ready.append((name, (image,), label))
    return _found("freesurfer", ready, skipped, read_freesurfer, plane, STRUCTURE_NAMES)


def read_labelled_volume(case: SliceCase) -> LoadedCase:
    """Return the slices of a case; label values are the file's own, 0 to 255."""
    labels = read_label(case.labels[0], one_slice=True).array
    if labels.max() > 255:
        raise InputRefused(
            "label-values", f"the label of {case.name} holds values up to {labels.max()}, 255 is the largest",
            "renumber its structures",
        )  # fmt: skip
    return _load(case, labels.astype(np.uint8))


def read_freesurfer(case: SliceCase) -> LoadedCase:
    """Return the slices of a case with FreeSurfer's values mapped to 1..12, anything else to 0."""
    values = read_label(case.labels[0], one_slice=True).array
    to_ours = np.zeros(max(int(values.max()), *STRUCTURE_VALUES) + 1, np.uint8)
    to_ours[list(STRUCTURE_VALUES)] = range(1, len(STRUCTURE_VALUES) + 1)
    labels = to_ours[values]
    if not labels.any():
        raise InputRefused(
            "no-structure", f"{case.labels[0].name} of {case.name} holds none of FreeSurfer's {len(STRUCTURE_VALUES)} "
            "subcortical values", "give an aseg.mgz",
        )  # fmt: skip
    return _load(case, labels)


_NO_WINDOW = (
    f"values are below zero, as in a CT, and the {PERCENTILES[0]} and {PERCENTILES[1]} percentile of each volume "
    "stand in for a window"
)


def _load(case: SliceCase, labels: np.ndarray) -> LoadedCase:
    """Return the slices of `labels` (I, J, K) and of the case's images, each scaled over its whole volume."""
    chosen = list(case.slices)
    channels = []
    remarks: dict[str, None] = {}
    knows_sides = False  # one of several in one grid is enough
    view = None
    for path in case.images:
        scan = read_scan(path, one_slice=True)
        volume = scan.volume
        knows_sides |= scan.doubt is None
        remarks |= dict.fromkeys(scan.warnings)
        i, j, k = volume.array.shape
        view = view or PlaneView.of((i, j, k), volume.affine, case.plane)
        scaled, limits = scale_intensities(volume.array, path.name)
        channels.append(view.slices(scaled)[chosen])
        if limits.lowest < 0:
            remarks[_NO_WINDOW] = None
    if view is None:
        raise InputRefused("no-image", f"{case.name} has no image", "give it at least one")
    labels = np.ascontiguousarray(view.slices(labels)[chosen])
    return LoadedCase(
        np.stack(channels, axis=-1), labels, view.pixel_mm, remarks=tuple(remarks), knows_sides=knows_sides
    )


def _found(
    layout: str,
    ready: Sequence[tuple[str, tuple[Path, ...], Path]],
    skipped: list[str],
    reader: Callable[[SliceCase], LoadedCase],
    plane: str,
    names: tuple[str, ...] = (),
) -> FoundCases:
    """Return the cases of (name, images, label) whose headers agree; InputRefused where there is none."""
    cases = []
    for name, images, label in ready:
        try:
            view = PlaneView.chosen(*_one_space((*images, label)), None, plane)
        except (InputRefused, GeometryError) as error:
            skipped.append(f"{name} skipped: {error}")
            continue
        group = name.rpartition("/")[0]
        cases.append(SliceCase(name, group, images, (label,), reader, tuple(range(view.count)), plane=view.plane))
    if not cases:
        raise nothing_usable(skipped)
    return FoundCases(layout, tuple(cases), tuple(skipped), names)


def _one_space(paths: Sequence[Path]) -> tuple[Index, np.ndarray]:
    """Return shape and affine that all files share, by their headers; InputRefused names the one that differs."""
    first = paths[0]
    shape, affine = read_geometry(first, one_slice=True)
    for path in paths[1:]:
        other_shape, other = read_geometry(path, one_slice=True)
        if other_shape != shape:
            raise InputRefused(
                "not-co-registered",
                f"{path.name} is {by(other_shape)} and {first.name} {by(shape)}, so they are not co-registered",
                f"resample it onto {first.name}",
            )
        shift = corner_shift(shape, affine, other)
        if not shift <= MAX_SHIFT:
            raise InputRefused(
                "not-co-registered",
                f"{path.name} lies {shift:.3g} voxels off {first.name} by their affines, so they are not co-registered",
                f"resample it onto {first.name}",
            )
    return shape, affine


def _case_folders(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[str, list[Path]]]:
    """Return name and volumes of every folder below `folder`, or itself, that holds some; sorted by name."""
    folders: dict[Path, list[Path]] = {}
    for path in list_scans(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.name.lower().endswith(suffixes):
            folders.setdefault(path.parent, []).append(path)
    if not folders:
        raise InputRefused(
            "no-data", f"{folder} holds no scan ({', '.join(suffixes)} were looked for)",
            "lay the data out as one folder per case",
        )  # fmt: skip
    return [(_name(own, folder), files) for own, files in folders.items()]


def _name(own: Path, folder: Path) -> str:
    """Return a case's name: its path below `folder`, without FreeSurfer's own mri/."""
    named = own.parent if own.name == "mri" and own != folder else own
    return named.relative_to(folder).as_posix() if named != folder else folder.resolve().name
