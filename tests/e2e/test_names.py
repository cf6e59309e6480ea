"""What may be handed on names nobody: a patient's name stands in every path, and every command is run beside it.

On the terminal and in a run's own folder names may stand; in a JSON line, a report, a checkpoint, an export, a
benchmark and a repository with --show-names alone. A new command is a row of the table.
"""

from __future__ import annotations

import json
import shutil
from importlib import import_module

import nibabel
import pytest

from samkit.phantoms import write_phantoms

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("names")]

NAME = "Mueller-Anna-1961"

TRAIN = ("sam-train", "samkit.training.cli")
EXPORT = ("sam-export", "samkit.export.cli")
SEGMENT = ("sam-segment", "samkit.segment.cli")
BENCH = ("sam-bench", "samkit.benchmarks.cli")
SERVE = ("sam-serve", "samkit.triton_models.cli")

CHECKPOINTS = ["best.json", "best.safetensors", "last.json", "last.safetensors"]
COMMANDS = [
    (
        TRAIN,
        "--method m-sam --preset tiny --threads 1 --set epochs=1 --data {data} --out {run}",
        CHECKPOINTS,
        "run",
    ),
    (
        TRAIN,
        "--method m-sam --preset tiny --threads 1 --set epochs=1 --data {data} --init {run} --out {again}",
        CHECKPOINTS,
        "again",
    ),
    (EXPORT, "--method m-sam --checkpoint {run} --out {export}", ["*"], "export"),
    (EXPORT, "--verify {export}", [], "export"),
    (
        SEGMENT,
        "--export {export} -i {scan} -o {mask} --clicks {clicks} --report {report} --overlay {overlay}",
        ["report.json"],
        "out",
    ),
    (BENCH, "accuracy --export {export} --data {data} --backends onnxruntime --clicks 1 --json {accuracy}",
     ["accuracy.json"], "out"),
    (BENCH, "latency --export {export} --part graphs --rounds 1 --cold-starts 0 --rival torch --json {speed}",
     ["speed.json"], "out"),
    (BENCH, "report {accuracy} {speed} --out {page}", ["page.html"], "out"),
    (SERVE, "write {export} --out {repository}", ["*"], "repository"),
]  # fmt: skip
"""Program, words, and what of a folder may be handed on."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Return where everything lies, by the words of the commands: below folders called after somebody."""
    ward = tmp_path_factory.mktemp("ward") / NAME
    places = {
        "data": ward / f"data-{NAME}",
        "run": tmp_path_factory.mktemp("plain") / "run",  # a manifest keeps it: PyTorch's original is run from there
        "again": ward / f"again-{NAME}",
        "export": ward / f"export-{NAME}",
        "out": ward / f"out-{NAME}",
        "repository": ward / f"repository-{NAME}",
        "clicks": ward / f"clicks-{NAME}.json",
        "mask": ward / f"out-{NAME}" / f"mask-{NAME}.nii.gz",
        "overlay": ward / f"out-{NAME}" / f"overlay-{NAME}.png",
    }
    places |= {name: places["out"] / f"{name}.json" for name in ("report", "accuracy", "speed")}
    places["page"] = places["out"] / "page.html"
    ward.mkdir()
    places["out"].mkdir()
    write_phantoms(str(places["data"]), cases=2, seed=0, size=44, long_share=0.0)
    for path in [path for path in places["data"].rglob("*") if path.is_file()]:
        path.rename(path.with_name(f"{NAME}-{path.name}"))
    places["scan"] = min((places["data"] / "images").iterdir())
    header = nibabel.load(places["scan"]).header
    places["clicks"].write_text(json.dumps([{"point": [side // 2 for side in header.get_data_shape()], "label": 1}]))
    return places


def run(in_process, places, command, *more):
    """Run a row of the table; return what may be handed on, in one: stdout, and the files."""
    (program, module), words, files, folder = command
    typed = [word.format(**{name: str(path) for name, path in places.items()}) for word in words.split()]
    code, out, err = in_process(import_module(module).main, program, *typed, *more)
    assert code == 0, err
    found = [path for pattern in files for path in places[folder].rglob(pattern) if path.is_file()]
    assert len(found) >= len(files)
    return b"\n".join([out.encode(), *(path.read_bytes() for path in found)])


def test_nothing_that_is_handed_on_has_a_name_unless_it_is_asked_for(in_process, places):
    for command in COMMANDS:
        assert NAME.encode() not in run(in_process, places, command), command
    for command in COMMANDS:
        _, words, *_ = command
        if "--report" in words:
            assert NAME.encode() in run(in_process, places, command, "--show-names")
        if words.startswith("accuracy"):
            handed_on = run(in_process, places, command, "--show-names")
            assert f"data-{NAME}".encode() in handed_on  # what was typed
    shutil.rmtree(places["again"])
    assert NAME.encode() in run(in_process, places, COMMANDS[1], "--show-names")
