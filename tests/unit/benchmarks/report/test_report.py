"""Guards the page of `sam-bench report`: it asks nobody for anything, takes no markup from a run, hides no failure."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from samkit.benchmarks.cli import main
from samkit.benchmarks.report import command as report_command
from samkit.benchmarks.report.command import render
from samkit.errors import InputRefused, MissingDependencyError
from samkit.protocols.papers import FOLDER

KINDS = ("accuracy", "latency", "load")


class Page(HTMLParser):
    """What a browser would make of a page: its tags with attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def every(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture
def runs(accuracy_run, latency_run, load_run):
    return [accuracy_run, latency_run, load_run]


def test_the_page_asks_no_other_host_for_anything(runs):
    text = render(runs)
    page = Page(text)

    policy = [tag["content"] for tag in page.every("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form", "img"}
    asked = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
    ]
    assert asked
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in asked)
    assert all(found.startswith("url(#") for found in re.findall(r"url\([^)]*", text))
    assert "@import" not in text
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_every_reference_within_the_page_is_to_one_thing_in_it(runs):
    page = Page(render(runs))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]

    wanted = {value for _, tag in page.tags for name, value in tag.items() if name.endswith("href") and value[0] == "#"}

    assert len(ids) == len(set(ids))
    assert {value[1:] for value in wanted} <= set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_gives_a_page_with_plots_and_tables(kind, request):
    page = Page(render([request.getfixturevalue(f"{kind}_run")]))

    assert page.every("table")
    assert [tag for tag in page.every("figure") if tag.get("class") == "plot"]


def test_the_same_runs_give_the_same_page(runs):
    assert render(runs) == render(runs)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$a_b^$"])
def test_names_are_text_whatever_they_hold(made, name):
    def page_of(name):
        row = made.accuracy("sam", "onnxruntime", flipped=2, cases=(name, "b")) | {"failures": [name]}
        return Page(render([made.run("accuracy", [row], command=("sam-bench", name), notes=(name,))]))

    plain, page = page_of("a"), page_of(name)

    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.text.count(name) == len(("failure on top", "command", "note", "failure under a table", "case"))


def test_a_method_with_marks_is_text_in_plots_too(made):
    page = render([made.run("latency", [made.latency("<b>$x$</b>", "torch", 5, stage="click")])])

    assert "<b>$x$" not in page
    assert "&lt;b&gt;$x$&lt;/b&gt; small click" in page


def test_a_failed_gate_stands_on_top_with_its_sentence(accuracy_run):
    before_sections = Page(render([accuracy_run]).split("<section")[0]).text

    assert "Gate FAILED in 1 of 4 rows" in before_sections
    assert "mask_decoder onnxruntime fp16: phantom 1, click 2: Dice 0.994" in before_sections
    assert "not run: TensorRT fp16" in before_sections


def test_a_gate_that_passed_says_so(made):
    page = Page(render([made.run("accuracy", [made.accuracy("sam", "onnxruntime")])]))

    assert "Gate passed in all 1 rows" in page.text
    assert "FAILED" not in page.text


def test_a_row_that_is_an_error_fails_the_gate(made):
    rows = [made.accuracy("sam", "onnxruntime"), made.row("accuracy", "sam", "triton", stage="masks", error="it fell")]

    text = Page(render([made.run("accuracy", rows)]).split("<section")[0]).text

    assert "Gate FAILED in 1 of 2 rows" in text
    assert "passed in all" not in text


def test_a_click_at_a_glance_is_of_the_quickest_backend_alone(made):
    rows = [made.latency(name, backend, ms, precision, stage="click", spread=0)
            for name, backend, precision, ms in (
                ("sam", "onnxruntime", "fp32", 6), ("m-sam", "onnxruntime", "fp32", 9),
                ("sam", "onnxruntime", "fp16", 40), ("sam", "torch", "fp32", 1))]  # fmt: skip

    text = Page(render([made.run("latency", rows)]).split("<section")[0]).text

    assert "A click takes 6 to 9 ms" in text
    assert "the median of each method, with ONNX Runtime fp32" in text


def test_readers_held_are_those_answered_in_time_and_without_errors(made, load_run):
    late = [replace(row, limit_ms=100.0) for row in load_run.rows]

    texts = [Page(render([replace(load_run, rows=tuple(rows))]).split("<section")[0]).text
             for rows in (late, late[-2:-1])]  # fmt: skip

    assert "2 readers held at once" in texts[0]
    assert "m-sam, closed: 2, p95 of a click" in texts[0]
    assert "2 levels beyond the limit, or with errors" in texts[0]
    assert "No reader was held" in texts[1]


def test_banners_tell_weights_image_data_and_an_unsettled_machine(accuracy_run, latency_run):
    exports = ({**accuracy_run.exports[0], "weights": "random", "demonstration": False},)
    busy = replace(latency_run, exports=exports, machine={**latency_run.machine, "settled": False, "unsettled": ["x"]})

    text = " ".join(Page(render([accuracy_run, busy])).text.split())

    assert "Not a medical device." in text
    assert "DEMONSTRATION WEIGHTS (m-sam, medsam-yolo):" in text
    assert "RANDOM WEIGHTS (m-sam):" in text
    assert "This file holds image data" in text
    assert "The machine was NOT SETTLED during latency: x" in text
    assert "This file holds image data" not in Page(render([latency_run])).text


def test_each_case_shows_the_row_that_disagrees_the_most(made):
    rows = [made.accuracy("sam", "onnxruntime", precision, flipped=flipped, cases=("a",))
            for precision, flipped in (("fp32", 1), ("fp16", 3))]  # fmt: skip

    page = Page(render([made.run("accuracy", rows)]))

    text = " ".join(page.text.split())
    assert len([tag for tag in page.every("article") if tag.get("class") == "case"]) == 1
    assert "ONNX Runtime fp16 (trained): 3 voxels of this slice differ" in text
    assert "ONNX Runtime fp32 (trained): 1" in text
    assert [tag["aria-label"] for tag in page.every("svg") if "aria-label" in tag] == [
        "image", "PyTorch's mask", "the export's mask", "difference",
    ]  # fmt: skip


def test_masks_without_a_difference_are_shown_folded(made):
    text = render([made.run("accuracy", [made.accuracy("sam", "onnxruntime", cases=("a", "b"))])])

    assert "No voxel differs in any case." in text
    assert text.index("2 cases in which no voxel differs") < text.index('<article class="case">')


def test_colours_of_the_difference_are_where_each_mask_is_alone(made):
    import base64
    import io

    import numpy as np
    from PIL import Image

    row = made.accuracy("sam", "onnxruntime", flipped=3, cases=("a",))
    page = Page(render([made.run("accuracy", [row])]))
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(tag["href"].split(",")[1]))).convert("RGBA"))
        for tag in page.every("image")
    ]

    *_, ours, theirs, difference = pictures
    alone = (difference[..., :3] == (230, 159, 0)).all(-1), (difference[..., :3] == (86, 180, 233)).all(-1)
    assert [int(mask.sum()) for mask in alone] == [2, 1]
    assert np.array_equal(alone[0], (ours[..., 3] > 0) & (theirs[..., 3] == 0))
    assert np.array_equal(alone[1], (ours[..., 3] == 0) & (theirs[..., 3] > 0))


def test_voxels_that_differ_beyond_the_picture_are_counted(made):
    row = made.accuracy("sam", "onnxruntime", flipped=3, cases=("a",))
    row["slices"][0]["flipped"] = 5

    page = Page(render([made.run("accuracy", [row])]))

    assert "5 voxels of this slice differ" in page.text
    assert "difference: 3 of 5 seen here" in page.text


@pytest.mark.parametrize("picture", ["", "no base64!", "bm8gcG5n"])
def test_a_broken_picture_is_refused_by_its_case(made, picture):
    row = made.accuracy("sam", "onnxruntime", cases=("a",))
    row["slices"][0]["found"] = picture

    with pytest.raises(InputRefused, match="a picture of a can't be read"):
        render([made.run("accuracy", [row])])


def test_rows_without_any_figure_still_make_a_page(made):
    for kind in KINDS:
        run = made.run(kind, [made.row(kind, "sam", "torch", stage="x", error="it fell over")], machine={}, exports=())
        assert "it fell over" in render([run])


def test_an_axis_of_times_has_short_numbers(made):
    rows = [made.latency("sam", backend, ms, stage="click") for backend, ms in (("torch", 0.02), ("triton", 3e6))]

    texts = [text for _, text in re.findall(r"<text([^>]*)>([^<]*)</text>", render([made.run("latency", rows)]))]

    assert {"0.1", "1000", "10k", "1M"} <= set(texts)


def test_samples_are_thinned_before_they_are_drawn(made):
    few, many = (
        render([made.run("latency", [made.latency("sam", "torch", 5, stage="click", count=count)])])
        for count in (120, 4000)
    )

    assert len(many) < 1.3 * len(few)


def test_the_command_writes_page_and_tables(runs, tmp_path, in_process):
    for run in runs:
        run.save(tmp_path / f"{run.kind}.json")
    files = [tmp_path / f"{kind}.json" for kind in KINDS]

    code, out, err = in_process(
        main, "sam-bench", "report", *files, "--out", tmp_path / "new" / "r.html", "--tables", tmp_path / "t.md"
    )

    assert (code, out) == (0, "")
    assert err.split() == [str(tmp_path / "new" / "r.html"), str(tmp_path / "t.md")]
    assert (tmp_path / "new" / "r.html").read_text() == render(runs, FOLDER)
    assert "## Latency: m-sam" in (tmp_path / "t.md").read_text()


def test_a_run_of_a_newer_samkit_is_refused(accuracy_run, tmp_path, in_process):
    replace(accuracy_run, schema_version=99).save(tmp_path / "a.json")

    code, _, err = in_process(main, "sam-bench", "report", tmp_path / "a.json", "--out", tmp_path / "r.html")

    assert code == 3
    assert "has schema 99" in err
    assert not (tmp_path / "r.html").exists()


def test_a_folder_that_is_missing_is_made(accuracy_run, tmp_path, in_process):
    accuracy_run.save(tmp_path / "a.json")

    in_process(main, "sam-bench", "report", tmp_path / "a.json", "--out", tmp_path / "a" / "b" / "r.html")

    assert (tmp_path / "a" / "b" / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_a_backend_that_nobody_knows_appears_by_its_title_or_its_name(made):
    rows = [made.latency("sam", "torch", 5, stage="click"), made.latency("sam", "toy", 5, stage="click"),
            made.latency("sam", "other", 5, stage="click", backend_title="Other Engine")]  # fmt: skip
    page = render([made.run("latency", rows)])

    assert page.count("toy fp32") > 1
    assert page.count("Other Engine fp32") > 1
    assert page == render([made.run("latency", rows)])


def test_a_report_imports_nothing_that_runs_a_network():
    code = "import sys, samkit.benchmarks.report.command as c; print({'torch', 'onnxruntime'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("module", ["jinja2", "samkit.benchmarks.report.plots"])  # which imports Matplotlib
def test_a_report_without_its_libraries_says_what_to_install(module, latency_run, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingDependencyError, match=r"needs Jinja2 and Matplotlib; pip install .*bench"):
        render([latency_run])


def test_figures_of_papers_come_from_a_folder_and_are_missed_aloud(accuracy_run, tmp_path, in_process, monkeypatch):
    accuracy_run.save(tmp_path / "a.json")
    words = ("report", tmp_path / "a.json", "--out", tmp_path / "r.html")
    monkeypatch.setattr(report_command, "FOLDER", tmp_path / "no docs here")

    code, _, err = in_process(main, "sam-bench", *words)
    assert (code, err.count("\n")) == (0, 2)
    assert "give it with --papers" in err
    assert "Figures of the papers" not in (tmp_path / "r.html").read_text()

    assert in_process(main, "sam-bench", *words, "--papers", FOLDER)[2] == f"{tmp_path / 'r.html'}\n"
    assert "Figures of the papers beside ours" in (tmp_path / "r.html").read_text()
