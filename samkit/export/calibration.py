"""Scans and pictures of the user's own that an export is measured and tested on, besides phantoms: `--calibration`.

Nobody labelled them, and what an export has to prove is that it answers as PyTorch does, right or wrong. So the prompts
go to the largest bright part of each, which looks like something that one would click on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from samkit.errors import InputRefused
from samkit.geometry import Volume
from samkit.imageio.reading import is_picture, list_scans
from samkit.imageio.scan import count_kinds
from samkit.imageio.study import Study, read_study
from samkit.methods import Method, SliceMethod
from samkit.segment.inputs import find_inputs

_log = logging.getLogger(__name__)

MOST = 8
"""Subjects that are used of a folder, spread over it evenly: each one goes through PyTorch and every graph."""
BRIGHT = 97.0
"""Percentile of the values above the lowest one from where something is bright."""
_FEWEST = 8
"""Voxels or pixels of something that can be prompted."""


@dataclass(frozen=True)
class CalibrationScan:
    """One scan with its sequences, or one picture, of `--calibration`, and a part of it to prompt."""

    name: str
    """How messages call it: its number, because a file's name may be a patient's."""
    volumes: dict[str, Volume]
    """By sequence; empty for a picture."""
    picture: np.ndarray | None
    """(H, W, C), 0..255."""
    target: np.ndarray
    """bool, on the array of the volumes or the picture (H, W)."""


def find_calibration(folder: Path, method: Method, config: Any) -> tuple[list[Path], int]:
    """Return what is used of `folder`, and of how many it was picked.

    That is scans or pictures, or folders of sequences where the method takes several. Raises InputRefused where there
    is nothing of the kind.
    """
    takes_several = isinstance(method, SliceMethod) and len(method.sequences(config)) > 1
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if takes_several:
        usable = [path for path in found if path.is_dir() or is_picture(path)]
    else:
        pictures = isinstance(method, SliceMethod)
        usable = sorted([*list_scans(found), *(path for path in found if pictures and is_picture(path))])
    if not usable:
        kind = "a folder of sequences for each patient" if takes_several else "scans"
        raise InputRefused(
            "calibration", f"{folder.name} holds nothing that {method.name} can be calibrated on", f"needed is {kind}"
        )
    picked = np.unique(np.linspace(0, len(usable) - 1, min(MOST, len(usable))).round().astype(int))
    return [usable[number] for number in picked], len(usable)


def read_calibration(paths: Sequence[Path], method: Method, config: Any) -> list[CalibrationScan]:
    """Read what `find_calibration` found; raises InputRefused for what `sam-segment` would refuse, too."""
    subjects: list[CalibrationScan] = []
    told: list[tuple[str, ...]] = []
    for number, path in enumerate(paths, 1):
        study = read_study(find_inputs([str(path)], method, config, {}), one_slice=isinstance(method, SliceMethod))
        subjects.append(_subject(f"calibration subject {number}", study))
        told.append(study.warnings)
    for sentence in count_kinds(told, "calibration subjects"):
        _log.warning("%s", sentence)
    return subjects


def _subject(name: str, study: Study) -> CalibrationScan:
    volumes = {sequence: scan.volume for sequence, scan in study.scans.items()}
    grey = study.picture.mean(axis=2) if study.picture is not None else next(iter(volumes.values())).array
    return CalibrationScan(name, volumes, study.picture, _bright_part(np.asarray(grey, np.float32), name))


def _bright_part(values: np.ndarray, name: str) -> np.ndarray:
    """Return the largest connected part of what is bright in an image of any number of axes, bool."""
    inside = values[values > values.min()]
    if inside.size:
        parts, count = ndimage.label(values >= np.percentile(inside, BRIGHT))
        sizes = np.bincount(parts.ravel(), minlength=count + 1)
        sizes[0] = 0
        if sizes.max() >= _FEWEST:
            largest: np.ndarray = parts == sizes.argmax()
            return largest
    raise InputRefused("calibration", f"{name} shows nothing bright that could be prompted", "leave it out")
