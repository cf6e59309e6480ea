"""Guards the script behind the full-size float16 figures: weights of a recipe, one row per method, failures too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from samkit.checkpoints import load_network, read_state
from samkit.errors import SamkitError
from samkit.manifest import Manifest
from samkit.methods import get_method, list_methods
from samkit.networks.yolo_config import COCO_ANCHORS
from tools import fp16

RECIPE = """
import json
import numpy as np


def parameter(name, shape, dtype, tag):
    if "int" in dtype:
        return np.zeros(shape, np.int64)
    values = np.random.default_rng(len(name)).standard_normal(shape) / max(1, int(np.prod(shape[1:]))) ** 0.5
    return (values + (1 if len(shape) == 1 and name.endswith(("weight", "running_var")) else 0)).astype(np.float32)


def state_dict(listing, tag):
    keys = json.loads(listing.read_text())["keys"]
    return {name: parameter(name, tuple(shape), dtype, tag) for name, (shape, dtype) in keys.items()}
"""


@pytest.fixture
def recipe_path(tmp_path):
    path = tmp_path / "golden" / "recipe.py"
    path.parent.mkdir()
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("name", list_methods())
def test_own_checkpoint_holds_the_recipe(name, recipe_path, tmp_path):
    method, recipe = get_method(name), fp16.read_recipe(recipe_path)

    files = fp16.write_weights(method, "tiny", recipe, None, tmp_path)

    loaded = load_network(files["checkpoint"], method)
    assert loaded.info.size == "tiny"
    assert not loaded.info.demonstration
    for key, tensor in loaded.network.state_dict().items():
        if not key.endswith(".anchors"):
            scale = fp16.LORA_SCALE if ".linear_" in key else 1
            wanted = recipe.parameter(key, tuple(tensor.shape), str(tensor.dtype), fp16.TAG) * scale
            np.testing.assert_allclose(tensor.numpy(), wanted, rtol=1e-6, err_msg=key)


def test_official_file_has_wrapper_and_anchors(recipe_path, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.mkdir()
    listing = {"a.weight": [[2, 3], "float32"], "a.linear_a_q.weight": [[1, 3], "float32"]}
    (keys / "whole.json").write_text(json.dumps({"keys": listing}))
    (keys / "boxes.json").write_text(json.dumps({"keys": {"model.24.anchors": [[3, 3, 2], "float32"]}}))
    monkeypatch.setitem(fp16.OFFICIAL, "sam", fp16.Files("whole.json", {"detector": "boxes.json"}, "model"))
    recipe = fp16.read_recipe(recipe_path)

    files = fp16.write_weights(get_method("sam"), "full", recipe, keys, tmp_path)

    state = read_state(files["checkpoint"])
    low_rank = recipe.parameter("a.linear_a_q.weight", (1, 3), "float32", fp16.TAG)
    np.testing.assert_allclose(state["a.linear_a_q.weight"], low_rank * fp16.LORA_SCALE, rtol=1e-6)
    anchors = read_state(files["detector"])["model.24.anchors"].numpy() * np.reshape([8, 16, 32], (3, 1, 1))
    np.testing.assert_allclose(anchors.reshape(3, 6), COCO_ANCHORS)


def test_missing_listing_says_what_to_give(recipe_path, tmp_path):
    with pytest.raises(SamkitError, match="give another folder with --keys"):
        fp16.write_weights(get_method("sam"), "full", fp16.read_recipe(recipe_path), tmp_path, tmp_path)


def test_file_without_the_functions_is_no_recipe(tmp_path):
    path = tmp_path / "other.py"
    path.write_text("parameter = None\n")

    with pytest.raises(SamkitError, match="has no function state_dict"):
        fp16.read_recipe(path)


@pytest.mark.slow
@pytest.mark.xdist_group("export")
def test_row_sums_up_what_the_manifest_says(tiny_export, monkeypatch):
    manifest = Manifest.load(tiny_export)
    plans = []
    monkeypatch.setattr(fp16, "run_export", lambda plan, out: plans.append(plan) or manifest)

    row = fp16.gate(get_method("m-sam"), "tiny", None, None)

    (plan,) = plans
    assert (plan.method, plan.size, plan.precision) == ("m-sam", "tiny", "fp16")
    assert row["weights"] == "random"
    assert set(row["files"]) == set(manifest.precision_notes)
    assert 0.5 <= row["share_in_float16"] <= 1
    kept = sum(len(note["kept_in_float32"]) for note in manifest.precision_notes.values())
    assert sum(row["kept_in_float32"].values()) == kept
    gates = [note["gate"] for note in manifest.precision_notes.values()]
    assert row["relative_error"] == max(gate["relative_error"] for gate in gates)
    assert row["dice"] == min(gate["dice"] for gate in gates if "dice" in gate)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("input linear_3 leaves float16", "input leaves float16"),
        ("weight a.b is so small that float16 loses digits", "weight is so small that float16 loses digits"),
        ("the gate: mask_decoder, click 2: Dice 0.9", "the gate"),
        ("log-sum-exp", "log-sum-exp"),
    ],
)
def test_reasons_are_counted_without_the_tensors_they_name(reason, kind):
    assert fp16._kind(reason) == kind


def test_failure_is_a_row_and_an_exit_code(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(f"{RECIPE}\n\ndef parameter(name, shape, dtype, tag):\n    return np.full(shape, np.nan, 'f4')\n")

    ended = CliRunner().invoke(fp16.fp16, ["--method", "sam-med3d", "--size", "tiny", "--recipe", str(path)])

    row = json.loads(ended.stdout)
    assert row["method"] == "sam-med3d"
    assert "NaN" in row["error"]
    assert isinstance(ended.exception, SamkitError)
    assert "sam-med3d" in str(ended.exception)
