"""The result tables of the five papers, as printed, beside ours: docs/papers/METHOD.json, one file for each paper.

    {"method": "m-sam", "citation": ..., "licence": ..., "left_out": [what of the paper's tables is not here, and why],
     "tables": [{"number": "1", "caption": ..., "data": ..., "n": ..., "note": ..., "own": {"row": "Ours"},
                 "columns": [{"group": "BraTS21", "name": "DSC", "metric": "dice", "scale": 0.01}, ...],
                 "rows": [["TransUNet", "89.62", ...], ...]}, ...]}

Cells are strings with the digits of the paper, null where the extracted text is not certain. A column's `metric` is
ours, of `figures.METRICS` or DETECTOR_METRICS, that measures what the paper defines, times `scale`; where there is
none, `why` says so. Names go by definitions: what LoRA-SAM prints as HD is our `mean_distance_mm`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samkit.benchmarks.record.figures import DETECTOR_METRICS, METRICS, NONE, interval, share
from samkit.benchmarks.record.json_form import from_json
from samkit.benchmarks.record.rows import AccuracyRow
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.report.table import Table, is_eager
from samkit.errors import InputRefused, SamkitError

FOLDER = Path(__file__).parents[3] / "docs" / "papers"
"""Where they lie in a checkout; an installed samkit has none."""
NOTE = (
    "As printed in the papers, on their data, splits, prompts and weights, none of which are those measured here: the "
    "figures are printed side by side for orientation, and no figure here is a target that was met or missed."
)
"""What must stand wherever a paper's figures stand beside ours."""
_METRICS = {**METRICS, **DETECTOR_METRICS}


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
            raise InputRefused("no-paper", f"{path} holds no paper's tables ({error})", "see docs/papers") from error
    return tuple(found)


def paper_tables(runs: Sequence[Run], folder: Path | None) -> tuple[str, list[Table]]:
    """Return what must be said of the papers' figures, and those of the methods of runs of accuracy; both may be empty.

    First one table with each paper's own figures beside ours, then its tables as printed.
    """
    accuracy = [run for run in runs if run.kind == "accuracy"]
    methods = {method for run in accuracy for method in run.methods}
    papers = [paper for paper in load_papers(folder) if paper.method in methods] if folder is not None else []
    if not papers:
        return "", []
    beside = tuple(line for paper in papers for line in _beside(paper, accuracy))
    columns = ("method", "table", "metric", "in the paper", "here, PyTorch eager, on other data")
    tables = [Table("Figures of the papers beside ours; the data differ", columns, beside)] if beside else []
    return NOTE, tables + [_printed(paper, table) for paper in papers for table in paper.tables]


def _beside(paper: Paper, runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    """Yield a line for each table and metric of a paper."""
    for table in paper.tables:
        printed: dict[str, list[str]] = {}
        for column, value in table.own_figures():
            key = str(column.metric)
            where = table.data if table.own.get("group") or not column.group else column.group
            printed.setdefault(key, []).append(f"{where}: {_METRICS[key].write(value)}")
        for key, values in printed.items():
            name = f"{_METRICS[key].label} [{_METRICS[key].unit or 'share'}]"
            ours = "; ".join(_ours(key, runs, paper.method)) or "not measured"
            yield paper.method, table.number, name, "; ".join(values), ours


def _ours(key: str, runs: Sequence[Run], method: str) -> Iterator[str]:
    """Yield our own figure of a metric, of each run and policy."""
    for run in runs:
        for row in run.rows:
            if not isinstance(row, AccuracyRow) or row.identity.method != method or not is_eager(row):
                continue
            if key in DETECTOR_METRICS and (value := getattr(row, key)) is not None:
                yield f"{run.data}: {share(value)}"
            elif key in row.figures:
                yield f"{run.data}, {row.identity.policy}: {interval(row.figures[key].mean, _METRICS[key].write)}"


def _printed(paper: Paper, table: PaperTable) -> Table:
    doubts: dict[str, list[str]] = {}
    for column in table.columns:
        if column.why:
            doubts.setdefault(column.why, []).append(column.title)
    named = [f"{', '.join(doubted)}: {why}" for why, doubted in doubts.items()]
    count = f"n = {table.n}" if table.n else "n not given"
    return Table(
        f"{paper.method}, table {table.number}: {table.caption}",
        tuple(column.title for column in table.columns),
        tuple(tuple(NONE if cell is None else cell for cell in row) for row in table.rows),
        (paper.citation, f"{table.data}; {count}", *([table.note] if table.note else []), *named),
        detail=True,
    )
