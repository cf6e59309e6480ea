"""Guards the command around it all: names of backends, the gate's lines and exit codes, rows of what did not run."""

import shutil
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from samkit.benchmarks import cli
from samkit.benchmarks.accuracy import candidates
from samkit.benchmarks.accuracy import command as accuracy
from samkit.benchmarks.accuracy.candidates import BACKENDS, Compared, choose_backends, open_all
from samkit.benchmarks.accuracy.outcome import what_broke
from samkit.benchmarks.accuracy.settings import AccuracySettings
from samkit.benchmarks.record.rows import read_row
from samkit.benchmarks.record.run import Measured, Run, load_run
from samkit.errors import CheckpointError, OptionError, PromptError, SamkitError
from samkit.manifest import Export


def row(backend="onnxruntime", precision="fp32", device="cpu", **more):
    return {
        "kind": "accuracy", "method": "sam", "manifest": "ab", "backend": backend, "precision": precision,
        "device": device, "stage": "masks", "parity_dice": 1.0, "parity_hd95_mm": 0.0, "flipped_voxels": 0, **more,
    }  # fmt: skip


def run_of(*rows):
    return Run("accuracy", ("sam-bench",), "2026-11-22T00:00:00+00:00", 1.0, (), {}, {}, tuple(map(read_row, rows)))


def broke(*rows, named=()):
    return what_broke(run_of(*rows), [BACKENDS[name] for name in named])


def test_run_without_failures_passes():
    assert broke(row(failures=[]), row("tensorrt", device="cuda", not_run="no GPU"), named=["onnxruntime"]) == ()


def test_each_backend_gets_one_line_and_the_last_is_the_error(capsys, tmp_path):
    rows = [row(failures=["first", "second"]), row(failures=["third"]), row(precision="fp16", failures=["fourth"])]
    with pytest.raises(SamkitError, match=r"^fourth; export again, and report it if it stays$"):
        cli.finish(Measured(run_of(*rows), tmp_path / "run.json", failures=broke(*rows)))
    assert capsys.readouterr().err == "sam-bench: first; export again, and report it if it stays\n"
    assert load_run(tmp_path / "run.json") == run_of(*rows)  # written all the same


def test_first_case_that_broke_is_named_whatever_the_policy():
    rows = [row(failures=["second"], failed_case=2), row(failures=["first"], failed_case=1), row(failures=["boxes"])]
    (sentence,) = broke(*rows)
    assert sentence.startswith("first; export again")


def test_backend_that_was_named_has_to_run_and_others_need_not():
    rows = [row("tensorrt", device="cuda", not_run="there is no GPU")]
    assert broke(*rows, named=["onnxruntime"]) == ()
    (sentence,) = broke(*rows, named=["tensorrt"])
    assert sentence == "sam on tensorrt (fp32) was asked for and not run: there is no GPU"


def test_detector_that_a_server_hides_is_no_failure():
    hidden = row("triton", not_run="it shows no boxes", graph="detector")
    del hidden["stage"]
    assert broke(hidden, named=["triton"]) == ()


def test_backend_that_failed_is_a_failure_even_if_nobody_named_it():
    assert broke(row(error="it broke")) == ("sam on onnxruntime (fp32): it broke",)


def test_pytorch_always_runs_and_comes_first():
    assert choose_backends(["onnxruntime", "torch", "onnxruntime"], "cpu") == ("torch", "onnxruntime")
    with pytest.raises(OptionError, match="'onnx' is not known; give torch, onnxruntime"):
        choose_backends(["onnx"], "cpu")


def test_cuda_of_onnxruntime_runs_where_cuda_is_asked_for():
    on_cpu, on_cuda = (choose_backends([], device) for device in ("cpu", "cuda"))
    assert set(on_cuda) - set(on_cpu) == {"onnxruntime-cuda", "onnxruntime-cuda-fp16"}
    assert on_cpu[0] == "torch"
    assert "tensorrt" in on_cpu


def absent_of(export, monkeypatch, *backends):
    """Return the rows of what can't be opened, with nothing in place of the originals."""
    monkeypatch.setattr(candidates, "_open_baseline", lambda *_: None)
    compared = Compared.of(Export.open(export), AccuracySettings(backends, threads=1))
    with ExitStack() as held:
        _, opened, absent = open_all(compared, held)
    assert opened == []
    return absent


def test_backends_that_nobody_asked_for_have_a_row(bright_export, monkeypatch):
    rows = absent_of(bright_export, monkeypatch, "torch", "tensorrt")
    found = {(row.identity.backend, row.identity.precision, row.identity.device) for row in rows}
    assert found == {(k.backend, k.precision, k.device) for k in BACKENDS.values() if k.device == "cuda"}
    assert [row.reason == "not among --backends" for row in rows] == [False] + [True] * (len(found) - 1)
    assert [row.is_failure for row in rows] == [False] * len(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backends", "onnx"], "the backend 'onnx' is not known"),
        (["--server", "triton://h:1/sam", "--export", "."], "--server serves one export"),
        (["--anonymous", "--show-names"], "--anonymous leaves names out and --show-names puts them in"),
        (["--label", "2"], "--label names a value of the labels in --data"),
        (["--min-parity-dice", "2"], "2.0 is not in the range"),
    ],
)
def test_usage_is_refused(words, message, in_process, tmp_path):
    code, _, err = in_process(cli.main, "sam-bench", "accuracy", "--export", tmp_path, *words)
    assert code == 2
    assert message in err


def test_policy_that_a_method_does_not_know_is_refused(bright_export):
    with pytest.raises(PromptError, match="sam-med3d knows the policies trained, centre and not automatic"):
        accuracy.measure_accuracy([bright_export], AccuracySettings(("torch",), policies=("automatic",)))


@pytest.mark.parametrize(("anonymous", "why"), [(False, "m_sam.pth is gone"), (True, "it may name a file")])
def test_export_that_cannot_be_measured_is_refused_alone_and_a_row_among_others(
    anonymous, why, bright_export, tmp_path, monkeypatch
):
    def refuse(*_):
        raise CheckpointError("the checkpoint m_sam.pth is gone; put it back")

    monkeypatch.setattr(accuracy, "open_all", refuse)
    still = SimpleNamespace(sample=lambda: None, describe=dict)
    monkeypatch.setattr(accuracy, "Machine", lambda *_: nullcontext(still))  # the real one measures for seconds
    with pytest.raises(CheckpointError):
        accuracy.measure_accuracy([bright_export], AccuracySettings(("torch",), cases=1))
    exports = [bright_export, Path(shutil.copytree(bright_export, tmp_path / "other"))]
    run = accuracy.measure_accuracy(exports, AccuracySettings(("torch",), cases=1, anonymous=anonymous))
    assert [why in row.reason for row in run.rows] == [True, True]
    assert all(why in sentence for sentence in what_broke(run, []))
    assert len(what_broke(run, [])) == 1


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-fp16", "onnxruntime-fp16"])
def test_what_an_export_has_no_files_for_is_missing_and_did_not_fail(name, bright_export, monkeypatch):
    absent, *_ = absent_of(bright_export, monkeypatch, "torch", name)
    one, wanted = absent.identity, BACKENDS[name]
    assert (one.backend, one.precision, one.device) == (wanted.backend, wanted.precision, wanted.device)
    assert not absent.is_failure
    assert ";" in absent.reason  # what was found, and what to do
