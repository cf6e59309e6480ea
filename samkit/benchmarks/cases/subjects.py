"""What accuracy is measured on: whole scans or pictures, as a session takes them, with the truth beside them.

`read_subjects` reads a folder of the user's. Which files are scans, sequences, labels and structures is found as
training finds it, and every scan passes the gate that `sam-segment` has:

    methods               folders
    m-sam, sam-med3d      images/ and labels/, a folder per case, a dataset.json; of several sequences GREY is taken
    medsam-yolo,          a folder per case with all sequences, or pictures and masks with as many channels;
      brainseg-dmif         medsam-yolo also images/ and labels/*.txt, boxes for its detector alone
    lora-sam              FreeSurfer's .mgz, or NIfTI whose label values 1 to 12 are its structures in their order
    the other four        volumes as m-sam, or pictures with their masks

A label with several values is one target, all of them together, where the method has no structures; pictures whose
masks are named after what they show are one subject for each name. `phantom_subjects` needs no folder.

Subjects are called by their place in the sorted folder, because a file's name may be a patient's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from samkit.benchmarks.cases.phantom_scans import largest_object, phantom_scans, slice_axis
from samkit.errors import GeometryError, InputRefused
from samkit.geometry import Volume
from samkit.imageio.reading import read_scan
from samkit.methods import Method, SliceMethod
from samkit.phantoms import SEQUENCES
from samkit.planes import PlaneView
from samkit.training.click_cases import VolumeCase, find_cases, read_case
from samkit.training.slice_cases import FoundCases, SliceCase
from samkit.training.slice_readers import find_slice_cases
from samkit.training.volume_slices import find_volumes

GREY = "t2f"
"""The sequence that a method of one grey volume gets where a case has several: lesions show best in it."""
PHANTOM_SEED = 900_000
"""The first of the phantoms here; no training, export or demonstration has seen them."""

_SIDE, _STRUCTURES_SIDE = 96, 128
"""Voxels of 1 mm along each axis of a phantom, as the demonstration weights know them."""
_THICK = 4
"""Every so many slices of a phantom are kept for a method that goes through all of them: thick ones, as clinics have,
and fewer."""


@dataclass(frozen=True)
class Subject:
    """A scan with its sequences, or a picture, and what is true of it."""

    name: str
    """`case 3` is the third of its folder, `phantom 900000` the phantom of that seed."""
    volumes: dict[str, Volume]
    """By the method's sequences; the name is empty where it takes one grey volume. Empty for a picture."""
    picture: np.ndarray | None
    """(H, W, C) float32, 0..255; None for scans."""
    targets: dict[str, np.ndarray]
    """Bool, on the array of the volumes or the picture (H, W): by structure, each of which holds something, or under
    the empty name all that is to be found. No entry where there are boxes alone."""
    spacing_mm: tuple[float, ...]
    """Edge of a voxel along each axis of a target [mm]; 1 and 1 for a picture, whose pixels have no known size."""
    boxes: np.ndarray | None = None
    """(n, 5) float32: x0, y0, x1, y1 [pixels from the picture's corner] and class, what a detector has to find. None
    where masks say it."""


def read_subjects(
    folder: Path, method: Method, config: Any, most: int, *, label: int | None = None
) -> tuple[list[Subject], list[str]]:
    """Return what of `folder` the method can be measured on, and a sentence for all that was left out or assumed.

    At most `most` subjects are taken, spread evenly over the folder; one that can't be used gives its place to
    another. `label` is the value of a label that counts, else every value above 0. Sentences may hold names of files:
    they are for the terminal. Raises InputRefused where there is nothing to measure on. All subjects lie in memory at
    once; `each_subject` makes one at a time.
    """
    said: list[str] = []
    return list(each_subject(folder, method, config, most, said, label=label)), said


def each_subject(
    folder: Path, method: Method, config: Any, most: int, said: list[str], *, label: int | None = None
) -> Iterator[Subject]:
    """Give the subjects of `read_subjects` one by one, each read when it is asked for, and add sentences to `said`."""
    if isinstance(method, SliceMethod):
        candidates = _slice_candidates(folder, method, config, label, said)
    else:
        candidates = _volume_candidates(folder, label, said)
    picks = [int(n) for n in np.unique(np.linspace(0, len(candidates) - 1, min(most, len(candidates))).round())]
    taken = 0
    for number in (*picks, *(n for n in range(len(candidates)) if n not in picks)):
        if taken == most:
            break
        name, read = candidates[number]
        try:
            subject = read(name)
        except (InputRefused, GeometryError) as error:
            said.append(f"{name} left out: {error}")
            continue
        taken += 1
        yield subject
    if not taken:
        raise InputRefused(
            "no-subject", f"{method.name} can be measured on nothing in {folder.name}: {' | '.join(said[:5])}",
            "give a folder with scans or pictures that it takes, and with labels that hold something",
        )  # fmt: skip
    said.append(f"{taken} of {len(candidates)} subjects in the folder are measured")


def phantom_subjects(method: Method, config: Any, count: int, seed0: int = PHANTOM_SEED) -> list[Subject]:
    """Return `count` phantoms as the method takes them, of the seeds `seed0` and on; no patient, no file.

    What is to be found is the largest lesion where the method is prompted, all lesions where it looks for them by
    itself, and the structures where it has names for them. Methods that go through every slice get thick ones.
    """
    return [_phantom(method, config, number, seed0 + number) for number in range(count)]


# --- Folders ---

_Candidate: TypeAlias = tuple[str, Callable[[str], Subject]]
"""A subject's name, and what reads the subject of that name; that raises InputRefused and GeometryError."""


def _volume_candidates(folder: Path, label: int | None, said: list[str]) -> list[_Candidate]:
    try:
        cases = find_cases(folder)
    except InputRefused as refusal:
        found = _grey_volumes(folder, "axial", refusal, said)
        cases = [VolumeCase(case.name, case.images[0], case.labels[0]) for case in found.cases]
        said += found.skipped
    return [(f"case {number}", partial(_read_volume_case, case, label)) for number, case in enumerate(cases, start=1)]


def _read_volume_case(case: VolumeCase, label: int | None, name: str) -> Subject:
    volume, labels = read_case(case)
    target = labels.array > 0 if label is None else labels.array == label
    if not target.any():
        raise InputRefused("no-target", "its label holds nothing that counts", "leave it out, or name a value it holds")
    return Subject(name, {"": volume}, None, {"": target}, volume.spacing)


def _slice_candidates(
    folder: Path, method: SliceMethod, config: Any, label: int | None, said: list[str]
) -> list[_Candidate]:
    sequences = method.sequences(config)
    try:
        found = find_slice_cases(folder, sequences=sequences, plane=method.plane)
    except InputRefused as refusal:
        if sequences:
            raise
        found = _grey_volumes(folder, method.plane, refusal, said)
    said += found.skipped
    _check_layout(found, method, sequences)
    if found.layout in ("images", "boxes"):
        said.append("pixels of pictures have no known size: what is called mm here is pixels, NSD's tolerance, too")
    structures = method.structures(config)
    if structures and not found.names:
        said.append(f"label values 1 to {len(structures)} are taken for {structures[0]} to {structures[-1]}, in order")
    candidates: list[_Candidate] = []
    for number, case in enumerate(found.cases, start=1):
        read = partial(_read_slice_case, case, found.names, method, config)
        # Organs of one picture have nothing to do with each other, as parts of one organ in a label have
        if case.label_values and len(found.names) > 1 and not structures:
            values = sorted({value for value in case.label_values if label in (None, value)})
            candidates += [(f"case {number}, {found.names[value - 1]}", partial(read, value)) for value in values]
        else:
            candidates.append((f"case {number}", partial(read, label)))
    return candidates


def _grey_volumes(folder: Path, plane: str, refusal: InputRefused, said: list[str]) -> FoundCases:
    """Return GREY of each case's folder; raises `refusal`, of reading one volume from each, where that is no remedy."""
    if refusal.code != "unmatched":
        raise refusal
    try:
        found = find_volumes(folder, (GREY,), plane=plane)
    except InputRefused:
        raise refusal from None
    said.append(f"of the sequences in each case's folder {GREY} is taken")
    return found


def _check_layout(found: FoundCases, method: SliceMethod, sequences: Sequence[str]) -> None:
    """Raise InputRefused for pictures that the method has no channels for, and boxes that it has no detector for."""
    if found.layout == "boxes" and method.propose is None:
        raise InputRefused(
            "boxes-alone", f"the folder has boxes and no masks, and {method.name} has no detector",
            "measure medsam-yolo on it, or give masks",
        )  # fmt: skip
    if found.layout in ("images", "boxes") and len(sequences) not in (0, 1, 3):
        raise InputRefused(
            "channels", f"the folder has pictures, and {method.name} takes {len(sequences)} sequences",
            "give a folder of NIfTI files for each patient",
        )  # fmt: skip


def _read_slice_case(
    case: SliceCase, names: tuple[str, ...], method: SliceMethod, config: Any, label: int | None, name: str
) -> Subject:
    loaded = case.load()
    if not case.plane:
        (image,), (labels,) = loaded.images, loaded.labels
        if loaded.boxes is not None:
            return Subject(name, {}, image, {}, (1.0, 1.0), loaded.boxes[0])
        return Subject(name, {}, image, _targets(labels, names, method, config, label), (1.0, 1.0))
    # The session scales and cuts by itself, so it gets the scans as they are; of training's slices the labels are used
    sequences = method.sequences(config) or ("",)
    volumes = {own: read_scan(path).volume for own, path in zip(sequences, case.images, strict=True)}
    first = volumes[sequences[0]]
    i, j, k = first.array.shape
    labels = PlaneView.of((i, j, k), first.affine, case.plane).volume(loaded.labels)
    return Subject(name, volumes, None, _targets(labels, names, method, config, label), first.spacing)


def _targets(
    labels: np.ndarray, names: tuple[str, ...], method: SliceMethod, config: Any, label: int | None
) -> dict[str, np.ndarray]:
    """Return the targets of Subject; raises InputRefused where there is nothing to prompt."""
    structures = method.structures(config)
    if structures:
        values = {name: value for value, name in enumerate(names or structures, start=1) if name in structures}
        masks = {name: labels == value for name, value in values.items() if label in (None, value)}
        targets = {name: np.ascontiguousarray(mask) for name, mask in masks.items() if mask.any()}
    else:
        everything = {"": np.ascontiguousarray(labels > 0 if label is None else labels == label)}
        # A method that looks by itself can be wrong where there is nothing
        targets = everything if everything[""].any() or method.is_automatic else {}
    if not targets:
        raise InputRefused("no-target", "its label holds nothing that counts", "leave it out, or name a value it holds")
    return targets


# --- Phantoms ---


def _phantom(method: Method, config: Any, number: int, seed: int) -> Subject:
    of_slices = method if isinstance(method, SliceMethod) else None
    structures = of_slices.structures(config) if of_slices else ()
    side = _STRUCTURES_SIDE if structures else _SIDE
    # One sequence after the other where one is taken, as the demonstration weights learnt
    volumes, objects = phantom_scans(method, config, seed, (side,) * 3, SEQUENCES[number % len(SEQUENCES)])
    if of_slices and structures:
        targets = _targets(objects, (), of_slices, config, None)
    else:
        targets = {"": objects > 0 if of_slices and of_slices.is_automatic else largest_object(objects)}
    if of_slices and of_slices.is_automatic:
        across = slice_axis(of_slices, volumes)
        volumes = {own: _thick(volume, across) for own, volume in volumes.items()}
        targets = {own: _every(mask, across) for own, mask in targets.items()}
    return Subject(f"phantom {seed}", volumes, None, targets, next(iter(volumes.values())).spacing)


def _thick(volume: Volume, across: int) -> Volume:
    affine = volume.affine.copy()
    affine[:, across] *= _THICK
    return Volume(_every(volume.array, across), affine)


def _every(array: np.ndarray, across: int) -> np.ndarray:
    """Return every _THICK-th slice; the first stays where it is, and so does the affine's origin."""
    chosen = [slice(None)] * 3
    chosen[across] = slice(None, None, _THICK)
    return np.ascontiguousarray(array[tuple(chosen)])
