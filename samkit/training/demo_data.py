"""Folders of phantoms that the demonstration weights of each method learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from samkit.files import make_folder
from samkit.geometry import Volume
from samkit.imageio.writing import write_volume
from samkit.phantoms import SEQUENCES, make_phantom, make_structures, write_phantoms

_SEED = 1
_SIDE, _STRUCTURES_SIDE = 96, 128
"""Voxels along each axis, of 1 mm."""


def _long_lesions(folder: Path) -> None:
    """100 phantoms of one sequence each, some with a lesion longer than a patch of the 3D methods."""
    write_phantoms(str(folder), cases=100, seed=_SEED, size=_SIDE, long_share=0.15)


def _lesions(folder: Path) -> None:
    """30 phantoms of one sequence each."""
    write_phantoms(str(folder), cases=30, seed=_SEED, size=_SIDE, long_share=0.0)


def _sequences(folder: Path) -> None:
    """24 phantoms of all sequences, a folder for each."""
    for number in range(24):
        phantom = make_phantom(_SEED * 100_000 + number, (_SIDE, _SIDE, _SIDE))
        case = folder / f"phantom-{number:04d}"
        for name in SEQUENCES:
            _save(case / f"{name}.nii.gz", phantom.sequences[name], np.int16)
        _save(case / "label.nii.gz", Volume(phantom.lesions, phantom.affine), np.uint8)


def _structures(folder: Path) -> None:
    """12 heads with labelled deep structures."""
    for number in range(12):
        scan, labels = make_structures(_SEED * 100_000 + number, (_STRUCTURES_SIDE,) * 3)
        _save(folder / "images" / f"phantom-{number:04d}.nii.gz", scan, np.int16)
        _save(folder / "labels" / f"phantom-{number:04d}.nii.gz", Volume(labels, scan.affine), np.uint8)


DATA: Mapping[str, Callable[[Path], None]] = {
    "long-lesions": _long_lesions,
    "lesions": _lesions,
    "sequences": _sequences,
    "structures": _structures,
}
"""What writes each folder."""


def _save(path: Path, volume: Volume, dtype: type) -> None:
    make_folder(path.parent)
    write_volume(path, Volume(np.rint(volume.array).astype(dtype), volume.affine))
