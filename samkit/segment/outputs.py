"""Masks and label maps as files: NIfTI beside a scan, PNG beside a picture, and a table of the structures' sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from samkit.imageio.nifti import MASK_SUFFIXES, replacing
from samkit.segment.inputs import Given

PICTURE_SUFFIX = ".png"


def check_name(path: Path, given: Given) -> None:
    """Raise click.UsageError unless `path` is named as what will be written there."""
    wanted = MASK_SUFFIXES if given.picture is None else (PICTURE_SUFFIX,)
    if not path.name.endswith(wanted):
        kind = "scan" if given.picture is None else "picture"
        raise click.UsageError(f"the mask of a {kind} must end in {' or '.join(wanted)}, and it is '{path.name}'")


def table_path(path: Path) -> Path:
    """Return where the table of a label map lies: beside it.

    >>> table_path(Path("labels.nii.gz")).name
    'labels.tsv'
    """
    stem = path.name.removesuffix(".gz")
    return path.with_name(stem[: stem.rindex(".")] + ".tsv")


def write_picture(path: Path, labels: np.ndarray, *, is_mask: bool) -> None:
    """Write labels (H, W) as an 8-bit grey PNG, complete or not at all; a mask becomes 0 and 255."""
    from PIL import Image

    values = np.where(labels > 0, 255, 0).astype(np.uint8) if is_mask else labels
    with replacing(path) as file:
        Image.fromarray(values).save(file, "PNG")


def write_table(path: Path, labels: np.ndarray, structures: Sequence[str], voxel_ml: float | None) -> None:
    """Write index, name, voxels and mL of each structure; mL is n/a in a picture."""
    counts = np.bincount(labels.ravel(), minlength=len(structures) + 1)
    rows = ["index\tname\tvoxels\tmL"]
    for index, name in enumerate(structures, 1):
        volume = "n/a" if voxel_ml is None else f"{counts[index] * voxel_ml:.4f}"
        rows.append(f"{index}\t{name}\t{counts[index]}\t{volume}")
    with replacing(path) as file:
        file.write(("\n".join(rows) + "\n").encode())
