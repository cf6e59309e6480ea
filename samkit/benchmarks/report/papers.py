"""The papers' result tables as printed, and their own figures beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from samkit.benchmarks.record.figures import DETECTOR_METRICS, METRICS, NONE, interval, share
from samkit.benchmarks.record.rows import AccuracyRow
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.report.table import Table, is_eager
from samkit.protocols.papers import Paper, PaperTable, load_papers

NOTE = (
    "As printed in the papers, on their data, splits, prompts and weights, none of which are those measured here: the "
    "figures are printed side by side for orientation, and no figure here is a target that was met or missed."
)
"""What must stand wherever a paper's figures stand beside ours."""
_METRICS = {**METRICS, **DETECTOR_METRICS}


def paper_tables(runs: Sequence[Run], folder: Path | None) -> tuple[str, list[Table]]:
    """Return what must be said of the papers' figures, and those of the methods of runs of accuracy; both may be empty.

    First one table with each paper's own figures beside ours, then its tables as printed.
    """
    accuracy = [run for run in runs if run.kind == "accuracy"]
    methods = {method for run in accuracy for method in run.methods}
    papers = [paper for paper in load_papers(folder) if paper.method in methods] if folder is not None else []
    if not papers:
        return "", []
    columns = ("method", "table", "metric", "in the paper", "here, PyTorch eager, on other data")
    lines = tuple(line for paper in papers for line in _beside(paper, accuracy))
    beside = Table("Figures of the papers beside ours; the data differ", columns, lines)
    printed = [_printed(paper, table) for paper in papers for table in paper.tables]
    return NOTE, [table for table in (beside, *printed) if table.rows]


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
    for run, row in ((one, row) for one in runs for row in one.rows):
        if isinstance(row, AccuracyRow) and row.identity.method == method and is_eager(row):
            if key in DETECTOR_METRICS and (value := getattr(row, key)) is not None:
                yield f"{run.data}: {share(value)}"
            elif key in row.figures:
                yield f"{run.data}, {row.identity.policy}: {interval(row.figures[key].mean, _METRICS[key].write)}"


def _printed(paper: Paper, table: PaperTable) -> Table:
    whys = dict.fromkeys(column.why for column in table.columns if column.why)
    doubted = [f"{', '.join(one.title for one in table.columns if one.why == why)}: {why}" for why in whys]
    data = f"{table.data}; {f'n = {table.n}' if table.n else 'n not given'}"
    notes = (paper.citation, data, *filter(None, [table.note]), *doubted)
    columns = tuple(column.title for column in table.columns)
    rows = tuple(tuple(NONE if cell is None else cell for cell in row) for row in table.rows)
    return Table(f"{paper.method}, table {table.number}: {table.caption}", columns, rows, notes, detail=True)
