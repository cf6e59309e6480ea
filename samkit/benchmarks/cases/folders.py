"""Cases of a folder of the user's: whole scans or pictures, as a session takes them, with the truth beside them.

Which files are scans, sequences, labels and structures is found as training finds it, and every scan passes the gate
that `sam-segment` has. Methods that take one grey volume get GREY of several sequences, or a picture; those of several
sequences take all of a case's folder, or pictures with as many channels; a detector alone takes boxes, labels/*.txt.

A label with several values is one target, all of them together, where the method has no structures; pictures whose
masks are named after what they show are one case for each name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from samkit.errors import GeometryError, InputRefused
from samkit.imageio.frames import sides_unsure
from samkit.imageio.reading import read_scan
from samkit.imageio.scan import count_kinds
from samkit.methods import Method, SliceMethod
from samkit.protocols.case import Case
from samkit.training.click_cases import VolumeCase, find_cases, read_case
from samkit.training.slice_cases import FoundCases, SliceCase
from samkit.training.slice_readers import find_slice_cases
from samkit.training.volume_slices import find_volumes

GREY = "t2f"
"""The sequence that a method of one grey volume gets where a case has several: lesions show best in it."""


@dataclass(frozen=True)
class _Told:
    """What has to be known of the files of a case."""

    remarks: tuple[str, ...]
    knows_sides: bool = True
    """Whether it is known which way is left."""


_Candidate: TypeAlias = tuple[str, Callable[[str], tuple[Case, _Told]]]
"""A case's name, and what reads the case of that name."""


class FolderCases:
    """What of a folder a method can be measured on; each case is read when it is asked for."""

    def __init__(self, folder: Path, method: Method, config: Any, most: int, *, label: int | None = None) -> None:
        """Find the cases by names and headers, of which `most` are taken, spread evenly over the folder; one that can't
        be used gives its place to another. `label` is the value of a label that counts, else every one above 0.

        Raises InputRefused where there is nothing of the method's kind.
        """
        self._folder, self._method, self._most, self._label = folder, method, most, label
        self.remarks: list[str] = []
        """Of all that was left out or assumed, complete when all cases were read; they may hold names of files."""
        self.told: tuple[str, ...] = ()
        """What is unusual about the files that were used, and in how many cases; names of files are not in it."""
        self._structures, self._sequences = method.structures(config), method.sequences(config)
        self._candidates = self._of_slices(method) if isinstance(method, SliceMethod) else self._of_volumes()

    def __iter__(self) -> Iterator[Case]:
        """Yield the cases; raises InputRefused where none could be used."""
        count = len(self._candidates)
        picks = [int(n) for n in np.unique(np.linspace(0, count - 1, min(self._most, count)).round())]
        taken: list[_Told] = []
        for name, read in (self._candidates[n] for n in (*picks, *(n for n in range(count) if n not in picks))):
            if len(taken) == self._most:
                break
            try:
                case, told = read(name)
            except (InputRefused, GeometryError) as error:
                self.remarks.append(f"{name} left out: {error}")
            else:
                taken.append(told)
                yield case
        if not taken:
            raise InputRefused(
                "no-subject", f"{self._method.name} can be measured on nothing in {self._folder.name}: "
                f"{' | '.join(self.remarks[:5])}",
                "give a folder with scans or pictures that it takes, and with labels that hold something",
            )  # fmt: skip
        unsure = sum(not one.knows_sides for one in taken)
        self.told = (
            f"{len(taken)} of {count} subjects in the folder are measured",
            *count_kinds([one.remarks for one in taken], "cases"),
            *sides_unsure(unsure, len(taken), self._structures),
        )

    def _of_volumes(self) -> list[_Candidate]:
        try:
            cases = find_cases(self._folder)
        except InputRefused as refusal:
            found = self._grey_volumes("axial", refusal)
            cases = [VolumeCase(case.name, case.images[0], case.labels[0]) for case in found.cases]
            self.remarks += found.skipped
        return [(f"case {number}", partial(self._read_volume, case)) for number, case in enumerate(cases, start=1)]

    def _read_volume(self, case: VolumeCase, name: str) -> tuple[Case, _Told]:
        scan, label = read_case(case)
        targets = self._targets(label.array, (), self._label)
        return Case(name, {"": scan.volume}, targets), _Told(scan.warnings, scan.doubt is None)

    def _grey_volumes(self, plane: str, refusal: InputRefused) -> FoundCases:
        """Return GREY of each case's folder; raises `refusal`, of one volume from each, where that is no remedy."""
        if refusal.code != "unmatched":
            raise refusal
        try:
            found = find_volumes(self._folder, (GREY,), plane=plane)
        except InputRefused:
            raise refusal from None
        self.remarks.append(f"of the sequences in each case's folder {GREY} is taken")
        return found

    def _of_slices(self, method: SliceMethod) -> list[_Candidate]:
        sequences, structures = self._sequences, self._structures
        try:
            found = find_slice_cases(self._folder, sequences=sequences, plane=method.plane)
        except InputRefused as refusal:
            if sequences:
                raise
            found = self._grey_volumes(method.plane, refusal)
        self.remarks += found.skipped
        if found.layout in ("images", "boxes"):
            self._check_pictures(found.layout, method)
        if structures and not found.names:
            taken = f"{structures[0]} to {structures[-1]}, in order"
            self.remarks.append(f"label values 1 to {len(structures)} are taken for {taken}")
        candidates: list[_Candidate] = []
        for number, case in enumerate(found.cases, start=1):
            read = partial(self._read_slices, case, found.names)
            # Organs of one picture have nothing to do with each other, as parts of one organ in a label have
            if case.label_values and len(found.names) > 1 and not structures:
                values = sorted({value for value in case.label_values if self._label in (None, value)})
                candidates += [(f"case {number}, {found.names[value - 1]}", partial(read, value)) for value in values]
            else:
                candidates.append((f"case {number}", partial(read, self._label)))
        return candidates

    def _check_pictures(self, layout: str, method: SliceMethod) -> None:
        """Raise InputRefused for pictures that the method has no channels for, and boxes it has no detector for."""
        if layout == "boxes" and method.propose is None:
            raise InputRefused(
                "boxes-alone", f"the folder has boxes and no masks, and {method.name} has no detector",
                "measure medsam-yolo on it, or give masks",
            )  # fmt: skip
        if len(self._sequences) not in (0, 1, 3):
            raise InputRefused(
                "channels", f"the folder has pictures, and {method.name} takes {len(self._sequences)} sequences",
                "give a folder of NIfTI files for each patient",
            )  # fmt: skip
        self.remarks.append(
            "pixels of pictures have no known size: what is called mm here is pixels, NSD's tolerance, too"
        )

    def _read_slices(self, case: SliceCase, names: tuple[str, ...], label: int | None, name: str) -> tuple[Case, _Told]:
        loaded = case.load()
        told = _Told(loaded.remarks, loaded.knows_sides)
        if not case.plane:
            (picture,), (labels,) = loaded.images, loaded.labels
            if loaded.boxes is not None:
                return Case(name, {}, {}, picture=picture, boxes=loaded.boxes[0]), told
            return Case(name, {}, self._targets(labels, names, label), picture=picture), told
        # The session scales and cuts by itself, so it gets the scans as they are, and the labels are training's
        scans = zip(self._sequences or ("",), case.images, strict=True)
        volumes = {sequence: read_scan(path, one_slice=True).volume for sequence, path in scans}
        scan = Case(name, volumes, {}, case.plane)
        return replace(scan, targets=self._targets(scan.view().volume(loaded.labels), names, label)), told

    def _targets(self, labels: np.ndarray, names: tuple[str, ...], label: int | None) -> dict[str, np.ndarray]:
        """Return a case's targets; raises InputRefused where there is nothing to prompt."""
        if structures := self._structures:
            values = {name: value for value, name in enumerate(names or structures, start=1) if name in structures}
            masks = {name: labels == value for name, value in values.items() if label in (None, value)}
        else:
            masks = {"": labels > 0 if label is None else labels == label}
        # A method that looks by itself can be wrong where there is nothing
        keeps_empty = self._method.is_automatic and not structures
        targets = {name: np.ascontiguousarray(mask) for name, mask in masks.items() if keeps_empty or mask.any()}
        if not targets:
            raise InputRefused(
                "no-target", "its label holds nothing that counts", "leave it out, or name a value it holds"
            )
        return targets
