"""Guards what holds for every method alike: demonstration weights, export, rules of the graphs, parity, a mask.

One list of methods, one set of claims; a method added as a file is covered by being there.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import samkit
from samkit.checkpoints import load_network
from samkit.export.graphs import FORBIDDEN_OPS
from samkit.export.tensorrt_operators import check_model
from samkit.export.verify import verify_export
from samkit.manifest import Manifest, graph_file
from samkit.masks import dice
from samkit.methods import SliceMethod, get_method
from samkit.phantoms import SEQUENCES
from samkit.runtime import open_session
from samkit.weights import demo_checkpoint

METHODS = samkit.list_methods()
EVERY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"export of {name}")) for name in METHODS]
)
"""Tests of one method run in one process, so that it is exported once."""


def feed_of(graph, rows, points):
    """Return zeros for a graph's inputs, its dynamic axes at `rows` and `points`."""
    sizes = {"batch": rows, "images": 1, "points": points}
    return {
        spec.name: np.zeros([sizes.get(axis.name, axis.opt) for axis in spec.axes], np.float32) for spec in graph.inputs
    }


@EVERY
def test_weights_are_small_and_marked_as_demonstration(name):
    path = demo_checkpoint(name)
    info = load_network(path, get_method(name)).info
    assert info.demonstration
    assert info.size == "small"
    assert info.provenance["command"].startswith("python -m samkit.training.demo_weights")
    assert path.stat().st_size < 10_000_000


@EVERY
def test_export_says_what_was_measured(name, export_of):
    manifest = Manifest.load(export_of(name))
    manifest.verify(export_of(name))
    assert set(manifest.parity) == set(manifest.plan.files)
    assert manifest.plan.weights.demonstration
    assert manifest.parity["mask_decoder.onnx"]["dice"] >= 0.999
    assert verify_export(export_of(name)).keys() == manifest.parity.keys()


@EVERY
def test_float16_passed_the_gate_and_says_what_stayed(name, export_of):
    manifest = Manifest.load(export_of(name))
    notes = manifest.precision_notes
    assert set(notes) == {file for file in manifest.plan.files if file.endswith(".fp16.onnx")}
    assert sum(n["products_in_float16"] for n in notes.values()) > 0.9 * sum(n["products"] for n in notes.values())
    kept = [entry for note in notes.values() for entry in note["kept_in_float32"]]
    assert any(entry["op"] == "LayerNormalization" for entry in kept)
    assert all(entry["reason"] for entry in kept)
    gate = notes["mask_decoder.fp16.onnx"]["gate"]
    assert gate["hd95"] <= 1
    assert 0 < gate["relative_error"] < 5e-2


@EVERY
def test_graphs_keep_the_rules(name, export_of):
    manifest = Manifest.load(export_of(name))
    for graph in manifest.plan.specs:
        for precision in ("fp32", "fp16"):
            model = onnx.load(export_of(name) / graph_file(graph.name, precision))
            assert check_model(model, graph.name) is None
            assert not FORBIDDEN_OPS & {node.op_type for node in model.graph.node}
            assert [value.name for value in model.graph.input] == [spec.name for spec in graph.inputs]
            assert [value.name for value in model.graph.output] == [spec.name for spec in graph.outputs]
            assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {1}
            assert str(Path.cwd()).encode() not in model.SerializeToString()


@EVERY
def test_dynamic_axes_take_their_sizes(name, export_of):
    manifest = Manifest.load(export_of(name))
    for graph in manifest.plan.specs:
        file = str(export_of(name) / graph_file(graph.name, "fp32"))
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for rows, points in ((1, 0), (1, 3), (3, 2)):
            outputs = session.run(None, feed_of(graph, rows, points))
            assert [len(output) for output in outputs] == [rows] * len(graph.outputs)
            assert all(np.isfinite(output).all() for output in outputs)


@EVERY
def test_exported_graphs_and_the_original_give_one_mask(name, export_of, phantom, segment):
    masks = []
    for backend in ("onnxruntime", "torch"):
        with open_session(export_of(name), backend=backend) as session:
            mask = segment(session, get_method(name))
        assert mask.shape == phantom.lesions.shape
        masks.append(mask)
    assert dice(*masks) >= 0.999


@EVERY
def test_command_segments_with_the_demonstration(name, export_of, phantom, tmp_path):
    """The box or click goes through files and the command line; the JSON says that the weights are no patient's."""
    import nibabel as nib

    method = get_method(name)
    files = {}
    for sequence, key in zip(("t1n", "t1c", "t2w", "t2f"), SEQUENCES, strict=True):
        volume = phantom.sequences[key]
        files[sequence] = tmp_path / f"scan_{sequence}.nii.gz"
        nib.save(nib.Nifti1Image(volume.array.astype(np.float32), volume.affine), files[sequence])
    voxels = np.argwhere(phantom.lesion(1))
    middle = voxels[len(voxels) // 2]
    config = Manifest.load(export_of(name)).plan.config
    sequences = method.sequences(config) if isinstance(method, SliceMethod) else ()
    inputs = [part for key in sequences for part in ("-i", f"{key}={files[key]}")] or ["-i", str(files["t2f"])]
    takes_points = not isinstance(method, SliceMethod) or "point" in method.prompts
    prompt = ["--point", ",".join(map(str, middle)) + ",+"] if takes_points else []
    run = subprocess.run(
        [Path(sys.executable).parent / "sam-segment", "--export", export_of(name), *inputs, *prompt,
         "-o", tmp_path / "mask.nii.gz"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["demonstration_weights"] is True
    written = nib.load(tmp_path / "mask.nii.gz")
    assert written.shape == phantom.lesions.shape
    np.testing.assert_array_equal(written.affine, phantom.affine)


@EVERY
def test_plan_needs_no_torch(name):
    code = (
        "import sys; sys.modules.update(torch=None)\n"
        f"sys.argv = ['sam-export', '--method', {name!r}, '--dry-run']\n"
        "from samkit.export.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["method"] == name


@EVERY
def test_half_written_export_can_not_be_opened(name, export_of, tmp_path):
    shutil.copytree(export_of(name), tmp_path / "copy")
    (tmp_path / "copy" / "mask_decoder.onnx").unlink()
    with pytest.raises(samkit.errors.ManifestError, match=r"mask_decoder\.onnx is missing"):
        open_session(tmp_path / "copy")
