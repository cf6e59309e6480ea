"""A mask beside what it is a mask of, and the table of its structures: what `sam-segment` and sessions write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from samkit.errors import OptionError
from samkit.files import write_whole
from samkit.imageio.study import Study
from samkit.imageio.writing import MASK_SUFFIXES, PICTURE_SUFFIX, check_output, write_mask, write_picture


def check_results(mask: Path, others: Iterable[Path], study: Study, sources: Iterable[Path] = ()) -> None:
    """Raise unless `mask` and `others` can be written: OptionError for a mask that is not named as what it will be.

    InputRefused where a folder is missing, or a file would take the place of one of the study's or of `sources`.
    """
    wanted = MASK_SUFFIXES if study.picture is None else (PICTURE_SUFFIX,)
    if not mask.name.lower().endswith(wanted):
        kind = "scan" if study.picture is None else "picture"
        raise OptionError(
            f"the mask of a {kind} must end in {' or '.join(wanted)}, and it is '{mask.name}'; "
            f"call it {_stem(mask)}{wanted[-1]}"
        )
    kept = (*study.sources, *sources)
    for path in (mask, *others):
        check_output(path, kept)


def write_results(mask: Path, table: Path | None, labels: np.ndarray, study: Study, structures: Sequence[str]) -> None:
    """Write labels (I, J, K) or (H, W) as a mask, or with a `table` as a label map and its structures' sizes."""
    if table is not None:
        write_table(table, labels, structures, None if study.picture is not None else study.scan.volume.voxel_ml)
    if study.picture is None:
        write_mask(mask, labels, study.scan)
    else:
        write_picture(mask, labels, is_mask=table is None)


def table_path(mask: Path) -> Path:
    """Return where the table of a label map lies: beside it.

    >>> table_path(Path("labels.nii.gz")).name
    'labels.tsv'
    """
    return mask.with_name(_stem(mask) + ".tsv")


def _stem(mask: Path) -> str:
    return Path(mask.stem if mask.suffix.lower() == ".gz" else mask.name).stem


def write_table(path: Path, labels: np.ndarray, structures: Sequence[str], voxel_ml: float | None) -> None:
    """Write index, name, voxels and mL of each structure; mL is n/a in a picture."""
    counts = np.bincount(labels.ravel(), minlength=len(structures) + 1)
    rows = ["index\tname\tvoxels\tmL"]
    for index, name in enumerate(structures, 1):
        volume = "n/a" if voxel_ml is None else f"{counts[index] * voxel_ml:.4f}"
        rows.append(f"{index}\t{name}\t{counts[index]}\t{volume}")
    write_whole(path, "\n".join(rows) + "\n")
