"""Guards the manifest: written whole, read strictly, and a changed byte is found."""

import json
from dataclasses import replace

import pytest

from samkit.errors import ManifestError
from samkit.manifest import FILE_NAME, Artifact, Export, Manifest, Weights

DEMO = Weights("demonstration", None, "0" * 64, demonstration=True)
OWN = Weights("checkpoint", "/runs/own/best.safetensors", "1" * 64)


@pytest.fixture
def folder(bright_export, tmp_path):
    for file in bright_export.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_manifest_comes_back(folder):
    manifest = Manifest.load(folder)
    manifest.verify(folder)
    (folder / FILE_NAME).unlink()
    manifest.save(folder)
    assert Manifest.load(folder) == manifest
    assert Manifest.load(folder).digest == manifest.digest


def test_changed_byte_is_refused(folder):
    path = folder / "image_encoder.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"image_encoder\.onnx changed since it was exported"):
        Manifest.load(folder).verify(folder)


def test_missing_file_is_refused(folder):
    (folder / "mask_decoder.onnx").unlink()
    with pytest.raises(ManifestError, match="is missing though the manifest lists it"):
        Manifest.load(folder).verify(folder)


def test_folder_without_manifest_is_no_export(tmp_path):
    with pytest.raises(ManifestError, match="no finished export"):
        Manifest.load(tmp_path)


def test_newer_schema_is_refused_with_advice(folder):
    data = json.loads((folder / FILE_NAME).read_text())
    (folder / FILE_NAME).write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(ManifestError, match="schema 99, this samkit reads up to 1; upgrade samkit"):
        Manifest.load(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', "null"])
def test_broken_manifest_is_a_sentence(folder, text):
    (folder / FILE_NAME).write_text(text)
    with pytest.raises(ManifestError, match="is not a samkit manifest"):
        Manifest.load(folder)


def changed(folder, *path, to):
    """Change one value in the manifest of `folder`."""
    data = json.loads((folder / FILE_NAME).read_text())
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    (folder / FILE_NAME).write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("schema_version",), 0, "schema_version is 0"),
        (("schema_version",), -1, "schema_version is -1"),
        (("schema_version",), float("nan"), "schema_version is nan"),
        (("schema_version",), True, "schema_version is True"),
        (("plan", "graphs"), [], "has no graphs"),
        (("plan", "graphs"), ["image_encoder", "image_encoder", "mask_decoder"], "a graph stands twice"),
        (("plan", "graphs"), ["image_encoder", "mask_decoder", "other"], "graphs are .*other"),
        (("plan", "graphs"), "image_encoder", "graphs of the plan is 'image_encoder', and a list is needed"),
        (("plan", "method"), "m-sma", "unknown method 'm-sma'"),
        (("plan", "method"), ["m-sam"], "method of the plan"),
        (("plan", "opset"), "20", "opset of the plan is '20', and a whole number"),
        (("plan", "opset"), 20.0, "opset of the plan"),
        (("plan", "folded"), 1, "folded of the plan is '1', and true or false"),
        (("plan", "precision"), "fp8", "precision 'fp8' is none of"),
        (("plan", "size"), "huge", "size 'huge' is none of"),
        (("plan", "weights", "kind"), "stolen", "none of checkpoint, demonstration, random"),
        (("plan", "config", "depth"), "2", "the config's depth is '2', and a whole number"),
        (("plan", "config", "depth"), 10**6, "depth 1000000 is above 512"),
        (("plan", "config", "width"), 10**6, "width 1000000 is above"),
        (("plan", "config", "spacing"), [1, 1], "spacing is .*, and a list of 3"),
        (("plan", "config"), [], "config is"),
        (("artifacts", 0, "bytes"), 1.5, "bytes of artifacts of it is '1.5', and a whole number"),
        (("artifacts", 0, "file"), "../elsewhere.onnx", "lie not in the folder"),
        (("artifacts", 0, "extra"), 1, "has 'extra', which nothing reads"),
        (("engines",), {"a.plan": {"files": ["b"]}}, "names that it lists"),
        (("environment",), {"torch": 2}, "torch in environment of it is '2', and text"),
    ],
)
def test_a_value_that_no_manifest_has_is_a_sentence(folder, path, value, told):
    changed(folder, *path, to=value)
    with pytest.raises(ManifestError, match=f"is not a samkit manifest .*{told}") as refused:
        Export.open(folder)
    assert refused.value.exit_code == 3
    assert str(refused.value).count("export again") == 1


def test_every_graph_needs_its_file(folder):
    changed(folder, "artifacts", to=[])
    with pytest.raises(ManifestError, match=r"does not list image_encoder\.onnx, a file of its plan"):
        Export.open(folder, verify=False)


def test_a_nested_manifest_is_a_sentence(folder):
    (folder / FILE_NAME).write_text("[" * 100_000)
    with pytest.raises(ManifestError, match="nested more than 100 levels"):
        Manifest.load(folder)


def test_missing_precision_names_what_there_is(folder):
    with pytest.raises(ManifestError, match="it has fp32; export again with sam-export --fp16"):
        Manifest.load(folder).path(folder, "mask_decoder", "fp16")


def test_export_is_its_folder_manifest_method_and_network(folder):
    export = Export.open(folder)
    assert export.manifest == Manifest.load(folder)
    assert (export.method.name, export.config) == (export.plan.method, export.plan.config)
    assert export.path("mask_decoder", "fp32") == folder / "mask_decoder.onnx"
    assert {spec.name for spec in export.specs} <= {spec.name for spec in export.graphs}


def test_changed_byte_is_refused_when_an_export_is_opened_unless_told_otherwise(folder):
    (folder / "mask_decoder.onnx").write_bytes(b"other graph")
    with pytest.raises(ManifestError, match=r"mask_decoder\.onnx changed since it was exported"):
        Export.open(folder)
    assert Export.open(folder, verify=False).folder == folder


def test_engines_are_verified_where_an_export_is_opened_for_them(folder):
    manifest = Manifest.load(folder)
    gone = Artifact("mask_decoder.fp32.plan", "ab", 1)
    engines = {gone.file: {"files": [gone.file]}}
    replace(manifest, artifacts=(*manifest.artifacts, gone), engines=engines).save(folder)
    assert Export.open(folder).folder == folder
    with pytest.raises(ManifestError, match=r"mask_decoder\.fp32\.plan is missing .* sam-export --build-engines"):
        Export.open(folder, engines=True)


def test_export_without_a_graph_that_its_method_needs_is_refused(folder):
    manifest = Manifest.load(folder)
    replace(manifest, plan=replace(manifest.plan, graphs=("image_encoder",))).save(folder)
    with pytest.raises(ManifestError, match="has no graph mask_decoder, which sam-med3d needs; export again"):
        Export.open(folder, verify=False)


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        ('{"plan": {"method": "m-sam", "part": ""}}', "sam-export --method m-sam --checkpoint {}"),
        ('{"plan": {"method": "medsam-yolo", "part": "detector"}}', "sam-export --method medsam-yolo --detector {}"),
        ("[]", "check the path, or make an export with sam-export --method M --out {}"),
        (None, "check the path, or make an export with sam-export --method M --out {}"),
    ],
)
def test_a_folder_that_is_no_export_is_told_how_to_become_one(tmp_path, facts, advice):
    if facts is not None:
        (tmp_path / "run.json").write_text(facts)
    with pytest.raises(ManifestError) as refused:
        Export.open(tmp_path)
    assert str(refused.value).endswith(advice.format(tmp_path))


def test_a_checkpoint_is_no_export(tmp_path):
    (tmp_path / "m_sam.pth").touch()
    with pytest.raises(
        ManifestError, match=r"it is a file; export it with sam-export --method M --checkpoint .*m_sam\.pth"
    ):
        Export.open(tmp_path / "m_sam.pth")


@pytest.mark.parametrize(
    ("weights", "detector", "words"),
    [
        (DEMO, None, "DEMONSTRATION WEIGHTS"),
        (OWN, DEMO, "DEMONSTRATION WEIGHTS IN THE DETECTOR"),
        (DEMO, OWN, "DEMONSTRATION WEIGHTS BUT FOR THE DETECTOR"),
        (OWN, OWN, ""),
        (OWN, None, ""),
    ],
)
def test_a_plan_names_the_part_that_is_demonstration(folder, weights, detector, words):
    others = {"detector": detector} if detector else {}
    plan = replace(Manifest.load(folder).plan, method="medsam-yolo", weights=weights, others=others)
    assert plan.demonstration == words
    assert plan.is_demonstration == bool(words)
