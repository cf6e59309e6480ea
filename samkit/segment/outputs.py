"""What `sam-segment` writes: the mask beside a scan or a picture, a table of structures' sizes, logits, a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from samkit.errors import OptionError
from samkit.imageio.study import Study
from samkit.imageio.writing import (
    MASK_SUFFIXES,
    PICTURE_SUFFIX,
    check_output,
    replacing,
    write_logits,
    write_mask,
    write_picture,
)
from samkit.runtime.session.base import Session


@dataclass(frozen=True)
class Outputs:
    """Where everything goes."""

    mask: Path
    table: Path | None
    """Index, name and size of each structure; None where there is one mask."""
    logits: Path | None
    report: Path | None

    @classmethod
    def named(cls, mask: Path, logits: Path | None, report: Path | None, structures: Sequence[str]) -> Self:
        """Return them for a method of these structures; raises OptionError where two have the same name."""
        outputs = cls(mask, table_path(mask) if structures else None, logits, report)
        if len({path.resolve() for path in outputs.paths}) < len(outputs.paths):
            raise OptionError(
                "{mask_path}, its table, {logits_path} and {report_path} name the same file",
                options=("mask_path", "logits_path", "report_path"),
            )
        return outputs

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return all files that will be written."""
        return tuple(path for path in (self.mask, self.table, self.logits, self.report) if path is not None)

    def check(self, study: Study, sources: Iterable[Path]) -> None:
        """Raise unless all can be written: OptionError for a mask that is not named as what it will be.

        InputRefused where a folder is missing, or a file would take the place of one of the study's or of `sources`.
        """
        wanted = MASK_SUFFIXES if study.picture is None else (PICTURE_SUFFIX,)
        if not self.mask.name.endswith(wanted):
            kind = "scan" if study.picture is None else "picture"
            raise OptionError(f"the mask of a {kind} must end in {' or '.join(wanted)}, and it is '{self.mask.name}'")
        kept = (*study.sources, *sources)
        for path in self.paths:
            check_output(path, kept)

    def write(self, session: Session, study: Study) -> None:
        """Write logits and the mask that `session` holds of `study`, or its label map and the table."""
        labels = session.labels()
        if self.table is not None:
            voxel_ml = None if study.picture is not None else study.scan.volume.voxel_ml
            write_table(self.table, labels, session.structures, voxel_ml)
        if self.logits is not None:
            write_logits(self.logits, session.logits(), study.scan)
        if study.picture is None:
            write_mask(self.mask, labels, study.scan)
        else:
            write_picture(self.mask, labels, is_mask=self.table is None)


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
