"""Guards `sam-bench latency`: what meets what, that unequal outputs are no times, and its rows. No time is judged."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from samkit.benchmarks.latency import baselines as rivals
from samkit.benchmarks.latency import cold_start, stages
from samkit.benchmarks.latency import command as latency
from samkit.benchmarks.latency import graphs as graph_rows
from samkit.benchmarks.latency.command import measure_latency, not_run_rows
from samkit.benchmarks.latency.graphs import GraphTimer
from samkit.benchmarks.measure import machine, turns
from samkit.benchmarks.measure.processes import resident_mb
from samkit.benchmarks.record import run as run_file
from samkit.benchmarks.record.rows import to_dict
from samkit.errors import ExportError, ManifestError, MissingDependencyError, PromptError, SamkitError
from samkit.export.export import run_export
from samkit.export.plan import plan_export
from samkit.manifest import Manifest

pytestmark = pytest.mark.xdist_group("export")  # so that exports and rows are made once

RIVALS = {"onnxruntime-no-fold", "torch", "torch-autocast"}
"""Those that every graph meets here; torch.compile takes many seconds for each, and has a test of its own."""


@pytest.fixture(scope="module")
def quick():
    """One run a turn, little to multiply and to copy, and torch.compile without a C++ compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_rows, "TURN_SECONDS", 0.0)
        patch.setattr(turns, "QUIET_SECONDS", 0.0)
        patch.setattr(machine, "COPIED_MB", 1)
        patch.setattr(machine, "SIDE", 64)
        patch.setattr(rivals, "COMPILER", "eager")
        yield patch


@pytest.fixture(scope="module")
def sam_export(tmp_path_factory):
    """An export of a method of slices, in float32 alone."""
    folder = tmp_path_factory.mktemp("exports") / "sam"
    run_export(plan_export("sam", size="tiny"), folder)
    return folder


@pytest.fixture(scope="module")
def run(tiny_export, quick):
    """Graphs and stages of M-SAM."""
    return measure_latency([tiny_export], rounds=2, threads=1, cold_starts=1, rivals=RIVALS)


@contextmanager
def timing(folder, **options):
    """Give the timer of an export's graphs, one round, on one thread."""
    with machine.Machine(1) as here, GraphTimer(folder, rounds=1, machine=here, memory=False, **options) as timer:
        yield timer


def of(run, **wanted):
    return [row for row in map(to_dict, run.rows) if all(row.get(key) == value for key, value in wanted.items())]


# --- Graphs ---


def test_every_graph_meets_every_rival(run):
    for graph in ("image_encoder", "mask_decoder"):
        rows = of(run, graph=graph, device="cpu")
        assert [row["backend"] for row in rows if row["backend"] != "onnxruntime"] == sorted(RIVALS)
        assert [row["precision"] for row in rows if row["backend"] == "onnxruntime"] == ["fp32", "fp16"]


def test_rewritten_graph_meets_what_does_its_work_in_upstreams_formulation(sam_export, quick):
    with timing(sam_export, rivals=["torch"]) as timer:
        ours, eager, absent = timer.rows(["mask_decoder_no_mask"])

    assert (eager["graph"], eager["official"]) == ("mask_decoder_no_mask", "mask_decoder")
    assert "official" not in ours
    assert ours["relative_error"] < 1e-5
    assert absent["not_run"] == "the export has no float16 files; export with --fp16"


def test_all_compute_the_same_and_say_how_far_they_are_from_pytorch_eager(run):
    """Even in half precision, as far as that goes; a wrong input would show here."""
    for row in (row for row in map(to_dict, run.rows) if "graph" in row and "p50_ms" in row):
        error = row["relative_error"]
        if row["precision"] == "fp32":
            assert error < 1e-5
        else:
            assert 1e-6 < error < 5e-2
        assert row["backend"] != "torch" or error == 0


def test_rows_have_all_samples_their_share_of_the_machine_and_memory_of_a_process_of_its_own(run):
    assert len({row.identity.key() for row in run.rows}) == len(run.rows)
    for row in of(run, backend="onnxruntime", device="cpu"):
        if "graph" in row:
            assert len(row["samples_ms"]) == row["turns"] == 2
            assert row["limit_share"] > 0
            assert row["gflop"] > 0
            assert row["threads"] == 1
            assert 0 < row["loaded_mb"] <= row["peak_mb"]
            assert row["above_session_mb"] == pytest.approx(row["peak_mb"] - row["loaded_mb"], abs=0.1)
    assert all("float32" in row["note"] for row in of(run, backend="onnxruntime", precision="fp16", device="cpu"))


def test_more_work_counts_more_operations(sam_export, quick):
    with (
        machine.Machine(1) as here,
        GraphTimer(sam_export, rounds=1, machine=here, rivals=(), memory=False) as timer,
    ):
        rows = list(timer.rows(["image_encoder", "mask_decoder"], batches=(1, 2), points=(1, 4)))

    gflop = {(row["graph"], row["batch"], row["points"]): row["gflop"] for row in rows if "gflop" in row}
    assert gflop["image_encoder", 2, None] == pytest.approx(2 * gflop["image_encoder", 1, None], rel=1e-3)
    assert gflop["mask_decoder", 1, 1] < gflop["mask_decoder", 1, 4] < gflop["mask_decoder", 2, 4]
    assert {row["backend"] for row in rows} == {"onnxruntime"}


def test_what_a_graph_does_not_take_is_a_row_or_refused(sam_export, quick):
    with timing(sam_export, rivals=()) as timer:
        (row,) = timer.rows(["image_encoder"], batches=(9,))

    assert row["not_run"] == "the graph takes batch=1..8"
    with pytest.raises(PromptError, match="none of these exports has a graph decoder, they have image_encoder, "):
        measure_latency([sam_export], rounds=1, graphs=["image_encoder", "decoder"])


def test_compiled_network_computes_the_same(sam_export, quick):
    with timing(sam_export, rivals=["torch-compile"]) as timer:
        rows = {row["backend"]: row for row in timer.rows(["image_encoder"])}

    assert 0 <= rows["torch-compile"]["relative_error"] < 1e-5
    assert rows["torch-compile"]["p50_ms"] > 0


def test_bound_tensors_give_the_same_outputs(tiny_export, quick):
    """As on CUDA: embeddings go from one runner to another without a copy."""
    with timing(tiny_export, rivals=(), binds=True) as timer:
        rows = list(timer.rows(None))
    assert len(rows) == 4
    assert all(row["relative_error"] < (1e-5 if row["precision"] == "fp32" else 5e-2) for row in rows)


def test_weights_stay_apart_from_lora(tiny_export, quick):
    with timing(tiny_export) as timer:
        network = timer._network
    assert any("linear_a" in name for name, _ in network.named_parameters())
    assert not any(module.folded for module in network.modules() if hasattr(module, "folded"))


@pytest.mark.parametrize("wrong", [lambda value: 1.1 * value, lambda value: value * np.nan])
def test_time_of_something_that_computes_another_thing_is_an_error(wrong, sam_export, quick, monkeypatch):
    honest = graph_rows._graph_run

    def planted(runner, feed, device):
        run = honest(runner, feed, device)
        return lambda: {name: wrong(value) for name, value in run().items()}

    monkeypatch.setattr(graph_rows, "_graph_run", planted)
    with timing(sam_export, rivals=["torch"]) as timer:
        ours, eager, *_ = timer.rows(["image_encoder"])

    assert "it computes something else: image_embeddings is" in ours["error"]
    assert "p50_ms" not in ours
    assert eager["p50_ms"] > 0


def test_what_torch_cannot_compile_is_an_error_row_and_the_others_have_their_times(sam_export, quick, monkeypatch):
    def refuse(function, backend):
        def compiled(*tensors):
            raise RuntimeError("no C++ compiler\nand much more")

        return compiled

    monkeypatch.setattr(torch, "compile", refuse)
    with timing(sam_export, rivals=["torch", "torch-compile"]) as timer:
        rows = {row["backend"]: row for row in timer.rows(["image_encoder"]) if "not_run" not in row}

    assert rows["torch-compile"]["error"] == "RuntimeError: no C++ compiler"
    assert all("p50_ms" in row for backend, row in rows.items() if backend != "torch-compile")


def test_what_fails_is_an_error_row_and_the_others_have_their_times(sam_export, quick, monkeypatch):
    """ONNX Runtime's own errors are no SamkitError; nor is a broken export of --no-fold worth the whole run."""

    def refuse(network, graph, path):
        raise ExportError("no file of --no-fold")

    monkeypatch.setattr(graph_rows, "write_official", refuse)
    with timing(sam_export, rivals=["torch", "onnxruntime-no-fold"]) as timer:
        rows = {row["backend"]: row for row in timer.rows(["image_encoder"]) if "not_run" not in row}

    assert rows["onnxruntime-no-fold"]["error"] == "ExportError: no file of --no-fold"
    assert all(rows[backend]["p50_ms"] > 0 for backend in ("onnxruntime", "torch"))


# --- Stages ---


def test_stages_are_those_of_a_reader(run):
    count = stages.CLICKS
    for backend, precision in (("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16")):
        rows = {row["stage"]: row for row in of(run, backend=backend, precision=precision, device="cpu")
                if "stage" in row}  # fmt: skip
        assert tuple(rows) == stages.STAGES
        samples = {stage: len(row["samples_ms"]) for stage, row in rows.items()}
        assert samples == {"cold_start": 1, "load": 2, "encode": 2, "click": 2 * (count - 1), "undo": 2 * count,
                           "end_to_end": 2}  # fmt: skip
        assert rows["cold_start"]["peak_mb"] > 50
        assert rows["end_to_end"]["p50_ms"] > rows["load"]["p50_ms"]


def test_method_without_prompts_has_no_clicks_to_wait_for(quick):
    absent = stages._measured(stages._Contender(("torch", "fp32"), Path(), {}), "click", None)

    assert absent == {"not_run": "the method takes no prompt, and decides on a whole scan: end_to_end"}


def test_session_with_another_mask_is_an_error(sam_export, quick, monkeypatch):
    honest = stages._visit

    def planted(session, reading):
        seconds, mask = honest(session, reading)
        return seconds, mask if "torch" in session.providers["image_encoder"][0] else ~mask

    monkeypatch.setattr(stages, "_visit", planted)
    with machine.Machine(1) as here:
        rows = list(stages.time_stages(sam_export, rounds=1, machine=here, cold_starts=0))

    assert all("it came to another mask" in row["error"] for row in rows if row["backend"] == "onnxruntime")
    assert all("p50_ms" in row for row in rows if row["backend"] == "torch")


def test_session_that_fails_is_an_error_and_the_others_have_their_times(sam_export, quick, monkeypatch):
    honest = stages._visit

    def planted(session, reading):
        if "torch" not in session.providers["image_encoder"][0]:
            raise RuntimeError("out of memory\nat great length")
        return honest(session, reading)

    monkeypatch.setattr(stages, "_visit", planted)
    with machine.Machine(1) as here:
        rows = list(stages.time_stages(sam_export, rounds=1, machine=here, cold_starts=0))

    assert {row["error"] for row in rows if row["backend"] == "onnxruntime"} == {"RuntimeError: out of memory"}
    assert all("p50_ms" in row for row in rows if row["backend"] == "torch")


def test_memory_of_a_cold_start_is_not_that_of_its_parent(sam_export, tmp_path):
    """The kernel hands `ru_maxrss` down to a child."""
    ballast = np.ones(400_000_000, np.uint8)
    reading = stages.Reading.make(Manifest.load(sam_export).plan, tmp_path)

    _, peak = cold_start.measure_cold_start(
        sam_export, reading.files, reading.clicks[:1], "onnxruntime", "fp32", threads=1
    )

    assert peak < ballast.nbytes / 1e6 < resident_mb()


def test_cold_start_that_fails_says_so(sam_export, tmp_path, capfd):
    reading = stages.Reading.make(Manifest.load(sam_export).plan, tmp_path)

    with pytest.raises(SamkitError, match="onnxruntime fp16 gave no first mask"):
        cold_start.measure_cold_start(sam_export, reading.files, reading.clicks[:1], "onnxruntime", "fp16")
    assert "export again with --fp16" in capfd.readouterr().err


# --- The run and the command ---


def test_what_nobody_could_measure_has_rows_that_say_why(run):
    for graph in ("image_encoder", "mask_decoder"):
        rows = [row for row in of(run, graph=graph, device="cuda") if row.get("points") in (None, 1)]
        assert {(row["backend"], row["precision"]) for row in rows} == {*latency.ON_GPU, latency.TENSORRT}
        assert all("p50_ms" not in row and row["not_run"] for row in rows)
    assert {row["backend"] for row in of(run, stage="click", device="cuda")} == {"onnxruntime", "torch", "tensorrt"}


def test_on_a_machine_with_a_gpu_what_was_not_asked_for_says_how_to_ask(run, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: [{"name": "a GPU"}])

    assert {row["not_run"] for row in not_run_rows([to_dict(row) for row in run.rows])} == {latency.NOT_ASKED}


@pytest.mark.parametrize("part", latency.PARTS)
def test_changed_file_is_refused_and_no_row(part, sam_export, tmp_path):
    folder = shutil.copytree(sam_export, tmp_path / "export")
    (folder / "mask_decoder.onnx").write_bytes(b"other graph")

    with pytest.raises(ManifestError, match="changed since it was exported"):
        measure_latency([folder], rounds=1, parts=[part])


def test_run_goes_through_its_file(run, tmp_path):
    run.save(tmp_path / "run.json")

    assert run_file.load_run(tmp_path / "run.json").rows == run.rows
    assert [export["method"] for export in run.exports] == ["m-sam"]
    assert run.machine["threads"] == 1


def test_several_numbers_of_threads_are_told_apart(sam_export, quick):
    found = measure_latency([sam_export], rounds=1, threads=(1, 2), parts=["graphs"], graphs=["mask_decoder"],
                            rivals=())  # fmt: skip

    assert {row["threads"] for row in of(found, backend="onnxruntime")} == {1, 2}
    assert set(found.machine["at_threads"]) == {"1", "2"}


def test_command_saves_says_what_was_unsettled_and_fails_where_our_files_did(run, monkeypatch, tmp_path):
    bad = {**of(run, backend="onnxruntime")[0], "error": "it computes something else"}
    unsettled = {**run.machine, "unsettled": ["load before the first run was 3"]}
    broken = run_file.Run(**{**run.__dict__, "rows": (bad,), "machine": unsettled})
    monkeypatch.setattr(latency, "measure_latency", lambda exports, **options: broken)

    out = tmp_path / "new" / "latency.json"
    ended = CliRunner().invoke(latency.command, ["--export", str(tmp_path), "--json", str(out)])

    assert isinstance(ended.exception, SamkitError)
    assert "m-sam image_encoder onnxruntime fp32: it computes something else" in str(ended.exception)
    assert "UNSETTLED MACHINE: load before the first run was 3" in ended.stderr
    assert run_file.load_run(out).rows[0]["error"] == "it computes something else"


def test_without_a_device_the_command_is_one_sentence(sam_export, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(MissingDependencyError, match="finds no CUDA device, and --device cuda needs one"):
        measure_latency([sam_export], rounds=1, device="cuda")
