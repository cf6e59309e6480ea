"""Guards the papers' tables: every cell has a column, every metric is one of ours, and every number is the paper's."""

import re

import pytest

from samkit.benchmarks.record.figures import DETECTOR_METRICS, METRICS
from samkit.benchmarks.report.papers import NOTE
from samkit.errors import InputRefused
from samkit.methods import list_methods
from samkit.protocols.papers import FOLDER, load_papers

METHODS = ("brainseg-dmif", "lmsfe-sam", "lora-sam", "m-sam", "medsam-yolo")
PAPERS = {paper.method: paper for paper in load_papers(FOLDER)}
TABLES = [(paper.method, table) for paper in PAPERS.values() for table in paper.tables]


def named(value):
    return value if isinstance(value, str) else f"table {value.number}"


def test_the_five_papers_are_there():
    assert tuple(PAPERS) == METHODS
    assert set(METHODS) <= set(list_methods())


def test_a_file_that_is_no_paper_is_refused_by_its_name(tmp_path):
    (tmp_path / "x.json").write_text('{"method": "sam", "tables": [], "licence": "", "citation": "", "beauty": 1}')

    with pytest.raises(InputRefused, match=r"x\.json holds no paper's tables \(a paper has 'beauty'"):
        load_papers(tmp_path)


@pytest.mark.parametrize(("method", "table"), TABLES, ids=named)
def test_every_cell_has_a_column_and_every_column_a_metric_or_a_reason(method, table):
    assert {len(row) for row in table.rows} == {len(table.columns)}
    for column in table.columns[1:]:
        assert column.metric in {*METRICS, *DETECTOR_METRICS} if column.metric else column.why
    for row in table.rows:
        assert row[0]
        assert all(cell is None or re.fullmatch(r"\d+(\.\d+)?", cell) for cell in row[1:])


@pytest.mark.parametrize(("method", "table"), TABLES, ids=named)
def test_figures_of_the_own_method_are_in_our_unit(method, table):
    figures = table.own_figures()

    assert figures or not any(column.metric for column in table.columns)
    for column, value in figures:
        metric = {**METRICS, **DETECTOR_METRICS}[column.metric]
        assert 0 < value < (60 if metric.unit == "mm" else 1)


def test_a_known_figure():
    figures = {column.group: value for column, value in PAPERS["m-sam"].tables[0].own_figures()}
    assert figures["BraTS21"] == pytest.approx(0.9208)


def test_mean_distance_of_lora_sam_is_not_taken_for_a_hausdorff_distance():
    found = {column.metric for table in PAPERS["lora-sam"].tables for column in table.columns if "HD" in column.name}
    assert found == {"mean_distance_mm"}


@pytest.mark.parametrize(("method", "table"), TABLES, ids=named)
def test_every_number_stands_in_the_papers_text(method, table, shared):
    text = (shared / "papers" / f"{method}.txt").read_text()
    text = re.sub(r"(\.\d{3}) (\d)(?![\d.])", r"\1\2", text)  # 0.892 7 is 0.8927
    numbers = set(re.findall(r"\d+(?:\.\d+)?", text))
    missing = [cell for row in table.rows for cell in row[1:] if cell is not None and cell not in numbers]
    assert missing == []


def test_the_note_denies_targets():
    assert "no figure here is a target that was met" in NOTE
