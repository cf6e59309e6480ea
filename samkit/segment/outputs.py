"""What lies beside a scan or a picture afterwards: how its mask may be named, and a table of structures' sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samkit.errors import OptionError
from samkit.imageio.study import Study
from samkit.imageio.writing import MASK_SUFFIXES, PICTURE_SUFFIX, replacing


def check_name(path: Path, study: Study) -> None:
    """Raise OptionError unless `path` is named as what will be written there."""
    wanted = MASK_SUFFIXES if study.picture is None else (PICTURE_SUFFIX,)
    if not path.name.endswith(wanted):
        kind = "scan" if study.picture is None else "picture"
        raise OptionError(f"the mask of a {kind} must end in {' or '.join(wanted)}, and it is '{path.name}'")


def table_path(path: Path) -> Path:
    """Return where the table of a label map lies: beside it.

    >>> table_path(Path("labels.nii.gz")).name
    'labels.tsv'
    """
    stem = path.name.removesuffix(".gz")
    return path.with_name(stem[: stem.rindex(".")] + ".tsv")


def write_table(path: Path, labels: np.ndarray, structures: Sequence[str], voxel_ml: float | None) -> None:
    """Write index, name, voxels and mL of each structure; mL is n/a in a picture."""
    counts = np.bincount(labels.ravel(), minlength=len(structures) + 1)
    rows = ["index\tname\tvoxels\tmL"]
    for index, name in enumerate(structures, 1):
        volume = "n/a" if voxel_ml is None else f"{counts[index] * voxel_ml:.4f}"
        rows.append(f"{index}\t{name}\t{counts[index]}\t{volume}")
    with replacing(path) as file:
        file.write(("\n".join(rows) + "\n").encode())
