"""Tables of the papers: their own figures beside what was measured here, then each table as printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from samkit.benchmarks.record.metrics import DETECTOR_METRICS, METRICS, Metric
from samkit.benchmarks.record.run import Run
from samkit.benchmarks.report.papers import Paper, PaperTable, load_papers
from samkit.benchmarks.report.papers import note as papers_note
from samkit.benchmarks.report.table import NONE, Table, interval, is_eager, measured, number, share, writer_of


def paper_tables(runs: Sequence[Run]) -> tuple[str, list[Table]]:
    """Return what must be said of the papers' figures, and those of the methods of runs of accuracy; both may be empty.

    First one table with each paper's own figures beside ours, then its tables as printed.
    """
    accuracy = [run for run in runs if run.kind == "accuracy"]
    methods = {row["method"] for run in accuracy for row in run.rows}
    papers = [paper for paper in load_papers() if paper.method in methods]
    if not papers:
        return "", []
    beside = [line for paper in papers for line in _beside(paper, accuracy)]
    columns = ("method", "table", "metric", "in the paper", "here, PyTorch eager, on other data")
    tables = [Table("Figures of the papers beside ours; the data differ", columns, tuple(beside))] if beside else []
    return papers_note(), tables + [_printed(paper, table) for paper in papers for table in paper.tables]


def _beside(paper: Paper, runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    """Yield a line for each table and metric of a paper."""
    for table in paper.tables:
        printed: dict[str, list[str]] = {}
        for column, value in table.own_figures():
            key = str(column.metric)
            write = number if _metric(key).unit else share
            where = table.data if table.own.get("group") or not column.group else column.group
            printed.setdefault(key, []).append(f"{where}: {write(value)}")
        for key, values in printed.items():
            name = f"{_metric(key).label} [{_metric(key).unit or 'share'}]"
            ours = "; ".join(_ours(key, runs, paper.method)) or "not measured"
            yield paper.method, table.number, name, "; ".join(values), ours


def _metric(key: str) -> Metric:
    return METRICS.get(key) or DETECTOR_METRICS[key]


def _ours(key: str, runs: Sequence[Run], method: str) -> Iterator[str]:
    """Yield our own figure of a metric, of each run and policy."""
    for run in runs:
        for row in run.rows:
            if row["method"] != method or not is_eager(row) or not measured(row):
                continue
            if key in DETECTOR_METRICS and row.get(key) is not None:
                yield f"{run.data}: {share(row[key])}"
            elif key in (row.get("figures") or {}):
                write = writer_of(key)
                yield f"{run.data}, {row.get('policy')}: {interval(row['figures'][key]['mean'], write)}"


def _printed(paper: Paper, table: PaperTable) -> Table:
    titles = tuple(f"{column.group}: {column.name}" if column.group else column.name for column in table.columns)
    doubts: dict[str, list[str]] = {}
    for title, column in zip(titles, table.columns, strict=True):
        if column.why:
            doubts.setdefault(column.why, []).append(title)
    named = [f"{', '.join(doubted)}: {why}" for why, doubted in doubts.items()]
    count = f"n = {table.n}" if table.n else "n not given"
    return Table(
        f"{paper.method}, table {table.number}: {table.caption}",
        titles,
        tuple(tuple(NONE if cell is None else cell for cell in row) for row in table.rows),
        (paper.citation, f"{table.data}; {count}", *([table.note] if table.note else []), *named),
        detail=True,
    )
