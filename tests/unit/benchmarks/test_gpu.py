"""Guards the GPU timings, run on the CPU: what is compared with what, what it prints, how it ends. None is judged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from samkit.benchmarks import gpu, graphs
from samkit.errors import ExportError, MissingDependencyError, SamkitError
from samkit.export.plan import plan_export
from samkit.manifest import Weights

pytestmark = pytest.mark.xdist_group("gpu benchmark")  # so that the records are made once

WAYS = {"onnxruntime fp16", "onnxruntime fp32", *gpu.PYTORCH}


@pytest.fixture(scope="module")
def measured():
    """Return records by graph, of the method with the most graphs of a refinement, and of one that decodes masks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "TURN_SECONDS", 0.0)  # one run a turn
        return {
            name: {record["graph"]: record for record in gpu.measure(name, size="tiny", rounds=2, device="cpu")}
            for name in ("m-sam", "medsam-yolo")
        }


@pytest.fixture(scope="module")
def records(measured):
    return [record for rows in measured.values() for record in rows.values()]


def test_every_graph_of_a_session_is_timed_against_what_upstream_runs(measured):
    official = {name: {graph: row["official"] for graph, row in rows.items()} for name, rows in measured.items()}

    assert official == {
        "m-sam": {
            "image_encoder": "image_encoder",
            "mask_decoder": "mask_decoder",
            "adapter_stem": "adapter_stem",
            "mask_decoder_anchored": "mask_decoder",
        },
        "medsam-yolo": {
            "detector": "detector",
            "image_encoder": "image_encoder",
            "mask_decoder": "mask_decoder",
            "mask_decoder_no_mask": "mask_decoder",
        },
    }


def test_all_competitors_compute_the_same(records):
    """Even the float16 ones, as far as that goes; a wrong input would show here."""
    for record in records:
        assert record["failed"] == {}
        errors = record["relative_error"]
        assert set(errors) == WAYS - {"eager"}
        assert errors["onnxruntime fp32"] < 1e-5
        assert errors["compile"] < 1e-5
        assert errors["onnxruntime fp16"] < 5e-2
        assert 1e-5 < errors["autocast"] < 5e-2  # and autocast does cast


def test_every_record_has_all_samples_ratios_to_float16_and_the_machine(records):
    for record in records:
        assert set(record["samples"]) == set(record["seconds"]) == set(record["ratio"]) == WAYS
        assert all(len(values) == record["rounds"] == 2 for values in record["samples"].values())
        assert record["ratio"]["onnxruntime fp16"] == 1
        seconds = record["seconds"]
        wanted = seconds["autocast"] / seconds["onnxruntime fp16"]
        assert record["ratio"]["autocast"] == pytest.approx(wanted, rel=1e-2)
        assert record["machine"]["torch"] == torch.__version__
        assert any(name.startswith("onnxruntime") for name in record["machine"])


def test_pytorch_runs_upstreams_formulation_with_lora_apart():
    network = gpu._official_network(plan_export("m-sam", size="tiny", precision="fp16"))

    assert any("linear_a" in name for name, _ in network.named_parameters())
    assert not any(module.folded for module in network.modules() if hasattr(module, "folded"))


def test_demonstration_weights_are_those_of_the_export():
    plan = plan_export("m-sam", size="small", precision="fp16")

    assert gpu._official_network(plan).config == plan.config


def test_what_torch_cannot_compile_is_named_and_the_rest_is_timed(monkeypatch):
    monkeypatch.setattr(graphs, "TURN_SECONDS", 0.0)
    outputs = {"low_res_masks": torch.ones(1, 2)}

    def refuse():
        raise RuntimeError("no C++ compiler\nand much more")

    runs = {"onnxruntime fp16": lambda: outputs, "eager": lambda: outputs, "compile": refuse}
    record = gpu._compare(runs, 2, "cpu")

    assert record["failed"] == {"compile": "RuntimeError: no C++ compiler"}
    assert set(record["samples"]) == {"onnxruntime fp16", "eager"}


def test_other_failures_are_not_hidden():
    def refuse():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        gpu._compare({"eager": lambda: {}, "autocast": refuse}, 2, "cpu")


def test_without_a_device_the_command_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    ended = CliRunner().invoke(gpu.gpu, [])

    assert isinstance(ended.exception, MissingDependencyError)
    assert "finds no CUDA device, and these timings need one; check" in str(ended.exception)


def test_onnxruntime_without_cuda_is_refused_before_anything_is_exported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def refuse(threads, device):
        raise MissingDependencyError(f"this ONNX Runtime has no {device}")

    monkeypatch.setattr(gpu, "MatrixProduct", refuse)
    monkeypatch.setattr(gpu, "measure", lambda *args, **options: pytest.fail("nothing is measured"))

    ended = CliRunner().invoke(gpu.gpu, [])

    assert isinstance(ended.exception, MissingDependencyError)
    assert str(ended.exception) == "this ONNX Runtime has no cuda"


def test_table_has_a_row_of_each_graph_and_a_failure_is_a_row(measured, monkeypatch, tmp_path):
    def measure(name, *, size, rounds):
        if name == "sam":
            raise ExportError("float16 gains nothing")
        return list(measured[name].values())

    monkeypatch.setattr(gpu, "check_device", lambda device: None)
    monkeypatch.setattr(gpu, "measure", measure)
    out = tmp_path / "records.json"

    ended = CliRunner().invoke(gpu.gpu, ["--method", "sam", "--method", "m-sam", "--size", "tiny", "--json", str(out)])

    assert isinstance(ended.exception, SamkitError)
    assert str(ended.exception).startswith("sam gave no timings")
    assert "float16 gains nothing" in ended.stdout
    for graph in measured["m-sam"]:
        assert graph in ended.stdout
    assert f"torch {torch.__version__}" in ended.stdout
    assert [row.get("graph") for row in json.loads(out.read_text())] == [None, *measured["m-sam"]]


def test_weights_of_a_file_are_refused():
    plan = replace(plan_export("m-sam", size="tiny"), weights=Weights("checkpoint", "other.pth", "0"))

    with pytest.raises(SamkitError, match="export with --size and without --checkpoint"):
        gpu._official_network(plan)
