"""The result tables of the five papers, as printed, to stand beside ours: papers/METHOD.json, one file for each paper.

    {"method": "m-sam", "citation": ..., "licence": ..., "left_out": [what of the paper's tables is not here, and why],
     "tables": [{"number": "1", "caption": ..., "data": ..., "n": ..., "note": ..., "own": {"row": "Ours"},
                 "columns": [{"group": "BraTS21", "name": "DSC", "metric": "dice", "scale": 0.01}, ...],
                 "rows": [["TransUNet", "89.62", ...], ...]}, ...]}

Cells are strings with the digits of the paper, null where the extracted text is not certain. A column's `metric` is
ours, of `metrics.METRICS` or DETECTOR_METRICS, that measures what the paper defines, times `scale`; where there is
none, `why` says so. Names go by definitions: what LoRA-SAM prints as HD is our `mean_distance_mm`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[3] / "docs" / "papers"
_NOTE = (
    "As printed in the papers, on their data, splits, prompts and weights, none of which are those measured here: the "
    "figures are printed side by side for orientation, and no figure here is a target that was met or missed."
)


@dataclass(frozen=True)
class Column:
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
    own: dict[str, str]
    """The `row`, and the `group` of columns where each model has one, with the figures of the paper's own method."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | None, ...], ...]
    """One cell per column, the first a name."""

    def own_figures(self) -> list[tuple[Column, float]]:
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


def load_papers(method: str | None = None) -> tuple[Paper, ...]:
    """Return the paper of a method, none where its figures are not here, or all of them in the order of their names."""
    papers = (_paper(json.loads(path.read_text())) for path in sorted(FOLDER.glob("*.json")))
    return tuple(paper for paper in papers if method in (None, paper.method))


def note() -> str:
    """Return the sentence that must stand wherever a paper's figures stand beside ours."""
    return _NOTE


def _paper(data: dict[str, Any]) -> Paper:
    tables = tuple(_table(table) for table in data["tables"])
    return Paper(data["method"], data["citation"], data["licence"], tables, tuple(data["left_out"]))


def _table(data: dict[str, Any]) -> PaperTable:
    columns = tuple(Column(**column) for column in data["columns"])
    return PaperTable(**{**data, "columns": columns, "rows": tuple(tuple(row) for row in data["rows"])})
