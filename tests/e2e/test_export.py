"""Guards `sam-export` as a user runs it: files, names, dynamic axes, verification, and failures that lose nothing."""

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
from samkit.errors import ExportError, ParityError
from samkit.export import export as export_module
from samkit.export import writing as writing_module
from samkit.export.check import check_parity
from samkit.export.export import run_export
from samkit.export.graphs import FORBIDDEN_OPS, write_graph
from samkit.export.loading import random_network
from samkit.export.parity import relative_error
from samkit.export.plan import plan_export
from samkit.export.references import load_references
from samkit.export.verify import verify_export
from samkit.manifest import FILE_NAME, Manifest
from samkit.prompts import SliceBox
from samkit.runtime import open_session
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner

pytestmark = pytest.mark.xdist_group("export")
COMMAND = Path(sys.executable).parent / "sam-export"


def sam_export(*arguments):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def copied_export(tiny_export, tmp_path):
    shutil.copytree(tiny_export, tmp_path / "export")
    return tmp_path / "export"


def references(folder):
    return load_references(samkit.get_method("m-sam"), folder)


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("file", ["image_encoder", "mask_decoder", "image_encoder.fp16", "mask_decoder.fp16"])
def test_graphs_keep_the_rules(tiny_export, file):
    model = onnx.load(tiny_export / f"{file}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert not FORBIDDEN_OPS & {node.op_type for node in model.graph.node}
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {1}
    assert str(Path.cwd()).encode() not in model.SerializeToString()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("points", [0, 1, 5])
def test_batch_and_point_count_are_dynamic(tiny_export, batch, points):
    config = samkit.get_method("m-sam").sizes["tiny"]
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((batch, config.channels, *(config.grid,) * 3)).astype(np.float32)
    feed = {
        "image_embeddings": embeddings,
        "point_coords": rng.uniform(0, 31, (batch, points, 3)).astype(np.float32),
        "point_labels": np.ones((batch, points), np.float32),
        "mask_input": np.zeros((batch, 1, *(config.logits,) * 3), np.float32),
    }
    names = ["low_res_masks", "iou_predictions", "updated_embeddings"]
    masks, iou, updated = session(tiny_export / "mask_decoder.onnx").run(names, feed)
    assert masks.shape == feed["mask_input"].shape
    assert (iou.shape, updated.shape) == ((batch, 1), embeddings.shape)
    # Each row is its own: the batch changes nothing.
    alone = session(tiny_export / "mask_decoder.onnx").run(names, {k: v[:1] for k, v in feed.items()})
    assert relative_error(masks[:1], alone[0]) < 1e-5


def test_graph_traced_again_is_the_same_file(tiny_export, traced_anew, tmp_path):
    """Elsewhere the tests trace each graph once, and this is why they may."""
    method = samkit.get_method("m-sam")
    network = random_network(method, method.sizes["tiny"])
    network.set_folded(True)
    network.merge_lora()
    network.freeze()
    write_graph(network, method.graphs(network.config)[0], tmp_path / "again.onnx", opset=20, folded=True)
    assert (tmp_path / "again.onnx").read_bytes() == (tiny_export / "image_encoder.onnx").read_bytes()


def test_unfolded_baseline_agrees(tiny_export, tmp_path):
    method = samkit.get_method("m-sam")
    config = method.sizes["tiny"]
    network = random_network(method, config)
    network.merge_lora()
    network.set_folded(False)
    path = tmp_path / "official.onnx"
    write_graph(network, method.graphs(config)[0], path, opset=20, folded=False)
    image = references(tiny_export)[0].image
    folded, official = (
        session(file).run(None, {"image": image})[0] for file in (tiny_export / "image_encoder.onnx", path)
    )
    assert relative_error(folded, official) < 1e-5
    assert {"Einsum", "Pad"} <= {node.op_type for node in onnx.load(path).graph.node}


def test_unfolded_export_of_slices_answers_with_its_one_decoder(tmp_path):
    manifest = run_export(plan_export("sam-med2d", size="tiny", folded=False), tmp_path / "official")
    assert manifest.plan.graphs == ("image_encoder", "mask_decoder")
    assert verify_export(tmp_path / "official").keys() == manifest.parity.keys()
    with open_session(tmp_path / "official") as session:
        session.set_image(np.tile(np.arange(64, dtype=np.float32), (48, 1)))
        assert session.add(SliceBox(10, 10, 40, 30)).step.number == 1


def test_manifest_tells_what_was_done(tiny_export):
    manifest = Manifest.load(tiny_export)
    manifest.verify(tiny_export)
    assert manifest.lora_merge["relative_error"] < 1e-5
    assert set(manifest.parity) == set(manifest.plan.files)
    assert manifest.plan.refinement == "recurrent"
    assert manifest.plan.weights.kind == "random"
    assert manifest.precision_notes["mask_decoder.fp16.onnx"]["products_in_float16"] > 30
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.environment)


def test_verify_repeats_parity_without_torch(tiny_export):
    code = (
        "import sys; sys.modules.update(torch=None, monai=None, lightning=None)\n"
        f"sys.argv = ['sam-export', '--verify', {str(tiny_export)!r}]\n"
        "from samkit.export.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["mask_decoder.onnx"]["dice"] > 0.999


def test_verify_finds_a_changed_byte(copied_export):
    path = copied_export / "mask_decoder.onnx"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    run = sam_export("--verify", copied_export)
    assert run.returncode == 3
    assert "mask_decoder.onnx changed since it was exported" in run.stderr


def test_verify_finds_wrong_numbers_behind_right_hashes(copied_export):
    """A graph whose weights moved and whose manifest was rewritten to fit is still found by its outputs."""
    model = onnx.load(copied_export / "image_encoder.onnx")
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, copied_export / "image_encoder.onnx")
    data = json.loads((copied_export / FILE_NAME).read_text())
    from samkit.manifest import file_sha256

    for artifact in data["artifacts"]:
        artifact["sha256"] = file_sha256(copied_export / artifact["file"])
    (copied_export / FILE_NAME).write_text(json.dumps(data))
    run = sam_export("--verify", copied_export)
    assert run.returncode == 1
    assert "image_encoder (fp32), image_embeddings, case 0: relative error" in run.stderr


def test_nan_fails_parity(tiny_export):
    method = samkit.get_method("m-sam")
    specs = Manifest.load(tiny_export).plan.specs

    class Broken:
        def __init__(self, runner):
            self.runner = runner

        def run(self, inputs):
            outputs = self.runner.run(inputs)
            return {name: value * np.nan for name, value in outputs.items()}

    runners = {spec.name: OnnxRuntimeRunner(tiny_export / f"{spec.name}.onnx", spec) for spec in specs}
    runners["image_encoder"] = Broken(runners["image_encoder"])
    with pytest.raises(ParityError, match="relative error nan"):
        check_parity(runners, references(tiny_export), method, Manifest.load(tiny_export).plan, "fp32")


def test_same_plan_is_kept_and_another_refused(copied_export, monkeypatch):
    def never(*args):
        raise AssertionError("the export was made again")

    monkeypatch.setattr(export_module, "make_references", never)
    kept = run_export(plan_export("m-sam", size="tiny", precision="fp16"), copied_export)
    assert kept == Manifest.load(copied_export)
    with pytest.raises(ExportError, match=r"holds another export .* pass force to replace it"):
        run_export(plan_export("m-sam", size="tiny"), copied_export)


def test_failed_stage_leaves_the_folder_as_it_was(copied_export, monkeypatch):
    before = {path.name: path.read_bytes() for path in copied_export.iterdir()}

    def fail(*args, **kwargs):
        raise ParityError("planted")

    monkeypatch.setattr(export_module, "make_references", fail)
    with pytest.raises(ParityError, match="planted"):
        run_export(plan_export("m-sam", size="tiny"), copied_export, force=True)
    assert {path.name: path.read_bytes() for path in copied_export.iterdir()} == before
    assert [path.name for path in copied_export.parent.iterdir()] == ["export"]


def test_folder_with_other_files_is_refused_untouched(tmp_path):
    (tmp_path / "my_model.onnx").write_bytes(b"mine")
    run = sam_export("--method", "m-sam", "--size", "tiny", "--force", "--out", tmp_path)
    assert run.returncode == 1
    assert "nothing of yours is replaced" in run.stderr
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("my_model.onnx", b"mine")]


def test_force_removes_only_what_the_old_export_wrote(copied_export, monkeypatch):
    (copied_export / "notes.onnx").write_bytes(b"mine")
    kept = Manifest.load(copied_export)
    first = kept.artifacts[0].file

    def write_one(work, precision, folder, check):
        (folder / first).write_bytes(b"new")
        return {}

    monkeypatch.setattr(export_module, "make_references", lambda work, folder: [])
    monkeypatch.setattr(writing_module, "freeze_network", lambda work, references: None)
    monkeypatch.setattr(writing_module, "write_files", write_one)
    monkeypatch.setattr(export_module.ParityCheck, "of_files", lambda *arguments: {})
    run_export(plan_export("m-sam", size="tiny"), copied_export, force=True)
    left = {path.name for path in copied_export.iterdir()}
    assert left == {"notes.onnx", FILE_NAME, first}


def test_file_as_export_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("mine")
    run = sam_export("--method", "m-sam", "--size", "tiny", "--out", tmp_path / "taken")
    assert run.returncode == 1
    assert "is a file, and an export is a folder" in run.stderr
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_absent_points_change_nothing_in_the_exported_graph(tiny_export, count):
    """1e-6 relative: beside real points, alone, and in a row of a batch whose other row has more points."""
    reference = references(tiny_export)[0]
    decoder = session(tiny_export / "mask_decoder.onnx")
    coords = reference.coords[:2, 0][None]
    labels = reference.labels[:2, 0][None]

    def logits(coords, labels):
        rows = len(coords)
        feed = {
            "image_embeddings": np.repeat(reference.embeddings, rows, axis=0),
            "point_coords": coords.astype(np.float32),
            "point_labels": labels.astype(np.float32),
            "mask_input": np.repeat(reference.steps[0]["low_res_masks"], rows, axis=0),
        }
        return decoder.run(["low_res_masks"], feed)[0]

    plain = logits(coords[:, :count], labels[:, :count])
    filled = np.where(np.arange(2)[None, :, None] < count, coords, np.nan)
    marked = np.where(np.arange(2)[None] < count, labels, -2)
    assert relative_error(logits(filled, marked), plain) < 1e-6
    both = logits(np.concatenate([coords, filled]), np.concatenate([labels, marked]))
    assert relative_error(both[1:], plain) < 1e-6


def test_list_names_every_method():
    run = sam_export("--list")
    assert run.returncode == 0
    assert all(name in run.stdout for name in samkit.list_methods())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--method", "m-sma"], 2, "Did you mean 'm-sam'?"),
        ([], 2, "no --method"),
        (["--method", "m-sam", "--list"], 2, "stand alone"),
        (["--method", "m-sam", "--checkpoint", "nowhere.pth"], 3, "there is no checkpoint nowhere.pth"),
        (["--method", "sam-med3d", "--refinement", "recurrent"], 2, "it has anchored"),
        (["--verify", "nowhere"], 3, "there is no folder nowhere; check the path"),
        (["--method", "sam", "--detector", "yolo.pt"], 2, "--detector does not belong to sam"),
        (["--method", "lora-sam", "--base", "sam.pth"], 2, "--base goes with a --checkpoint"),
    ],
)
def test_bad_calls_end_in_one_sentence(arguments, code, words):
    run = sam_export(*arguments)
    assert run.returncode == code
    assert words in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_weights_beyond_a_protobuf_lie_beside_it(tmp_path, monkeypatch):
    """As ViT-H's do; the limit is lowered instead."""
    from samkit.export import graphs

    monkeypatch.setattr(graphs, "LARGEST_FILE", 10_000)
    folder = tmp_path / "export"
    manifest = run_export(plan_export("sam-med2d", size="tiny", precision="fp16"), folder)
    names = {artifact.file for artifact in manifest.artifacts}
    assert {"image_encoder.onnx.data", "image_encoder.fp16.onnx.data"} <= names
    moved = folder.rename(tmp_path / "moved")
    Manifest.load(moved).verify(moved)
    assert session(moved / "image_encoder.fp16.onnx").get_inputs()[0].name == "image"
