"""Guards the writing of a repository: whole or not at all, an exact copy of its exports, silent about their origin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import samkit
from samkit.errors import ManifestError, MissingDependencyError, ServingError
from samkit.manifest import Manifest, Weights, file_sha256
from samkit.methods import SliceMethod, get_method
from samkit.triton_models import repository
from samkit.triton_models.limits import Limits
from samkit.triton_models.model_config import ROLES, SESSION, check_config, parse_config
from samkit.triton_models.record import FILE_NAME, Repository
from samkit.triton_models.repository import write_repository

PYTHON_ROLES = (*ROLES, SESSION)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "served").mkdir()
    return tmp_path / "served" / "repository"


def parameters(folder, model):
    config = parse_config((folder / model / "config.pbtxt").read_text(), model)
    return {key: entry.string_value for key, entry in config.parameters.items()}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- What is written ---


@pytest.mark.parametrize("name", samkit.list_methods())  # a new file is tested at once
def test_every_method_becomes_a_repository(paper_export, out, name):
    export = paper_export(name)
    manifest, served = Manifest.load(export), name.replace("-", "_")
    record = write_repository([export], out)
    assert Repository.load(out) == record
    assert record.samkit == samkit.__version__
    (entry,) = record.exports.values()
    assert (entry.method, entry.precision, entry.manifest) == (name, "fp32", manifest.digest)
    assert entry.models == {
        **{f"{served}_{graph}": "onnxruntime" for graph in manifest.plan.graphs},
        **{f"{served}_{role}": "python" for role in PYTHON_ROLES},
        served: "ensemble",
    }
    assert {path.name for path in out.iterdir()} == {FILE_NAME, *entry.models}
    for graph in manifest.plan.specs:
        folder = out / f"{served}_{graph.name}"
        check_config((folder / "config.pbtxt").read_text(), graph)
        assert (folder / "1" / "model.onnx").read_bytes() == (export / f"{graph.name}.onnx").read_bytes()
    for model in entry.models:
        assert parse_config((out / model / "config.pbtxt").read_text(), model).name == model
        assert (out / model / "1").is_dir()
    slices = isinstance(get_method(name), SliceMethod)
    refine = parse_config((out / f"{served}_refine" / "config.pbtxt").read_text(), "refine")
    assert [tensor.name for tensor in refine.output] == ["found", "labels" if slices else "logits"]


def test_every_file_but_configs_is_in_the_record_with_its_hash(paper_export, out):
    record = write_repository([paper_export("m-sam")], out)
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    files = record.exports["m_sam"].files
    assert set(files) == {path for path in there if not path.endswith("config.pbtxt")} - {FILE_NAME}
    assert files == {path: file_sha256(out / path) for path in files}


@pytest.mark.parametrize("role", PYTHON_ROLES)
def test_python_model_is_our_file_beside_a_manifest_that_loads(paper_export, out, role):
    export = paper_export("sam")
    write_repository([export], out)
    version = out / f"sam_{role}" / "1"
    assert (version / "model.py").read_bytes() == (repository.MODELS / f"{role}.py").read_bytes()
    assert Manifest.load(version).plan == Manifest.load(export).plan


def test_several_exports_stand_side_by_side(paper_export, out):
    exports = [paper_export("m-sam"), paper_export("sam-med2d")]
    record = write_repository(exports, out)
    assert list(record.exports) == ["m_sam", "sam_med2d"]
    assert {path.name for path in out.iterdir()} == {FILE_NAME, *record.models}


def test_name_replaces_that_of_the_method(paper_export, out):
    record = write_repository([paper_export("sam")], out, name="liver_2")
    assert set(record.exports) == {"liver_2"}
    assert record.exports["liver_2"].method == "sam"
    assert parameters(out, "liver_2_session")["samkit_name"] == "liver_2"


def test_limits_reach_the_models(paper_export, out):
    limits = Limits(
        max_sessions=3,
        idle_seconds=60,
        heartbeat_seconds=6,
        unused_seconds=7,
        memory_bytes=5,
        cache_bytes=0,
        max_voxels=1000,
        threads=2,
    )
    export = paper_export("sam")
    write_repository([export], out, limits=limits)
    digest = Manifest.load(export).digest
    common = {"samkit_name": "sam", "precision": "fp32", "manifest": digest, "engines": ""}
    assert parameters(out, "sam_session") == {
        **common, "max_sessions": "3", "idle_seconds": "60", "heartbeat_seconds": "6", "unused_seconds": "7",
        "memory_bytes": "5", "cache_bytes": "0", "max_voxels": "1000", "threads": "2",
    }  # fmt: skip
    for role in ("preprocess", "postprocess"):
        assert parameters(out, f"sam_{role}") == {**common, "max_voxels": "1000"}
    assert parameters(out, "sam_refine") == {**common, "max_voxels": "1000", "threads": "2"}


def test_weights_beside_a_graph_keep_their_name(paper_export, out):
    beside = ("mask_decoder.onnx.data", "parity.npz")
    record = write_repository([paper_export("sam", beside=beside)], out)
    decoder = {path for path in record.exports["sam"].files if path.startswith("sam_mask_decoder/")}
    assert decoder == {"sam_mask_decoder/1/model.onnx", "sam_mask_decoder/1/mask_decoder.onnx.data"}
    assert not list(out.rglob("parity.npz"))


def test_precision_is_fp32_unless_asked_for(paper_export, out):
    export = paper_export("sam", precision="fp16")
    assert write_repository([export], out).exports["sam"].precision == "fp32"
    assert (out / "sam_image_encoder" / "1" / "model.onnx").read_text() == "image_encoder.onnx of sam"
    assert write_repository([export], out, precision="fp16").exports["sam"].precision == "fp16"
    assert (out / "sam_image_encoder" / "1" / "model.onnx").read_text() == "image_encoder.fp16.onnx of sam"
    assert parameters(out, "sam_refine")["precision"] == "fp16"


# --- Engines ---


def test_graph_with_an_engine_is_served_by_it(paper_export, out):
    export = paper_export("sam", engines=[("image_encoder", "fp32"), ("mask_decoder", "fp16")], precision="fp16")
    entry = write_repository([export], out).exports["sam"]
    assert entry.models["sam_image_encoder"] == "tensorrt"
    assert entry.models["sam_mask_decoder"] == "onnxruntime"  # its engine is of the other precision
    assert {path.name for path in (out / "sam_image_encoder" / "1").iterdir()} == {"model.plan"}
    assert entry.engines == {"sam_image_encoder": Manifest.load(export).engines["image_encoder.fp32.plan"]}
    config = parse_config((out / "sam_image_encoder" / "config.pbtxt").read_text(), "sam_image_encoder")
    assert (config.platform, config.default_model_filename) == ("tensorrt_plan", "model.plan")


def test_without_engines_their_files_are_neither_needed_nor_copied(paper_export, out):
    export = paper_export("sam", engines=[("image_encoder", "fp32")])
    (export / "image_encoder.fp32.plan").unlink()
    with pytest.raises(ManifestError, match=r"image_encoder\.fp32\.plan is missing"):
        write_repository([export], out)
    entry = write_repository([export], out, engines=False).exports["sam"]
    assert set(entry.models.values()) == {"onnxruntime", "python", "ensemble"}
    assert entry.engines == {}


HERE = {"tensorrt_rtx": "1.7.1.116", "gpu": "RTX 4090", "compute_capability": "8.9"}


def on_machine(monkeypatch, **facts):
    """Have `sam-serve write` run on a machine with a GPU and TensorRT for RTX."""
    monkeypatch.setattr(repository, "describe_here", lambda library: {**HERE, **facts})


def test_engines_for_rtx_are_served_behind_python_where_this_machine_runs_them(paper_export, out, monkeypatch):
    export = paper_export("sam", rtx=[("image_encoder", "fp32"), ("mask_decoder", "fp16")])
    name = "image_encoder.fp32.rtx.engine"
    assert write_repository([export], out).exports["sam"].models["sam_image_encoder"] == "onnxruntime"  # no GPU here
    on_machine(monkeypatch, compute_capability="7.5")
    assert write_repository([export], out).exports["sam"].engines == {}
    on_machine(monkeypatch)
    assert write_repository([export], out, rtx=False).exports["sam"].engines == {}
    assert write_repository([export], out, engines=False).exports["sam"].engines == {}

    entry = write_repository([export], out).exports["sam"]
    assert entry.models["sam_image_encoder"] == "tensorrt-rtx"
    assert entry.models["sam_mask_decoder"] == "onnxruntime"  # its engine is of the other precision
    folder = out / "sam_image_encoder" / "1"
    assert {path.name for path in folder.iterdir()} == {name, "model.py", "manifest.json"}
    assert {file for file in entry.files if file.startswith("sam_image_encoder/")} == {
        f"sam_image_encoder/1/{file}" for file in (name, "model.py", "manifest.json")
    }
    assert entry.engines == {"sam_image_encoder": Manifest.load(export).engines[name]}
    config = parse_config((out / "sam_image_encoder" / "config.pbtxt").read_text(), "sam_image_encoder")
    assert (config.backend, config.platform, config.default_model_filename) == ("python", "", "")
    facts = {key: entry.string_value for key, entry in config.parameters.items()}
    assert (facts["graph"], facts["precision"], facts["kernels"]) == ("image_encoder", "fp32", "lazy")
    assert parameters(out, "sam_refine")["engines"] == ""  # its axes may be empty: the runner fills them


def test_engines_for_rtx_are_served_elsewhere_where_that_is_asked(paper_export, out):
    export = paper_export("sam", rtx=[("image_encoder", "fp32")])
    entry = write_repository([export], out, rtx=True).exports["sam"]
    assert entry.models["sam_image_encoder"] == "tensorrt-rtx"
    (export / "image_encoder.fp32.rtx.engine").unlink()
    assert write_repository([export], out).exports["sam"].engines == {}  # what is not served is not needed
    with pytest.raises(ManifestError, match=r"image_encoder\.fp32\.rtx\.engine is missing"):
        write_repository([export], out, rtx=True)


def test_engine_of_tensorrt_comes_first(paper_export, out, monkeypatch):
    on_machine(monkeypatch)
    export = paper_export("sam", engines=[("image_encoder", "fp32")], rtx=[("image_encoder", "fp32")])
    assert write_repository([export], out).exports["sam"].models["sam_image_encoder"] == "tensorrt"


# --- Where an export came from ---


def test_repository_does_not_say_where_weights_lay_or_how_they_were_trained(paper_export, out):
    folder = "/hospital/jane_doe"
    export = paper_export(
        "medsam-yolo",
        weights=Weights("checkpoint", f"{folder}/best.safetensors", "12ab"),
        others={"detector": Weights("checkpoint", f"{folder}/yolo.pt", "34cd")},
        provenance={"command": f"sam-train --data {folder}/scans", "detector": {"command": f"--init {folder}"}},
    )
    record = write_repository([export], out)
    assert not [path for path, content in contents(out).items() if b"jane_doe" in content]
    plan = Manifest.load(out / "medsam_yolo_session" / "1").plan
    assert plan.weights == Weights("checkpoint", None, "12ab")
    assert plan.others["detector"] == Weights("checkpoint", None, "34cd")
    # What a report calls the export by is that of the export itself
    digest = Manifest.load(export).digest
    assert record.exports["medsam_yolo"].manifest == digest
    assert parameters(out, "medsam_yolo_postprocess")["manifest"] == digest


# --- What is refused ---


def test_changed_export_is_refused_before_anything_is_written(paper_export, out):
    export = paper_export("sam")
    (export / "mask_decoder.onnx").write_text("another graph")
    with pytest.raises(ManifestError, match=r"mask_decoder\.onnx changed since it was exported"):
        write_repository([export], out)
    assert list(out.parent.iterdir()) == []


def test_missing_precision_names_what_there_is(paper_export, out):
    said = "no image_encoder in fp16, it has fp32; export again with sam-export --fp16"
    with pytest.raises(ManifestError, match=said):
        write_repository([paper_export("sam")], out, precision="fp16")


def test_two_exports_under_one_name_are_refused(paper_export, out):
    with pytest.raises(ServingError, match="two exports would be served as m_sam, and a name has one"):
        write_repository([paper_export("m-sam"), paper_export("m-sam", "again")], out)


def test_name_that_is_a_part_of_another_is_refused(paper_export, out, monkeypatch):
    monkeypatch.setattr(repository, "ROLES", ("med2d",))  # a role whose model of sam is called sam_med2d
    with pytest.raises(ServingError, match="the model sam_med2d would stand in the repository twice"):
        write_repository([paper_export("sam"), paper_export("sam-med2d")], out)


def test_one_name_for_several_exports_is_refused(paper_export, out):
    with pytest.raises(ServingError, match="name brain can't name 2 exports at once"):
        write_repository([paper_export("sam"), paper_export("medsam")], out, name="brain")


@pytest.mark.parametrize("name", ["M_Sam", "2d", "m-sam", "a b", "../sam", "_sam", "sam\n"])
def test_name_that_is_none_for_a_model_is_refused(paper_export, out, name):
    with pytest.raises(ServingError, match="no name for a model"):
        write_repository([paper_export("sam")], out, name=name)


def test_repository_of_nothing_is_refused(out):
    with pytest.raises(ServingError, match="no export was given"):
        write_repository([], out)


def test_missing_client_library_is_said_before_any_work(paper_export, out, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*\[client\]"):
        write_repository([paper_export("sam")], out)
    assert list(out.parent.iterdir()) == []


# --- The folder ---


def test_file_in_the_way_is_refused(paper_export, out):
    out.write_text("notes")
    with pytest.raises(ServingError, match="is a file, and a repository is a folder"):
        write_repository([paper_export("sam")], out)


def test_folder_of_something_else_is_refused(paper_export, out):
    export = paper_export("sam")
    with pytest.raises(ServingError, match="nothing of yours is replaced"):
        write_repository([export], export)
    assert Manifest.load(export).verify(export) is None


def test_empty_folder_is_taken(paper_export, out):
    out.mkdir()
    write_repository([paper_export("sam")], out)
    assert Repository.load(out).exports.keys() == {"sam"}


def test_repository_is_replaced_whole(paper_export, out):
    write_repository([paper_export("sam")], out)
    record = write_repository([paper_export("m-sam")], out)
    assert {path.name for path in out.iterdir()} == {FILE_NAME, *record.models}
    assert list(out.parent.iterdir()) == [out]


def test_repository_with_a_model_of_someone_else_is_not_replaced(paper_export, out):
    export = paper_export("sam")
    write_repository([export], out)
    (out / "their_model").mkdir()
    with pytest.raises(ServingError, match="also holds their_model, which samkit did not write"):
        write_repository([export], out)
    assert (out / "their_model").is_dir()


def test_link_to_a_repository_stays_a_link(paper_export, out):
    target = out.with_name("2026-08")
    write_repository([paper_export("sam")], target)
    out.symlink_to(target)
    write_repository([paper_export("m-sam")], out)
    assert out.is_symlink()
    assert Repository.load(target).exports.keys() == {"m_sam"}


def test_files_are_copies_and_not_links(paper_export, out):
    export = paper_export("sam")
    write_repository([export], out)
    (export / "image_encoder.onnx").write_text("made again in place")
    model = out / "sam_image_encoder" / "1" / "model.onnx"
    assert model.read_text() == "image_encoder.onnx of sam"
    assert model.stat().st_nlink == 1


def test_other_users_may_read_what_the_umask_lets_them(paper_export, out):
    (out.parent / "probe").mkdir()
    write_repository([paper_export("sam")], out)
    assert out.stat().st_mode == (out.parent / "probe").stat().st_mode


# --- Whole or not at all ---


def test_failure_half_way_leaves_the_old_repository_and_nothing_else(paper_export, out, monkeypatch):
    write_repository([paper_export("sam")], out)
    before, seen = contents(out), []
    copy = shutil.copyfile

    def full_disk(source, target):
        seen.append(Path(target))
        assert contents(out) == before  # what is served does not change while its successor is made
        if len(seen) > 3:
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(ServingError, match=r"can't be written to .* \(No space left on device\)"):
        write_repository([paper_export("m-sam")], out)
    assert contents(out) == before
    assert list(out.parent.iterdir()) == [out]
    assert not any(path.is_relative_to(out) for path in seen)


def test_interruption_leaves_nothing(paper_export, out, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_repository([paper_export("sam")], out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(13, "Permission denied"), ServingError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_old_repository_comes_back_when_the_new_one_cannot_be_moved(paper_export, out, monkeypatch, failure, raised):
    write_repository([paper_export("sam")], out)
    before = contents(out)
    rename = Path.rename

    def refuse_new(self, target):
        if self.name == "new":
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(raised):
        write_repository([paper_export("m-sam")], out)
    assert contents(out) == before


def test_file_that_changes_while_it_is_copied_is_refused(paper_export, out, monkeypatch):
    copy = shutil.copyfile

    def torn(source, target):
        copy(source, target)
        if Path(target).name == "model.onnx":
            Path(target).write_text("half")

    monkeypatch.setattr(shutil, "copyfile", torn)
    with pytest.raises(ManifestError, match="changed while it was copied"):
        write_repository([paper_export("sam")], out)
    assert list(out.parent.iterdir()) == []


def test_record_is_json_that_others_can_read(paper_export, out):
    write_repository([paper_export("sam")], out)
    data = json.loads((out / FILE_NAME).read_text())
    assert data["schema_version"] == 1
    assert set(data["exports"]["sam"]) == {"method", "precision", "manifest", "models", "files", "engines"}
