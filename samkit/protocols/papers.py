"""The result tables of the five papers, as printed: docs/results/papers/METHOD.json, one file for each paper.

    {"method": "m-sam", "citation": ..., "licence": ..., "left_out": [what of the paper's tables is not here, and why],
     "tables": [{"number": "1", "caption": ..., "data": ..., "n": ..., "note": ..., "own": {"row": "Ours"},
                 "columns": [{"group": "BraTS21", "name": "DSC", "metric": "dice", "scale": 0.01}, ...],
                 "rows": [["TransUNet", "89.62", ...], ...]}, ...]}

Cells are strings with the digits of the paper, null where the extracted text is not certain. A column's `metric` is
ours that measures what the paper defines, of METRICS or DETECTOR_METRICS in `benchmarks.record.figures`, times `scale`;
where there is none, `why` says so. Names go by definitions: what LoRA-SAM prints as HD is our `mean_distance_mm`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samkit.errors import InputRefused, SamkitError
from samkit.json_records import from_json

FOLDER = Path(__file__).parents[2] / "docs" / "results" / "papers"
"""Where they lie in a checkout; an installed samkit has none."""


@dataclass(frozen=True)
class PaperColumn:
    """One column of a paper's table."""

    name: str
    """As printed."""
    group: str = ""
    """What stands above it: a data set, a model, a prompt; empty where nothing does."""
    metric: str | None = None
    """Which of our metrics it is, None for names and for what we do not measure."""
    scale: float = 1.0
    """Ours is the printed number times this: 0.01 for percent."""
    why: str = ""
    """Why there is no metric, or what is doubtful about it."""

    @property
    def title(self) -> str:
        """Return group and name."""
        return f"{self.group}: {self.name}" if self.group else self.name


@dataclass(frozen=True)
class PaperTable:
    """One table."""

    number: str
    caption: str
    """As printed, its first sentence."""
    data: str
    """What was measured on."""
    n: str | None
    """How many cases of it, None where the paper does not say."""
    note: str
    """What a reader must know: contradictions in the paper, what is not certain, what was turned round."""
    own: Mapping[str, str]
    """The `row`, and the `group` of columns where each model has one, with the figures of the paper's own method."""
    columns: tuple[PaperColumn, ...]
    rows: tuple[tuple[str | None, ...], ...]
    """One cell per column, the first a name."""

    def own_figures(self) -> list[tuple[PaperColumn, float]]:
        """Return what the paper's own method has in the columns with a metric of ours, in our unit."""
        (row,) = (row for row in self.rows if row[0] == self.own["row"])
        group = self.own.get("group")
        return [
            (column, float(cell) * column.scale)
            for column, cell in zip(self.columns, row, strict=True)
            if column.metric is not None and cell is not None and group in (None, column.group)
        ]


@dataclass(frozen=True)
class Paper:
    """What one paper reports."""

    method: str
    citation: str
    licence: str
    tables: tuple[PaperTable, ...]
    left_out: tuple[str, ...] = field(default=())
    """Sentences: which of its tables are not here, and why."""


def load_papers(folder: Path) -> tuple[Paper, ...]:
    """Return the papers of a folder in the order of their names; raises InputRefused for a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(from_json(Paper, json.loads(path.read_text()), "a paper"))
        except (ValueError, TypeError, SamkitError) as error:
            raise InputRefused(
                "no-paper", f"{path} holds no paper's tables ({error})", "see docs/results/papers"
            ) from error
    return tuple(found)
