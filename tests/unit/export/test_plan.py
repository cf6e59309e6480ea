"""Guards planning: complete before any work, honest about what only the checkpoint can tell, and free of torch."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import samkit
from samkit.checkpoints import CheckpointInfo, read_info
from samkit.errors import CheckpointError, InputRefused, OptionError
from samkit.export.cli import export as export_command
from samkit.export.plan import complete_plan, plan_export
from samkit.manifest import ExportPlan, file_sha256
from samkit.weights import demo_checkpoint

M_SAM = samkit.get_method("m-sam")


@pytest.fixture
def official(tmp_path):
    torch.save({"model_state_dict": {"a": torch.ones(1)}}, tmp_path / "official.pth")
    return tmp_path / "official.pth"


def test_checkpoint_is_hashed_and_not_opened(official):
    plan = plan_export("m-sam", checkpoint=official, precision="fp16")
    data = plan.to_dict()
    assert data["weights"]["path"] == str(official)
    assert data["weights"]["sha256"] == file_sha256(official)
    assert data["size"] == data["config"] == data["refinement"] == "from checkpoint"
    assert data["files"] == [
        "image_encoder.fp16.onnx",
        "image_encoder.onnx",
        "mask_decoder.fp16.onnx",
        "mask_decoder.onnx",
    ]


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_random_plan_is_complete_and_survives_json(size):
    plan = plan_export("m-sam", size=size)
    assert plan.weights.kind == "random"
    assert ExportPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_checkpoint_decides_and_the_flag_overrides(official):
    info = CheckpointInfo("m-sam", "full", samkit.get_method("m-sam").sizes["full"], "anchored")
    plan = plan_export("m-sam", checkpoint=official)
    assert complete_plan(plan, M_SAM, info).refinement == "anchored"
    assert complete_plan(plan_export("m-sam", checkpoint=official, refinement="recurrent"), M_SAM, info).refinement == (
        "recurrent"
    )


@pytest.mark.parametrize(
    ("method", "refinement", "folded", "has_pair"),
    [
        ("m-sam", "anchored", True, True),
        ("m-sam", "recurrent", True, False),  # its steps start from each other
        ("m-sam", "anchored", False, False),  # upstream's formulation has one decoder
        ("sam-med3d", "anchored", True, False),  # and no adapter
    ],
)
def test_adapters_pair_of_graphs_is_in_folded_anchored_exports_alone(method, refinement, folded, has_pair):
    plan = plan_export(method, size="tiny", refinement=refinement, folded=folded)
    pair = ("adapter_stem", "mask_decoder_anchored") if has_pair else ()

    assert plan.graphs == ("image_encoder", "mask_decoder", *pair)
    assert tuple(spec.name for spec in plan.specs) == plan.graphs


def test_checkpoint_decides_which_graphs_there_are(official):
    info = CheckpointInfo("m-sam", "full", samkit.get_method("m-sam").sizes["full"], "anchored")
    plan = complete_plan(plan_export("m-sam", checkpoint=official), M_SAM, info)

    assert plan.graphs == ("image_encoder", "mask_decoder", "adapter_stem", "mask_decoder_anchored")


def test_size_that_contradicts_the_checkpoint_is_refused(official):
    info = CheckpointInfo("m-sam", "full", samkit.get_method("m-sam").sizes["full"], "anchored")
    with pytest.raises(CheckpointError, match="holds the full network, and size tiny was asked for"):
        complete_plan(plan_export("m-sam", checkpoint=official, size="tiny"), M_SAM, info)


def test_refinement_unknown_to_the_method_is_refused():
    with pytest.raises(OptionError, match="it has anchored; leave refinement out"):
        plan_export("sam-med3d", size="tiny", refinement="recurrent")


def test_untested_opset_is_refused():
    with pytest.raises(OptionError, match="use 18 to 23"):
        plan_export("m-sam", size="tiny", opset=9)


def test_a_large_scan_is_judged_by_its_header_before_it_is_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr("samkit.export.plan.file_sha256", lambda path: pytest.fail(f"{path.name} was hashed"))
    header = nibabel.Nifti1Header()
    header.set_data_shape((800, 800, 800))
    header.set_data_dtype(np.float64)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with (tmp_path / "a.nii").open("wb") as file:
        file.write(header.binaryblock)
        file.truncate(352 + 8 * 800**3)

    with pytest.raises(InputRefused, match="4096000000 in all"):
        plan_export("m-sam", size="tiny", precision="fp16", calibration=tmp_path)


@pytest.mark.parametrize("weights", ["demonstration", "random", "checkpoint"])
def test_dry_run_imports_no_torch(weights, tmp_path):
    (tmp_path / "junk.pth").write_bytes(b"no checkpoint at all: it is hashed, never opened")
    extra = {
        "demonstration": [],
        "random": ["--size", "tiny"],
        "checkpoint": ["--checkpoint", str(tmp_path / "junk.pth")],
    }
    code = (
        "import sys; sys.modules.update(torch=None, monai=None, lightning=None, onnx=None)\n"
        f"sys.argv = ['sam-export', '--method', 'm-sam', '--fp16', '--dry-run', *{extra[weights]!r}]\n"
        "from samkit.export.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plan = json.loads(run.stdout)
    assert (plan["precision"], plan["weights"]["kind"]) == ("fp16", weights)
    assert plan["out"] == "exports/m-sam"
    assert (plan["config"] == "from checkpoint") == (weights == "checkpoint")
    if weights != "checkpoint":
        assert [graph["name"] for graph in plan["tensors"]] == ["image_encoder", "mask_decoder"]


def test_demonstration_weights_keep_their_name_as_checkpoint():
    path = demo_checkpoint("m-sam")
    plan = complete_plan(plan_export("m-sam", checkpoint=path), M_SAM, read_info(path))
    assert (plan.weights.kind, plan.weights.demonstration) == ("checkpoint", True)
    assert plan_export("m-sam").weights.demonstration
    assert not plan_export("m-sam", size="tiny").weights.demonstration


def test_a_plan_needs_no_demonstration_weights(monkeypatch):
    monkeypatch.setattr("samkit.weights._PACKAGE", "no_such_package")

    plan = plan_export("m-sam")

    assert (plan.weights.kind, plan.weights.sha256, plan.weights.demonstration) == ("demonstration", None, True)
    assert (plan.size, plan.config) == ("small", M_SAM.sizes["small"])


def test_a_dry_run_says_that_the_demonstration_weights_are_missing(monkeypatch):
    monkeypatch.setattr("samkit.weights._PACKAGE", "no_such_package")

    done = CliRunner().invoke(export_command, ["--method", "m-sam", "--dry-run"])

    assert done.exit_code == 0
    assert json.loads(done.stdout)["method"] == "m-sam"
    assert "the demonstration weights are not installed; pip install -e ./weights in samkit's clone" in done.stderr


def test_folder_of_a_run_is_planned_as_its_best_file(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.safetensors").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    given = plan_export("m-sam", checkpoint=Path("run"))
    assert given == plan_export("m-sam", checkpoint=tmp_path / "run" / "best.safetensors")
