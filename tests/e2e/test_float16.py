"""Guards float16 as a user meets it: overflow is kept out, a naive list fails by name, a list can be given again.

The network is a demonstration one whose neck is scaled by 2^15: the norm behind it takes that out again, so float32
gives the same masks, and float16 overflows.
"""

import json
import re

import nibabel
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from samkit.checkpoints import load_network, save_checkpoint
from samkit.errors import ExportError, ParityError
from samkit.export.cli import export, main
from samkit.export.emulation import EmulatedRunner
from samkit.export.export import run_export
from samkit.export.plan import plan_export
from samkit.export.typed_graph import PRODUCTS
from samkit.manifest import Manifest
from samkit.methods import get_method
from samkit.phantoms import make_phantom
from samkit.weights import demo_checkpoint
from support.rtx import check_types, parse

pytestmark = pytest.mark.xdist_group("float16")

METHOD = "sam-med2d"
NECK = "image_encoder.neck.0.weight"


def scaled_checkpoint(folder, factor, names=(NECK,)):
    """Return the demonstration weights with some of them scaled."""
    loaded = load_network(demo_checkpoint(METHOD), get_method(METHOD))
    for name, parameter in loaded.network.named_parameters():
        if name in names:
            parameter.data *= factor
    path = folder / "scaled.safetensors"
    save_checkpoint(path, loaded.network, loaded.info)
    return path


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """The export of a network whose neck leaves float16's range."""
    folder = tmp_path_factory.mktemp("overflow")
    checkpoint = scaled_checkpoint(folder, 2.0**15)
    out = folder / "export"
    run_export(plan_export(METHOD, checkpoint=checkpoint, precision="fp16"), out)
    return checkpoint, out


def kept(notes, graph="image_encoder"):
    return {entry["node"]: entry for entry in notes[f"{graph}.fp16.onnx"]["kept_in_float32"]}


def test_overflow_is_found_by_measuring_and_the_masks_stay(overflowing):
    manifest = Manifest.load(overflowing[1])
    forced = [entry for entry in kept(manifest.precision_notes).values() if entry["range"] and entry["op"] == "Conv"]
    assert forced
    assert max(entry["range"] for entry in forced) > 65504
    gate = manifest.precision_notes["mask_decoder.fp16.onnx"]["gate"]
    assert gate["hd95"] <= 1


def test_real_parser_has_what_overflows_in_float32(overflowing, rtx):
    manifest = Manifest.load(overflowing[1])
    for name, notes in manifest.precision_notes.items():
        network = parse(overflowing[1] / name).network
        check_types(rtx, network, overflowing[1] / name, notes)
        layers = {layer.name: layer for layer in map(network.get_layer, range(network.num_layers))}
        products = [one for one in notes["kept_in_float32"] if one["range"] and one["op"] in PRODUCTS]
        assert products or "encoder" not in name
        for one in products:
            assert layers[one["node"]].get_input(0).dtype == rtx.DataType.FLOAT
            assert layers[one["node"]].get_output(0).dtype == rtx.DataType.FLOAT


def naive_notes(manifest):
    """Return the manifest's list without the convolutions that their range forced: what common recipes keep."""
    notes = json.loads(json.dumps(manifest.precision_notes))
    for entry in notes.values():
        entry["kept_in_float32"] = [
            one for one in entry["kept_in_float32"] if one["range"] is None or one["op"] != "Conv"
        ]
    return notes


def test_naive_conversion_gives_nan_and_fails_with_the_nodes_name(overflowing, tmp_path):
    checkpoint, out = overflowing
    manifest = Manifest.load(out)
    (tmp_path / "naive.json").write_text(json.dumps(naive_notes(manifest)))
    neck = next(node for node, entry in kept(manifest.precision_notes).items() if entry["op"] == "Conv")
    plan = plan_export(METHOD, checkpoint=checkpoint, precision="fp16", keep_list=tmp_path / "naive.json")
    with pytest.raises(ParityError, match="relative error nan") as failed:
        run_export(plan, tmp_path / "export")
    assert f"the first node beyond float16's range is {neck} of image_encoder" in str(failed.value)
    assert not (tmp_path / "export").exists()


def test_naive_file_itself_is_nan_where_ours_is_finite(overflowing, tmp_path):
    from samkit.export.precision import convert_to_fp16, read_keep_list
    from samkit.export.typed_graph import TypedGraph

    manifest = Manifest.load(overflowing[1])
    spec = manifest.plan.specs[0]
    image = {"image": np.random.default_rng(0).standard_normal(spec.inputs[0].shape).astype(np.float32)}
    lists = {"ours": manifest.precision_notes, "naive": naive_notes(manifest)}
    finite = {}
    for name, notes in lists.items():
        nodes = read_keep_list(notes, {spec.name: f"{spec.name}.fp16.onnx"})[spec.name]
        graph = TypedGraph(onnx.load(overflowing[1] / f"{spec.name}.onnx"))
        onnx.save(convert_to_fp16(graph, (entry.node for entry in nodes)), tmp_path / f"{name}.onnx")
        with EmulatedRunner(tmp_path / f"{name}.onnx", spec, tmp_path) as runner:
            finite[name] = np.isfinite(runner.run(image)["image_embeddings"]).all()
    assert finite == {"ours": True, "naive": False}


def test_list_of_a_manifest_gives_the_same_graphs_again(overflowing, tmp_path):
    checkpoint, out = overflowing
    plan = plan_export(METHOD, checkpoint=checkpoint, precision="fp16", keep_list=out / "manifest.json")
    again = run_export(plan, tmp_path / "again")
    first = {a.file: a.sha256 for a in Manifest.load(out).artifacts if a.file.endswith(".onnx")}
    assert {a.file: a.sha256 for a in again.artifacts if a.file.endswith(".onnx")} == first
    assert Manifest.load(tmp_path / "again").plan == plan_without_config(again.plan, plan)


def plan_without_config(complete, plan):
    """Return the completed plan; what was given by path is known by its content alone."""
    assert complete.keep_list == plan.keep_list
    return complete


# --- The command ---


def test_scans_of_a_folder_are_measured_and_stay_at_home(tmp_path):
    scans = tmp_path / "Jane-Doe"
    scans.mkdir()
    for seed in (5, 6):
        volume = make_phantom(seed, (40, 44, 40), 4.0, sequences=("flair",)).sequences["flair"]
        nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), scans / f"{seed}.nii.gz")
    Image.fromarray((volume.array[:, :, 20] / volume.array.max() * 255).astype(np.uint8)).save(scans / "picture.png")
    (scans / "notes.txt").write_text("no scan")
    arguments = ["--method", METHOD, "--fp16", "--calibration", str(scans), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 0, result.output
    assert "3 of 3 subjects of the folder, besides 2 phantoms" in result.stderr
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.precision_notes["mask_decoder.fp16.onnx"]["gate"]["cases"] == 5
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert "Jane-Doe" not in text
    assert re.search(r'"calibration": \{\s*"sha256"', text)
    with np.load(tmp_path / "out" / "parity.npz") as stored:
        assert {name.split(".")[0] for name in stored.files} == {"0", "1"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--calibration", "."], "add --fp16, or leave it out"),
        (["--keep-list", "setup.py"], "add --fp16, or leave it out"),
        (["--fp16", "--no-fold"], "--no-fold is the float32 baseline"),
        (["--fp16", "--calibration", "nowhere"], "nowhere is no file and no folder"),
        (["--fp16", "--keep-list", "nowhere"], "nowhere is no file and no folder"),
    ],
)
def test_options_that_do_not_fit_are_usage(arguments, words, in_process):
    code, _, err = in_process(main, "sam-export", "--method", METHOD, "--dry-run", *arguments)
    assert code == 2
    assert words in err
    assert err.endswith("; see sam-export --help\n")


def test_folder_without_scans_is_refused_before_any_work(tmp_path):
    (tmp_path / "empty").mkdir()
    plan = plan_export(METHOD, precision="fp16", calibration=tmp_path / "empty")
    with pytest.raises(Exception, match="holds nothing that sam-med2d can be calibrated on"):
        run_export(plan, tmp_path / "out")


def test_keep_list_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "list.json").write_text("norms")
    plan = plan_export(METHOD, precision="fp16", keep_list=tmp_path / "list.json")
    with pytest.raises(ExportError, match="the keep-list is no JSON"):
        run_export(plan, tmp_path / "out")
