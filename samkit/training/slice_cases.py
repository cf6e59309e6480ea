"""Cases of the 2D methods: what a reader finds in a folder, what loading gives, and which of them are held back.

A case is a volume, of which every slice can be drawn, or one picture. Finding cases reads names and headers alone;
`check_slice_cases` reads everything once, so that a broken file is told before the training and not during it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samkit.errors import GeometryError, InputRefused
from samkit.imageio.scan import count_kinds

HELD_BACK = 5
"""One case, or slice, in this many is held back."""
GAP = 2
"""Slices on either side of a block that is held back which nobody trains on: neighbours are nearly the same image."""

_MAX_BLOCKS = 3
_MIN_BLOCK = 4
"""Slices of a held-back block before there are two of them."""
_SPLIT_SEED = 2023
_OWN_SPLIT = {
    "train": "train",
    "training": "train",
    "valid": "held",
    "val": "held",
    "validation": "held",
    "test": "test",
}


@dataclass(frozen=True)
class LoadedCase:
    """N slices of one case; N is 1 for a picture."""

    images: np.ndarray
    """(N, H, W, C) float32, 0..255: C sequences in the order asked for, 1 for grey, 3 for colour."""
    labels: np.ndarray
    """(N, H, W) uint8, 0 for the background; all 0 where the source has boxes in place of masks."""
    pixel_mm: tuple[float, float]
    """Distance of rows and of columns [mm]; 1 where the source does not say."""
    boxes: tuple[np.ndarray, ...] | None = None
    """Per slice (n, 5) float32: x0, y0, x1, y1 [pixels from the image's corner, 0..W and 0..H] and the class."""
    remarks: tuple[str, ...] = ()
    """What was done to its files that a user may not expect, and what is unusual about them."""
    knows_sides: bool = True
    """Whether it is known which way is left; pictures are taken as they are."""


@dataclass(frozen=True)
class SliceCase:
    """One volume or picture on disk, with what says where its targets are."""

    name: str
    group: str
    """The part of the folder it lies in: `benign`, `train`; empty where there is one part."""
    images: tuple[Path, ...]
    """One file per channel."""
    labels: tuple[Path, ...]
    """Files whose targets are united."""
    reader: Callable[[SliceCase], LoadedCase]
    slices: tuple[int, ...] = (0,)
    """Which slices loading gives, counted as `planes.PlaneView` does."""
    label_values: tuple[int, ...] = ()
    """What each file of `labels` becomes; empty where the files' own values stay."""
    plane: str = ""
    """The plane of the slices; empty for pictures."""

    def load(self) -> LoadedCase:
        """Read the files; raises InputRefused and GeometryError."""
        return self.reader(self)


@dataclass(frozen=True)
class FoundCases:
    """The cases of a folder: those to use, and a sentence for each that is skipped."""

    layout: str
    """volumes, freesurfer, images or boxes."""
    cases: tuple[SliceCase, ...]
    skipped: tuple[str, ...]
    names: tuple[str, ...] = ()
    """What the label values 1, 2, ... stand for; empty where the source does not say."""
    remarks: tuple[str, ...] = ()
    """What was done to files that a user may not expect, or is unusual about them, and how many are meant; known when
    all were read."""
    unsure: int = 0
    """Cases that do not know left from right; known when all were read."""


@dataclass(frozen=True)
class Split:
    """Cases to train on and those held back; a volume may be in both, with other slices."""

    training: tuple[SliceCase, ...]
    held_back: tuple[SliceCase, ...]
    said: str
    """How they were told apart, for people and for run.json."""


def check_slice_cases(found: FoundCases, report: Callable[[SliceCase], object] | None = None) -> FoundCases:
    """Return `found` without the cases that can't be loaded; InputRefused where nothing, or no target, is left."""
    good, skipped, targets = [], list(found.skipped), 0
    remarks, unsure = [], 0
    for case in found.cases:
        if report is not None:
            report(case)
        try:
            loaded = case.load()
        except (InputRefused, GeometryError) as error:
            skipped.append(f"{case.name} skipped: {error}")
            continue
        targets += int(loaded.labels.any()) + sum(len(boxes) for boxes in loaded.boxes or ())
        remarks.append(loaded.remarks)
        unsure += not loaded.knows_sides
        good.append(case)
    if not good:
        raise nothing_usable(skipped)
    if not targets:
        raise InputRefused(
            "no-foreground", f"none of the {len(good)} cases has anything labelled",
            "check that the labels are the right files",
        )  # fmt: skip
    said = count_kinds(remarks, "cases")
    return replace(found, cases=tuple(good), skipped=tuple(skipped), remarks=said, unsure=unsure)


def nothing_usable(skipped: Sequence[str]) -> InputRefused:
    """Return the refusal of a folder whose every case is skipped; it names the first of them."""
    more = f" | and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return InputRefused(
        "no-data", f"no case can be used: {' | '.join(skipped[:5])}{more}", "repair or complete these files"
    )


def hold_back(cases: Sequence[SliceCase]) -> Split:
    """Return the cases to train on and those held back, by a fixed seed; the same cases are always split alike.

    A folder's own train/ and valid/ (or val/) are taken as they are, and its test/ is left alone. Else one volume in
    five is held back, and of one or two volumes blocks of slices; of pictures one in five of each group. Raises
    InputRefused where too little is left for either side.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    ordered = sorted(cases, key=lambda case: (case.group, case.name))
    own = [_own_split(case.group) for case in ordered]
    if {"train", "held"} <= set(own) <= {"train", "held", "test"}:
        training = tuple(case for case, part in zip(ordered, own, strict=True) if part == "train")
        held = tuple(case for case, part in zip(ordered, own, strict=True) if part == "held")
        test = f", {own.count('test')} for testing left alone" if "test" in own else ""
        return Split(
            training, held, f"the folder's own split: {len(training)} to train on, {len(held)} held back{test}"
        )
    volumes = any(case.plane for case in ordered)
    if volumes and len(ordered) <= 2:
        return _hold_back_slices(ordered, rng)
    chosen: set[int] = set()
    for group in sorted({"" if volumes else case.group for case in ordered}):
        members = [number for number, case in enumerate(ordered) if volumes or case.group == group]
        drawn = rng.permutation(len(members))[: round(len(members) / HELD_BACK)]
        chosen.update(members[int(which)] for which in drawn)
    if not chosen and len(ordered) > 1:
        chosen = {int(rng.integers(len(ordered)))}
    if not chosen:
        raise InputRefused(
            "too-few-cases", f"there are {len(ordered)} usable cases and 2 are needed: one trains, one is held back",
            "add cases",
        )  # fmt: skip
    said = f"{len(chosen)} of {len(ordered)} {'volumes' if volumes else 'pictures'} are held back"
    if not volumes:
        said += (
            ", drawn from each part of the folder; the files do not say which pictures are of one patient, who may be "
            "on both sides"
        )
    return Split(
        tuple(case for number, case in enumerate(ordered) if number not in chosen),
        tuple(case for number, case in enumerate(ordered) if number in chosen),
        said,
    )


def _own_split(group: str) -> str:
    """Return train, held or test, as the innermost folder of that meaning says; empty where none does."""
    said = [_OWN_SPLIT[folder] for folder in group.lower().split("/") if folder in _OWN_SPLIT]
    return said[-1] if said else ""


def _hold_back_slices(cases: Sequence[SliceCase], rng: np.random.Generator) -> Split:
    """Hold back blocks of neighbouring slices, spread over what is labelled in each volume."""
    training, held, words = [], [], []
    for case in cases:
        labelled = [number for number, mask in zip(case.slices, case.load().labels, strict=True) if mask.any()]
        blocks = _blocks(labelled, rng)
        out = {number for first, last in blocks for number in range(first, last + 1)}
        near = {number for first, last in blocks for number in range(first - GAP, last + GAP + 1)}
        kept = tuple(number for number in case.slices if number not in near)
        if labelled and near.issuperset(labelled):
            raise InputRefused(
                "too-few-slices",
                f"{case.name} has {len(labelled)} slices with a label, too few to hold some back {GAP} slices apart",
                "add another volume",
            )
        training.append(replace(case, slices=kept))
        if out:
            held.append(replace(case, slices=tuple(number for number in case.slices if number in out)))
            words.append(f"{case.name} {', '.join(f'{first} to {last}' for first, last in blocks)}")
    if not held:
        raise InputRefused(
            "no-foreground",
            "no slice is labelled, so none can be held back",
            "check that the labels are the right files",
        )
    return Split(
        tuple(training), tuple(held),
        f"only {len(cases)} volume{'s' if len(cases) > 1 else ''}: blocks of slices are held back "
        f"({'; '.join(words)}), and {GAP} slices on either side of each are not trained on; the figures are of the "
        "same patients",
    )  # fmt: skip


def _blocks(labelled: Sequence[int], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return first and last slice of each block: one in each equal part of the labelled range, on a labelled slice."""
    if not labelled:
        return []
    first, span = labelled[0], labelled[-1] - labelled[0] + 1
    wanted = max(1, span // HELD_BACK)
    count = min(_MAX_BLOCKS, max(1, wanted // _MIN_BLOCK))
    length = wanted // count
    blocks = []
    for part in range(count):
        low, high = first + part * span // count, first + (part + 1) * span // count - length
        starts = [s for s in range(low, high + 1) if any(s <= number < s + length for number in labelled)]
        if starts:
            start = starts[int(rng.integers(len(starts)))]
            blocks.append((start, start + length - 1))
    return blocks
