"""Guards `sam-bench latency`: what meets what, that unequal outputs are no times, and its rows. No time is judged."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from samkit.benchmarks.cli import bench
from samkit.benchmarks.latency import candidates, cold_start, stages
from samkit.benchmarks.latency import command as latency
from samkit.benchmarks.latency import graphs as graph_rows
from samkit.benchmarks.latency.candidates import rows_of_gpu
from samkit.benchmarks.latency.command import measure_latency
from samkit.benchmarks.latency.graphs import GraphTimer
from samkit.benchmarks.latency.settings import BASELINES, PARTS, LatencySettings
from samkit.benchmarks.measure import machine, turns
from samkit.benchmarks.measure.processes import call_alone, resident_mb
from samkit.benchmarks.record.rows import Absent, Identity, LatencyRow
from samkit.benchmarks.record.run import load_run
from samkit.errors import ExportError, ManifestError, MissingDependencyError, OptionError, SamkitError
from samkit.manifest import Export
from samkit.prompts import prompt_json
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export")]  # so that exports and rows are made once

QUICK = tuple(name for name in BASELINES if name != "torch-compile")
"""Those that every graph meets here; torch.compile takes many seconds for each, and has a test of its own."""


ON_GPU = (("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("torch", "fp32"), ("torch-autocast", "fp16"),
          ("torch-compile", "fp32"))  # fmt: skip


@pytest.fixture(scope="module")
def quick():
    """One run a turn, little to multiply and to copy, and torch.compile without a C++ compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_rows, "TURN_SECONDS", 0.0)
        patch.setattr(turns, "QUIET_SECONDS", 0.0)
        patch.setattr(machine, "COPIED_MB", 1)
        patch.setattr(machine, "SIDE", 64)
        patch.setattr(candidates, "COMPILER", "eager")
        yield patch


@pytest.fixture
def slice_export(export_of):
    """An export of a method of slices, in float32 alone."""
    return export_of("sam-med2d", size="tiny", precision="fp32")


@pytest.fixture(scope="module")
def run(tiny_export, quick):
    """Graphs and stages of M-SAM."""
    return measure_latency([tiny_export], LatencySettings(rounds=2, threads=(1,), cold_starts=1, baselines=QUICK))


@contextmanager
def timing(folder, **asked):
    """Give the timer of an export's graphs, one round, on one thread."""
    settings = LatencySettings(**{"rounds": 1, "parts": ("graphs",), **asked})
    with machine.Machine(1) as here, ExitStack() as held:
        yield GraphTimer(Export.open(folder), here, settings, held)


def of(run, **wanted):
    return [row for row in run.rows if all(getattr(row.identity, key) == value for key, value in wanted.items())]


def by_backend(rows):
    """Those that were measured, and those that failed."""
    return {row.identity.backend: row for row in rows if isinstance(row, LatencyRow) or row.is_failure}


# --- Graphs ---


def test_every_graph_meets_every_baseline(run):
    for graph in ("image_encoder", "mask_decoder"):
        found = [row.identity for row in of(run, graph=graph, device="cpu")]
        assert [one.backend for one in found if one.backend != "onnxruntime"] == sorted(QUICK)
        assert [one.precision for one in found if one.backend == "onnxruntime"] == ["fp32", "fp16"]


def test_rewritten_graph_meets_what_does_its_work_in_upstreams_formulation(slice_export, quick):
    with timing(slice_export, baselines=("torch",), graphs=("mask_decoder_no_mask",)) as timer:
        ours, eager, absent = timer.rows()

    assert (eager.identity.graph, eager.official) == ("mask_decoder_no_mask", "mask_decoder")
    assert ours.official is None
    assert ours.relative_error < 1e-5
    assert absent.reason == "the export has no float16 files; sam-export --fp16 writes them"
    assert not absent.is_failure


def test_all_compute_the_same_and_say_how_far_they_are_from_pytorch_eager(run):
    """Even in half precision, as far as that goes; a wrong input would show here."""
    timed = [row for row in run.rows if row.identity.graph is not None and isinstance(row, LatencyRow)]
    assert timed
    for row in timed:
        if row.identity.precision == "fp32":
            assert row.relative_error < 1e-5
        else:
            assert 1e-6 < row.relative_error < 5e-2
        assert row.identity.backend != "torch" or row.relative_error == 0


def test_rows_have_all_samples_their_share_of_the_machine_and_memory_of_a_process_of_its_own(run):
    assert len({row.identity.key() for row in run.rows}) == len(run.rows)
    for row in of(run, backend="onnxruntime", device="cpu"):
        if row.identity.graph is not None:
            assert len(row.times.samples_ms) == row.turns == 2
            assert row.limit_share > 0
            assert row.gflop > 0
            assert row.identity.threads == 1
            assert 0 < row.loaded_mb <= row.peak_mb
            assert row.above_session_mb == pytest.approx(row.peak_mb - row.loaded_mb, abs=0.1)
    assert all("float32" in row.note for row in of(run, backend="onnxruntime", precision="fp16", device="cpu"))


def test_more_work_counts_more_operations(slice_export, quick):
    asked = {"graphs": ("image_encoder", "mask_decoder"), "batches": (1, 2), "points": (1, 4)}
    with timing(slice_export, baselines=(), **asked) as timer:
        rows = list(timer.rows())

    timed = [row for row in rows if isinstance(row, LatencyRow)]
    gflop = {(row.identity.graph, row.identity.batch, row.identity.points): row.gflop for row in timed}
    assert gflop["image_encoder", 2, None] == pytest.approx(2 * gflop["image_encoder", 1, None], rel=1e-3)
    assert gflop["mask_decoder", 1, 1] < gflop["mask_decoder", 1, 4] < gflop["mask_decoder", 2, 4]
    assert {row.identity.backend for row in rows} == {"onnxruntime"}


def test_what_a_graph_does_not_take_is_a_row_or_refused(slice_export, quick):
    with timing(slice_export, baselines=(), graphs=("image_encoder",), batches=(9,)) as timer:
        (row,) = timer.rows()

    assert row.reason == "the graph takes batch=1..8"
    assert not row.is_failure
    with pytest.raises(OptionError, match="none of these exports has a graph decoder, they have image_encoder, "):
        measure_latency([slice_export], LatencySettings(rounds=1, graphs=("image_encoder", "decoder")))


def test_compiled_network_computes_the_same(slice_export, quick):
    with timing(slice_export, baselines=("torch-compile",), graphs=("image_encoder",)) as timer:
        rows = by_backend(timer.rows())

    assert 0 <= rows["torch-compile"].relative_error < 1e-5
    assert rows["torch-compile"].times.p50_ms > 0


def test_bound_tensors_give_the_same_outputs(tiny_export, quick, monkeypatch):
    """As on CUDA: embeddings go from one runner to another without a copy."""
    monkeypatch.setattr(graph_rows, "OnnxRuntimeRunner", partial(OnnxRuntimeRunner, binds=True))
    with timing(tiny_export, baselines=()) as timer:
        rows = list(timer.rows())
    assert len(rows) == 4
    assert all(row.relative_error < (1e-5 if row.identity.precision == "fp32" else 5e-2) for row in rows)


def test_weights_stay_apart_from_lora(tiny_export, quick):
    with timing(tiny_export) as timer:
        network = timer._network
    assert any("linear_a" in name for name, _ in network.named_parameters())
    assert not any(module.folded for module in network.modules() if hasattr(module, "folded"))


@pytest.mark.parametrize("wrong", [lambda value: 1.1 * value, lambda value: value * np.nan])
def test_time_of_something_that_computes_another_thing_is_an_error(wrong, slice_export, quick, monkeypatch):
    honest = graph_rows._run

    def planted(runner, inputs):
        run = honest(runner, inputs)
        return lambda: {name: wrong(value) for name, value in run().items()}

    monkeypatch.setattr(graph_rows, "_run", planted)
    with timing(slice_export, baselines=("torch",), graphs=("image_encoder",)) as timer:
        ours, eager, *_ = timer.rows()

    assert isinstance(ours, Absent)
    assert ours.is_failure
    assert "it computes something else: image_embeddings is" in ours.reason
    assert eager.times.p50_ms > 0


def test_what_torch_cannot_compile_is_an_error_row_and_the_others_have_their_times(slice_export, quick, monkeypatch):
    def refuse(function, backend):
        def compiled(*tensors):
            raise RuntimeError("no C++ compiler\nand much more")

        return compiled

    monkeypatch.setattr(torch, "compile", refuse)
    with timing(slice_export, baselines=("torch", "torch-compile"), graphs=("image_encoder",)) as timer:
        rows = by_backend(timer.rows())

    assert rows["torch-compile"].reason == "RuntimeError: no C++ compiler"
    assert all(isinstance(row, LatencyRow) for backend, row in rows.items() if backend != "torch-compile")


def test_what_fails_is_an_error_row_and_the_others_have_their_times(slice_export, quick, monkeypatch):
    """ONNX Runtime's own errors are no SamkitError; nor is a broken export of --no-fold worth the whole run."""

    def refuse(network, graph, path, **asked):
        raise ExportError("no file of --no-fold")

    monkeypatch.setattr("samkit.export.graphs.write_graph", refuse)
    with timing(slice_export, baselines=("torch", "onnxruntime-no-fold"), graphs=("image_encoder",)) as timer:
        rows = by_backend(timer.rows())

    assert rows["onnxruntime-no-fold"].reason == "ExportError: no file of --no-fold"
    assert all(rows[backend].times.p50_ms > 0 for backend in ("onnxruntime", "torch"))


# --- Stages ---


def test_stages_are_those_of_a_reader(run):
    count = stages.CLICKS
    for backend, precision in (("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16")):
        found = of(run, backend=backend, precision=precision, device="cpu", graph=None)
        rows = {row.identity.stage: row for row in found}
        assert tuple(rows) == stages.STAGES
        samples = {stage: len(row.times.samples_ms) for stage, row in rows.items()}
        assert samples == {"cold_start": 1, "load": 2, "encode": 2, "click": 2 * (count - 1), "undo": 2 * count,
                           "end_to_end": 2}  # fmt: skip
        assert rows["cold_start"].peak_mb > 50
        assert rows["end_to_end"].times.p50_ms > rows["load"].times.p50_ms


def test_method_without_prompts_has_no_clicks_to_wait_for(quick):
    identity = Identity("brainseg-dmif", "torch", "cpu", "fp32")
    absent = stages.SessionTimer(identity, None, None, None).row("click", None)

    assert absent.reason == "the method takes no prompt, and decides on a whole scan: end_to_end"
    assert (absent.identity.stage, absent.is_failure) == ("click", False)


def timed_stages(folder):
    with machine.Machine(1) as here:
        return list(stages.time_stages(Export.open(folder), here, LatencySettings(rounds=1, cold_starts=0)))


def test_session_with_another_mask_is_an_error(slice_export, quick, monkeypatch):
    honest = stages.visit

    def planted(session, case):
        seconds, mask = honest(session, case)
        return seconds, mask if "torch" in session.providers["image_encoder"][0] else ~mask

    monkeypatch.setattr(stages, "visit", planted)

    for row in timed_stages(slice_export):
        assert isinstance(row, Absent) == (row.identity.backend == "onnxruntime")
        assert isinstance(row, LatencyRow) or "it came to another mask" in row.reason


def test_session_that_fails_is_an_error_and_the_others_have_their_times(slice_export, quick, monkeypatch):
    honest = stages.visit

    def planted(session, case):
        if "torch" not in session.providers["image_encoder"][0]:
            raise RuntimeError("out of memory\nat great length")
        return honest(session, case)

    monkeypatch.setattr(stages, "visit", planted)

    for row in timed_stages(slice_export):
        assert isinstance(row, Absent) == (row.identity.backend == "onnxruntime")
        assert isinstance(row, LatencyRow) or (row.reason, row.is_failure) == ("RuntimeError: out of memory", True)


def first_mask(folder, scratch, **opening):
    case, files = stages.write_case(Export.open(folder), scratch)
    words = {"export": folder, "files": files, "prompts": [prompt_json(case.clicks[0])], "opening": opening}
    return call_alone(cold_start.first_mask, "no first mask came", **words)


def test_memory_of_a_cold_start_is_not_that_of_its_parent(slice_export, tmp_path):
    """The kernel hands `ru_maxrss` down to a child."""
    ballast = np.ones(400_000_000, np.uint8)

    _, found = first_mask(slice_export, tmp_path, backend="onnxruntime", precision="fp32", threads=1)

    assert found["peak_mb"] < ballast.nbytes / 1e6 < resident_mb()


def test_cold_start_that_fails_says_so(slice_export, tmp_path, capfd):
    with pytest.raises(SamkitError, match="no first mask came; the message of its process stands above"):
        first_mask(slice_export, tmp_path, backend="onnxruntime", precision="fp16")
    assert "export again with sam-export --fp16" in capfd.readouterr().err


# --- The run and the command ---


def test_what_nobody_could_measure_has_rows_that_say_why(run):
    for graph in ("image_encoder", "mask_decoder"):
        rows = [row for row in of(run, graph=graph, device="cuda") if row.identity.points in (None, 1)]
        found = {(row.identity.backend, row.identity.precision) for row in rows}
        assert found == {("tensorrt", "fp16"), ("tensorrt-rtx", "fp16"), *ON_GPU}
        assert all(isinstance(row, Absent) and row.reason and not row.is_failure for row in rows)
    clicks = of(run, stage="click", device="cuda")
    assert {row.identity.backend for row in clicks} == {"onnxruntime", "torch", "tensorrt", "tensorrt-rtx"}


def test_on_a_machine_with_a_gpu_what_was_not_asked_for_says_how_to_ask(run, monkeypatch):
    monkeypatch.setattr(candidates, "gpus", lambda: [{"name": "a GPU"}])

    assert {row.reason for row in rows_of_gpu(run.rows)} == {candidates.NOT_ASKED}


@pytest.mark.parametrize("part", PARTS)
def test_changed_file_is_refused_and_no_row(part, slice_export, tmp_path):
    folder = shutil.copytree(slice_export, tmp_path / "export")
    (folder / "mask_decoder.onnx").write_bytes(b"other graph")

    with pytest.raises(ManifestError, match="changed since it was exported"):
        measure_latency([folder], LatencySettings(rounds=1, parts=(part,)))


def test_run_goes_through_its_file(run, tmp_path):
    run.save(tmp_path / "run.json")

    assert load_run(tmp_path / "run.json").rows == run.rows
    assert [export["method"] for export in run.exports] == ["m-sam"]
    assert run.machine["threads"] == 1


def test_several_numbers_of_threads_are_told_apart(slice_export, quick):
    asked = LatencySettings(rounds=1, threads=(1, 2), parts=("graphs",), graphs=("mask_decoder",), baselines=())
    found = measure_latency([slice_export], asked)

    assert {row.identity.threads for row in of(found, backend="onnxruntime")} == {1, 2}
    assert set(found.machine["at_threads"]) == {"1", "2"}


def test_command_saves_says_what_was_unsettled_and_fails_where_our_files_did(run, monkeypatch, tmp_path):
    bad = Absent("latency", of(run, backend="onnxruntime")[0].identity, "it computes something else", is_failure=True)
    unsettled = {**run.machine, "unsettled": ["load before the first run was 3"]}
    broken = replace(run, rows=(bad,), machine=unsettled)
    monkeypatch.setattr(latency, "measure_latency", lambda exports, settings: broken)

    out = tmp_path / "new" / "latency.json"
    ended = CliRunner().invoke(bench, ["latency", "--export", str(tmp_path), "--json", str(out)])

    assert isinstance(ended.exception, SamkitError)
    assert "m-sam image_encoder onnxruntime fp32: it computes something else" in str(ended.exception)
    assert "UNSETTLED MACHINE: load before the first run was 3" in ended.stderr
    assert load_run(out).rows == (bad,)


@pytest.mark.parametrize("option", ["--baseline", "--rival"])
def test_options_become_settings_by_their_names(option, run, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(latency, "measure_latency", lambda exports, settings: asked.append(settings) or run)
    words = ["--export", str(tmp_path), "--json", str(tmp_path / "run.json"), "--batch", "1,4", "--part", "graphs"]

    ended = CliRunner().invoke(bench, ["latency", *words, option, "torch", "--threads", "2"])

    assert ended.exit_code == 0, ended.output
    assert asked == [LatencySettings(threads=(2,), batches=(1, 4), parts=("graphs",), baselines=("torch",))]


def test_without_a_device_the_command_is_one_sentence(slice_export, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(MissingDependencyError, match="finds no CUDA device, and device cuda needs one"):
        measure_latency([slice_export], LatencySettings(rounds=1, device="cuda"))
