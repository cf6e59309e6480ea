"""One scan, whatever kind of file it came from."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from samkit.geometry import Volume
from samkit.imageio.forms import Forms
from samkit.imageio.frames import Doubt


@dataclass(frozen=True)
class Scan:
    """A scan that passed the gate."""

    volume: Volume
    """Voxels in the file's own order, integers as they are stored or float32, and the affine [mm, RAS+]."""
    forms: Forms
    """What a mask's file takes over, so that it lies where the scan does."""
    kind: str
    """The name of the reader, such as NIfTI."""
    name: str
    """The file's name, or what messages call an image that was given in memory."""
    path: Path | None
    """The file with the voxels; None for what was given in memory."""
    warnings: tuple[str, ...]
    """What looks unusual but does not stop the work."""
    axes: int = 3
    """Of the file's array, which a mask's file takes over; of two the third axis here is one voxel long."""
    doubt: Doubt | None = None
    """Why left and right are not known, where they are not."""
    files: tuple[Path, ...] = ()
    """All files that were read for it, or that an image in memory came from."""
    modality: str = ""
    """CT, MR, ... as the file, or dcm2niix's JSON beside it, says; empty where neither does."""

    def __repr__(self) -> str:
        """Return what it is; its file's name may be a patient's."""
        return f"<Scan: {self.kind}, {self.volume}>"


_FIGURE = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def count_kinds(told: Sequence[Collection[str]], noun: str) -> tuple[str, ...]:
    """Return what is told of many scans, or of cases, as `noun` calls them: each kind once, and of how many.

    Sentences that differ in figures alone are of one kind.

    >>> count_kinds([["2 mm apart"], [], ["0.5 mm apart", "damaged"]], "scans")
    ('2 of 3 scans, with the figures of the first: 2 mm apart', '1 of 3 scans: damaged')
    """
    kinds: dict[str, list[str]] = {}
    for sentences in told:
        of_one: dict[str, str] = {}
        for sentence in sentences:
            of_one.setdefault(_FIGURE.sub("0", sentence), sentence)
        for kind, sentence in of_one.items():
            kinds.setdefault(kind, []).append(sentence)
    return tuple(
        f"{len(found)} of {len(told)} {noun}{', with the figures of the first' * (len(set(found)) > 1)}: {found[0]}"
        for found in kinds.values()
    )
