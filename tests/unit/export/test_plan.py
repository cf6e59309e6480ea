"""Guards planning: complete before any work, honest about what only the checkpoint can tell, and free of torch."""

import json
import subprocess
import sys

import click
import pytest
import torch

import samkit
from samkit.checkpoints import CheckpointInfo
from samkit.errors import CheckpointError
from samkit.export.plan import complete_plan, plan_export
from samkit.manifest import ExportPlan, file_sha256


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
    assert complete_plan(plan, info).refinement == "anchored"
    assert complete_plan(plan_export("m-sam", checkpoint=official, refinement="recurrent"), info).refinement == (
        "recurrent"
    )


def test_size_that_contradicts_the_checkpoint_is_refused(official):
    info = CheckpointInfo("m-sam", "full", samkit.get_method("m-sam").sizes["full"], "anchored")
    with pytest.raises(CheckpointError, match="holds the full network, and --size tiny was asked for"):
        complete_plan(plan_export("m-sam", checkpoint=official, size="tiny"), info)


def test_refinement_unknown_to_the_method_is_refused():
    with pytest.raises(click.UsageError, match="it has anchored"):
        plan_export("sam-med3d", size="tiny", refinement="recurrent")


def test_untested_opset_is_refused():
    with pytest.raises(click.UsageError, match="use 18 to 23"):
        plan_export("m-sam", size="tiny", opset=9)


def test_dry_run_imports_no_torch():
    code = (
        "import sys; sys.modules.update(torch=None, monai=None, lightning=None, onnx=None)\n"
        "sys.argv = ['sam-export', '--method', 'm-sam', '--size', 'tiny', '--fp16', '--dry-run']\n"
        "from samkit.export.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["precision"] == "fp16"
