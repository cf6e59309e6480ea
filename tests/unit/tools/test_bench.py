"""Guards `make bench`: its commands are ones that samkit takes; one that fails neither hides nor stops the others."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

from samkit.benchmarks.cli import bench as sam_bench
from samkit.export.cli import export
from samkit.export.plan import plan_export
from samkit.methods import list_methods
from tools import bench

OUT = Path("bench")


COMMANDS = {
    name: bench.measure_commands(OUT, list_methods(), table)
    for name, table in (("report", bench.PHANTOMS), ("real", bench.real_images(Path("data"))), ("cuda", bench.CUDA))
}


def test_every_export_command_is_one_that_sam_export_takes():
    for command in bench.export_commands(OUT, list_methods(), full_size=True):
        export.make_context(command[0], command[1:])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_measure_is_a_command_that_sam_bench_takes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = COMMANDS[name]
    for command in commands.values():
        for word in command:
            if word.startswith(("bench/exports/", "data/")):
                Path(word).mkdir(parents=True, exist_ok=True)
    for path in commands:
        path.touch()

    for command in (*commands.values(), bench.report_command(OUT, name, list(commands))):
        context = sam_bench.make_context("sam-bench", command[1:])
        found = sam_bench.get_command(context, command[1])
        found.make_context(command[1], command[2:])


def test_full_size_exports_have_the_graphs_that_are_timed():
    words = bench.PHANTOMS["full-size"].words.split()
    timed = {after for word, after in pairwise(words) if word == "--graph"}

    assert timed == {"image_encoder", "mask_decoder"}
    for name in bench.FULL_SIZE:
        assert timed <= set(plan_export(name, size="full").graphs)


def test_what_needs_a_server_is_left_out_without_one_and_else_takes_one_method():
    alone = bench.measure_commands(OUT, ["sam"], bench.PHANTOMS, is_served=False)
    served = bench.measure_commands(OUT, ["sam"], bench.PHANTOMS)

    assert [path.stem for path in alone] == ["accuracy", "latency", "baselines"]
    assert [path.stem for path in served] == ["accuracy", "latency", "baselines", "load"]
    assert served[OUT / "load.json"].count("--export") == 1
    assert "torch,onnxruntime,onnxruntime-fp16" in alone[OUT / "accuracy.json"]
    assert "torch,onnxruntime,onnxruntime-fp16,triton" in served[OUT / "accuracy.json"]


def test_a_folder_of_scans_may_have_spaces_in_its_name():
    for command in bench.measure_commands(OUT, ["sam"], bench.real_images(Path("my data"))).values():
        assert "my data/breast-ultrasound" in command


def test_every_method_is_measured_and_has_real_images():
    words = [word for command in COMMANDS["report"].values() for word in command]

    assert set(bench.REAL) == set(list_methods())
    assert {f"bench/exports/{name}" for name in list_methods()} <= set(words)


def test_commands_that_fail_together_are_named_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_program", lambda command: [sys.executable, "-c", command[-1]])
    touch = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"

    failed = bench.run_together([["a", "raise SystemExit(1)"], ["b", "raise SystemExit(3)"], ["c", touch]])

    assert sorted(command[0] for command in failed) == ["a", "b"]
    assert (tmp_path / "ran").exists()
