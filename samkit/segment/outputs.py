"""What `sam-segment` writes: the mask beside a scan or a picture, a table of structures' sizes, logits, a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from samkit.errors import OptionError
from samkit.imageio.results import check_results, table_path, write_results
from samkit.imageio.study import Study
from samkit.imageio.writing import check_pillow, write_logits, write_png
from samkit.runtime.session.base import Session


@dataclass(frozen=True)
class Outputs:
    """Where everything goes."""

    mask: Path
    table: Path | None
    """Index, name and size of each structure; None where there is one mask."""
    logits: Path | None
    overlay: Path | None
    """A picture of the mask on the image."""
    report: Path | None

    @classmethod
    def named(
        cls, mask: Path, logits: Path | None, overlay: Path | None, report: Path | None, structures: Sequence[str]
    ) -> Self:
        """Return them for a method of these structures; raises OptionError where two have the same name."""
        outputs = cls(mask, table_path(mask) if structures else None, logits, overlay, report)
        if len({os.path.realpath(path) for path in (mask, *outputs.others)}) < 1 + len(outputs.others):
            raise OptionError(
                "{mask_path}, its table, {logits_path}, {overlay_path} and {report_path} name the same file",
                options=("mask_path", "logits_path", "overlay_path", "report_path"),
            )
        return outputs

    @property
    def others(self) -> tuple[Path, ...]:
        """Return all files that will be written, but the mask."""
        return tuple(path for path in (self.table, self.logits, self.overlay, self.report) if path is not None)

    def check(self, study: Study, sources: Iterable[Path]) -> None:
        """Raise unless all can be written, as `check_results` does; MissingDependencyError where an overlay can't."""
        check_results(self.mask, self.others, study, sources)
        if self.overlay is not None:
            check_pillow()

    def write(self, session: Session, study: Study) -> None:
        """Write all but the report, of what `session` holds of `study`."""
        write_results(self.mask, self.table, session.labels(), study, session.structures)
        if self.logits is not None:
            write_logits(self.logits, session.logits(), study.scan)
        if self.overlay is not None:
            write_png(self.overlay, session.overlay())
