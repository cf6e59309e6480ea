"""Guards the tables of runs: every row that ran is in them, what did not says why, Markdown shows words as they are."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from samkit.benchmarks.record.figures import METRICS, number, overlap
from samkit.benchmarks.report import tables
from samkit.benchmarks.report.command import markdown
from samkit.benchmarks.report.kinds import tables_of
from samkit.benchmarks.report.papers import paper_tables
from samkit.protocols.papers import FOLDER

KINDS = ("accuracy", "latency", "load")


@pytest.fixture
def runs(accuracy_run, latency_run, load_run):
    return [accuracy_run, latency_run, load_run]


def find(found, title):
    """Return the table whose title begins so, as one dict for each row."""
    (table,) = (table for table in found if table.title.startswith(title))
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows], table


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_of_a_table_has_as_many_cells_as_columns(kind, request):
    found = tables_of(request.getfixturevalue(f"{kind}_run"))

    assert found
    assert {len(row) - len(table.columns) for table in found for row in table.rows} == {0}


def test_what_was_not_run_and_what_failed_stand_in_their_columns_with_the_reason(latency_run):
    (row,), table = find(tables_of(latency_run), "Time of each graph: median")

    assert row["TensorRT fp16"] == "not run"
    assert row["torch.compile fp32"] == "error"
    assert row["ONNX Runtime fp32"] == "50.3 (0.63x)"
    assert "not run: TensorRT fp16: no TensorRT here (m-sam small image encoder)" in table.notes
    assert "error: torch.compile fp32: no C++ compiler was found (m-sam small image encoder)" in table.notes


@pytest.mark.parametrize(
    ("backend", "called"), [("onnxruntime", "ONNX Runtime fp16 (CUDA)"), ("tensorrt", "TensorRT fp16")]
)
def test_a_column_says_where_a_backend_ran_unless_it_runs_there_alone(made, backend, called):
    row = made.latency("sam", backend, 5, "fp16", graph="image_encoder") | {"device": "cuda"}

    ((found,), _) = find(tables_of(made.run("latency", [row])), "Time of each graph: median")

    assert called in found


def test_ratios_are_of_the_same_graph_with_the_same_threads(made):
    rows = [made.latency("sam", "torch", 10 * threads, graph="image_encoder", threads=threads) for threads in (1, 4)]
    rows.append(made.latency("sam", "onnxruntime", 20, graph="image_encoder", threads=4))

    one, four = find(tables_of(made.run("latency", rows)), "Time of each graph: median")[0]

    assert (one["threads"], one["ONNX Runtime fp32"]) == ("1", "-")
    assert (four["threads"], four["ONNX Runtime fp32"]) == ("4", "19.9 (0.5x)")


def test_two_samples_have_a_ratio_and_no_interval(made):
    rows = [made.latency("sam", backend, 5, stage="load", count=2) for backend in ("torch", "onnxruntime")]

    (_, found), _ = find(tables_of(made.run("latency", rows)), "Time that a reader waits, by stage: perc")

    assert found["times PyTorch eager [95 %]"] == "1"


def test_a_backend_that_was_not_run_at_all_stands_in_every_line_of_its_method(made):
    rows = [made.accuracy(name, "onnxruntime", policy=policy)
            for name, policy in (("sam", "trained"), ("sam", "centre"), ("medsam", "trained"))]  # fmt: skip
    rows.append(made.row("accuracy", "sam", "tensorrt", "fp16", stage="masks", not_run="no TensorRT here"))

    found, _ = find(tables_of(made.run("accuracy", rows)), "Masks against PyTorch float32: worst Dice")

    assert [row["TensorRT fp16"] for row in found] == ["not run", "not run", "-"]


def test_one_reason_of_many_rows_is_said_once(made):
    rows = [made.row("latency", "sam", "torch", stage=stage, not_run="no GPU") for stage in "abcde"]

    (table,) = tables_of(made.run("latency", rows))

    assert table.notes[-1] == "not run: PyTorch eager fp32: no GPU"


def test_a_reason_of_some_rows_names_the_first_of_them(made):
    rows = [made.row("latency", "sam", "torch", stage=stage, not_run="no GPU") for stage in "abcde"]
    rows.append(made.latency("sam", "torch", 5, stage="f"))

    (table, _) = tables_of(made.run("latency", rows))

    assert table.notes[-1] == "not run: PyTorch eager fp32: no GPU (sam small a, sam small b, sam small c and 2 more)"


def test_a_backend_that_stopped_sooner_says_after_which_click(made):
    rows = [made.accuracy("sam", "torch", reference=True), made.accuracy("sam", "triton", worse=0.1)]
    for case, clicks in zip(rows[1]["cases"], (1, 1, 2), strict=True):
        case["clicks"] = case["clicks"][:clicks]
    rows[1]["notes"] = [f"phantom {n}, click 2: it takes no masks" for n in (1, 2)]
    found = tables_of(made.run("accuracy", rows))

    ((parity,), table) = find(found, "Masks against PyTorch float32: worst Dice")
    truth, _ = find([table for table in found if not table.detail], "Masks against the truth")

    assert parity["Triton fp32"] == "1.0000 (0), to click 1 to 2"
    assert (
        "to click ...: Triton fp32 stopped sooner than PyTorch in sam small trained: it takes no masks" in table.notes
    )
    assert [(row["backend"], row["after click"]) for row in truth] == [
        ("PyTorch eager fp32", "4"), ("PyTorch eager fp32", "1 to 2"), ("Triton fp32", "1 to 2"),
    ]  # fmt: skip
    assert truth[1]["Dice"] == "0.597 [0.530, 0.710]; 0.530"  # 0.55, 0.53 and, after one click more, 0.71


@pytest.mark.parametrize(("cases", "is_few"), [("abcd", True), ("abcde", False)])
def test_intervals_of_few_cases_are_called_what_they_are(made, cases, is_few):
    run = made.run("accuracy", [made.accuracy("sam", "torch", cases=tuple(cases))])

    _, table = find([table for table in tables_of(run) if not table.detail], "Masks against the truth")

    assert any("of fewer than 5 cases" in note for note in table.notes) == is_few


def test_details_are_named_and_not_printed(accuracy_run, capsys):
    tables.show(accuracy_run)

    printed = capsys.readouterr().out
    assert "drift of clicks" not in printed
    assert "not printed: Masks against PyTorch float32: all measures at worst; " in printed
    assert printed.index("FAILED in 1 of 1 rows") < printed.index("worst Dice (most voxels that differ)")


def test_parity_is_the_worst_and_the_gate_is_named(accuracy_run):
    rows, table = find(tables_of(accuracy_run), "Masks against PyTorch float32: worst Dice")

    assert rows[0]["ONNX Runtime fp16"] == "0.9940 (6), FAILED"
    assert rows[0]["ONNX Runtime fp32"] == "1.0000 (0)"
    assert any(note.startswith("FAILED: mask_decoder onnxruntime fp16: phantom 1, click 2") for note in table.notes)
    assert any("fp16 on a CPU is emulated" in note for note in table.notes)


def test_backends_that_print_as_pytorch_are_not_repeated(accuracy_run):
    rows, _ = find([t for t in tables_of(accuracy_run) if not t.detail], "Masks against the truth")

    assert [(row["method"], row["backend"]) for row in rows] == [
        ("m-sam small", "PyTorch eager fp32"),
        ("m-sam small", "ONNX Runtime fp16"),
        ("medsam-yolo small", "PyTorch eager fp32"),
    ]
    assert rows[0]["Dice"] == "0.880 [0.860, 0.900]; 0.860"


def test_clicks_to_a_dice_say_how_many_cases_reached_it(made):
    row = made.accuracy("sam", "torch") | {"clicks_to": {"0.80": [1, None, 3], "0.85": [None, None, None], "0.90": []}}

    ((found,), _) = find(tables_of(made.run("accuracy", [row])), "Clicks to reach")

    assert (found["Dice 0.80"], found["Dice 0.85"]) == ("2 (2 of 3)", "not reached (0 of 3)")


def test_load_has_errors_by_type_and_growth_its_exponent(load_run):
    levels, table = find(tables_of(load_run), "Readers on a server")
    ((growth,), _) = find(tables_of(load_run), "How cost grows")

    assert {row["errors"] for row in levels if row["sessions"] == "8"} == {"3 AtCapacity"}
    assert "think: a reader looks for 2 s on average before the next click" in table.notes
    assert re.fullmatch(r"1 \[0\.99\d*, 1\.01\]", growth["exponent [95 %]"])


def test_a_growth_that_was_not_fitted_says_why_beside_the_others(made):
    lost = made.row("load", "sam", "onnxruntime", stage="click over slices", not_run="one size alone")

    (table,) = tables_of(made.run("load", [made.scaling(), lost]))

    assert table.title.startswith("How cost grows")
    assert table.notes == ("not run: ONNX Runtime fp32: one size alone (sam small click over slices)",)


def test_every_metric_of_a_table_is_defined_in_markdown(accuracy_run):
    text = markdown([accuracy_run])

    assert "## What the metrics are" in text
    assert "| HD95 | mm | lower | The 95th percentile" in text


def test_the_documentation_has_every_metric_as_it_is_defined(accuracy_run):
    text = (Path(__file__).parents[4] / "docs/explanation/benchmarks.md").read_text()
    lines = markdown([accuracy_run]).partition("## What the metrics are\n\n")[2].splitlines()

    assert len(lines) > len(METRICS)
    assert [line for line in lines if line not in text] == []


def test_summary_names_the_worst_method_of_each_backend(runs):
    rows, _ = find(tables.summary_tables(runs), "Masks")
    found = {row["backend"]: row for row in rows}

    assert found["ONNX Runtime fp16"]["gate"] == "FAILED in 1 of 1 rows"
    assert found["ONNX Runtime fp16"]["worst Dice"] == "0.9940 (m-sam)"
    assert found["TensorRT fp16"]["gate"] == "not run"
    assert "PyTorch eager fp32" not in found


def test_a_parity_that_is_nan_is_the_worst(made):
    rows = [made.accuracy(name, "onnxruntime") for name in ("sam", "medsam")]
    rows[0]["parity_dice"] = math.nan

    ((found,), _) = find(tables.summary_tables([made.run("accuracy", rows)]), "Masks")

    assert found["worst Dice"] == "nan (sam)"


def test_papers_stand_beside_what_was_measured_here(accuracy_run):
    said, found = paper_tables([accuracy_run], FOLDER)
    rows, _ = find(found, "Figures of the papers beside ours")

    assert "no figure here is a target" in said
    assert {row["method"] for row in rows} == {"m-sam", "medsam-yolo"}
    ours = next(row for row in rows if (row["method"], row["metric"]) == ("m-sam", "Dice [share]"))
    assert ours["in the paper"].startswith("BraTS21: 0.921; KiTS19: 0.935")
    assert ours["here, PyTorch eager, on other data"] == "phantoms, trained: 0.880 [0.860, 0.900]"


def test_a_doubt_about_several_columns_of_a_paper_is_said_once(made):
    _, found = paper_tables([made.run("accuracy", [made.accuracy("lora-sam", "torch")])], FOLDER)
    (table,) = (table for table in found if table.title.startswith("lora-sam, table 3"))

    assert table.notes[-1].startswith("SAM: HD, SAM-2D: HD, Ours: HD: the paper's HD is the mean distance")
    assert sum("mean distance" in note for note in table.notes) == 1


def test_infinite_distances_are_counted_beside_the_mean_of_the_others(made):
    row = made.accuracy("sam", "torch")
    row["figures"]["hd95_mm"] |= {"not_finite": 1, "worst": math.inf}

    shown = [table for table in tables_of(made.run("accuracy", [row])) if not table.detail]
    ((found,), _) = find(shown, "Masks against the truth")

    assert found["HD95 [mm]"] == "2.4 [2, 2.8]; inf in 1"


def test_markdown_is_the_same_twice_and_after_a_file(runs, tmp_path):
    from samkit.benchmarks.record.run import load_run

    for run in runs:
        run.save(tmp_path / f"{run.kind}.json")

    again = [load_run(tmp_path / f"{run.kind}.json") for run in runs]

    assert markdown(runs) == markdown(runs) == markdown(again)


def test_markdown_says_above_the_tables_what_ran_on_what(latency_run):
    busy = {**latency_run.machine, "settled": False, "unsettled": ["load was 3"]}
    text = markdown([replace(latency_run, machine=busy, notes=("a note",))])

    assert "- command: `sam-bench latency --export exports/m-sam`" in text
    assert "Fabricated 1000" in text
    assert "at abc1234; python 3.11.7" in text
    assert "- settled: NO: load was 3" in text
    assert "- note: a note" in text


def test_markdown_shows_marks_as_they_are(made):
    run = made.run("latency", [made.latency("sam", "a|b <i>", 5, stage="click")])

    assert "a\\|b \\<i\\>" in markdown([run])


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_printed_with_what_they_were_measured_on(kind, request, capsys):
    tables.show(request.getfixturevalue(f"{kind}_run"))

    printed = capsys.readouterr().out
    assert "m-sam small" in printed
    assert f"command: sam-bench {kind} --export exports/m-sam" in printed


def test_rows_without_any_figure_still_make_tables(made):
    lost = {"graph": "image_encoder", "error": "it fell over"}
    for kind in KINDS:
        run = made.run(kind, [made.row(kind, "sam", "torch", policy="trained", **lost)])
        assert "it fell over" in markdown([run])


@pytest.mark.parametrize(("value", "words"), [(0.00012345, "0.000123"), (1.2e-7, "1.2e-07"), (99.96, "100"), (0, "0")])
def test_numbers_keep_three_digits(value, words):
    assert number(value) == words


def test_a_dice_that_is_not_1_does_not_look_like_1():
    assert [overlap(value) for value in (1.0, 0.999999, 0.5, math.inf)] == ["1.0000", "0.9999", "0.5000", "inf"]
