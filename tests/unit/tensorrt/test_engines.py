"""Guards how engines are built: in a child process, from a checked export, into its manifest, or not at all.

TensorRT and pycuda are stand-ins that know the names of the real ones alone (stand_in_tensorrt.py).
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from samkit.engine_libraries import TENSORRT
from samkit.errors import ExportError, ManifestError, MissingDependencyError, ParityError
from samkit.export import engines as engines_module
from samkit.export.build_engine import EnginePlan, read_timing_cache, timing_cache_file, write_timing_cache
from samkit.export.engines import EngineSettings, build_engines, engine_profile
from samkit.manifest import Manifest
from samkit.methods import get_method, list_methods
from samkit.methods.method import GraphSpec
from samkit.runtime.backends import tensorrt_library
from samkit.tensors import Axis, TensorSpec

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export")]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- What a build leaves ---


def test_every_graph_becomes_an_engine_of_the_manifest(stand_ins, export, version, cuda, caplog):
    before = content(export)
    caplog.set_level(logging.INFO, "samkit")
    manifest = build_engines(export, settings=EngineSettings(workspace_bytes=1 << 20, optimization_level=2))
    plan = manifest.plan
    wanted = {TENSORRT.engine_file(graph.name, precision) for graph in plan.specs for precision in plan.precisions}
    assert set(manifest.engines) == wanted
    assert manifest == Manifest.load(export)
    manifest.verify(export)
    precision = "fp32" if version == "10.16" else "fp16"
    name = f"mask_decoder.{precision}.plan"
    facts = manifest.engines[name]
    assert (facts["graph"], facts["precision"]) == ("mask_decoder", precision)
    assert (facts["tensorrt"], facts["gpu"], facts["compute_capability"]) == (
        f"{version}.0.106",
        "Stand-in H100",
        "9.0",
    )
    assert (facts["cuda"], facts["cuda_driver"]) == ("13.0", "13.4")
    assert (facts["workspace_bytes"], facts["optimization_level"]) == (1 << 20, 2)
    assert facts["profile"]["point_labels"] == [[1, 1], [1, 1], [8, 64]]
    assert facts["build_seconds"] >= 0
    assert facts["parity"]["dice"] >= 0.995
    assert (facts["run"]["gpu"], facts["platform"]) == ("Stand-in H100", "linux")
    listed = {artifact.file: artifact.sha256 for artifact in manifest.artifacts}
    assert listed[name] == facts["sha256"]
    layers, cache = facts["files"][1:]
    assert json.loads((export / layers).read_text())["Layers"] == ["a", "b"]
    assert json.loads((export / cache).read_bytes().split(b"\n")[0])["onnx_sha256"] == facts["onnx_sha256"]
    after = content(export)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: value for name, value in before.items() if name != "manifest.json"
    }
    assert set(after) == {*before, *(file for entry in manifest.engines.values() for file in entry["files"])}
    assert any("built in" in line for line in caplog.messages)
    assert cuda().left() == {}  # parity ran on runners that were closed


@pytest.mark.parametrize("version", ["11.4"])
def test_engines_of_this_machine_are_kept(stand_ins, export, quick, caplog):
    first = build_engines(export)
    caplog.set_level(logging.INFO, "samkit")
    assert build_engines(export) == first
    assert "nothing to do" in caplog.messages[0]
    again = build_engines(export, force=True)
    assert all(entry["timing_cache_used"] for entry in again.engines.values())
    other = build_engines(export, settings=EngineSettings(optimization_level=5))
    assert {entry["optimization_level"] for entry in other.engines.values()} == {5}
    other.verify(export)


@pytest.mark.parametrize("version", ["11.4"])
def test_another_gpu_builds_anew_and_leaves_nothing_behind(stand_ins, export, quick):
    first = build_engines(export)
    stand_ins(gpu="Stand-in L4")
    second = build_engines(export)
    assert {entry["gpu"] for entry in second.engines.values()} == {"Stand-in L4"}
    assert not any(entry["timing_cache_used"] for entry in second.engines.values())
    old = {file for entry in first.engines.values() for file in entry["files"] if file.endswith(".timing-cache")}
    assert not old & {path.name for path in export.iterdir()}


@pytest.mark.parametrize("version", ["11.4"])
def test_untested_version_is_called_so(stand_ins, export, quick, monkeypatch, caplog):
    monkeypatch.setattr(tensorrt_library, "is_known", lambda *which: False)
    build_engines(export)
    (warned,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "is untested: calls were checked against the APIs of 10.16 and 11.4 alone" in warned.getMessage()


# --- What fails ---


@pytest.mark.parametrize("version", ["11.4"])
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "parse",
            r"node 12 '/decoder/NonZero' \(NonZero\): data-dependent shapes \| node 3 ",
        ),
        ("build", r"no engine of image_encoder\.onnx \(Could not find any implementation for node /blocks\.0/MatMul\)"),
        (
            "shape",
            r"takes no shapes from \(1, 1, 32, .*'image' of image_encoder\.onnx \(inconsistent dim.*; report this",
        ),
        ("profile", r"takes no profile .*image_encoder\.onnx"),
        ("cache", r"refuses the timing cache of image_encoder\.onnx"),
        ("load", r"can't load the engine it has just built \(Serialization assertion"),
        ("crash", r"the process that built it ended with code 7"),
        ("killed", r"was ended by SIGKILL, often for want of memory: try a smaller engine_workspace"),
    ],
)
def test_failure_is_one_sentence_and_changes_nothing(stand_ins, export, monkeypatch, fault, sentence):
    before = content(export)
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    with pytest.raises(
        ExportError, match=rf"image_encoder\.fp32\.plan was not built: .*{sentence}.*; the log is "
    ) as failed:
        build_engines(export)
    assert "\n" not in str(failed.value)
    log = Path(str(failed.value).rpartition("the log is ")[2])
    assert "INFO: the stand-in builds" in log.read_text()
    assert "nobody wants to read this" not in log.read_text()
    shutil.rmtree(log.parent)
    assert content(export) == before


@pytest.mark.parametrize("version", ["11.4"])
def test_engine_that_moved_too_far_is_not_kept(stand_ins, export, quick, monkeypatch):
    before = content(export)

    def too_far(*arguments):
        raise ParityError("mask_decoder moved")

    monkeypatch.setattr(engines_module, "repeat_parity", too_far)
    with pytest.raises(ParityError):
        build_engines(export)
    assert content(export) == before


@pytest.mark.parametrize("version", ["11.4"])
def test_changed_export_is_not_built_from(stand_ins, export):
    with (export / "mask_decoder.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(ManifestError, match=r"mask_decoder\.onnx changed since it was exported"):
        build_engines(export)


@pytest.mark.parametrize("version", ["11.4"])
def test_no_gpu_and_no_packages_are_told_apart(stand_ins, export, monkeypatch):
    stand_ins(devices=0)
    with pytest.raises(MissingDependencyError, match=r"CUDA driver does not start.*nvidia-smi"):
        build_engines(export)
    packages = Path(sys.path[0])
    shutil.rmtree(packages / "pycuda")
    sys.modules.pop("pycuda", None)
    monkeypatch.setitem(sys.modules, "cuda", None)  # it may be installed
    with pytest.raises(
        MissingDependencyError, match=r"of pycuda and cuda-bindings none is installed; pip .*\[tensorrt\].* as a wheel"
    ):
        build_engines(export)
    (packages / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    sys.modules.pop("tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"does not load \(libnvinfer\.so\.11.*NVIDIA's own package index"):
        build_engines(export)


@pytest.mark.parametrize("version", ["11.4"])
def test_without_tensorrt_the_sentence_names_the_extra(export, monkeypatch):
    monkeypatch.setattr("samkit.runtime.backends.tensorrt_library.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"TensorRT is not installed.*pip install .*\[tensorrt\]"):
        build_engines(export)


# --- Timing caches ---


def test_timing_cache_is_bound_to_graph_and_machine(tmp_path):
    binding = {"onnx_sha256": "a", "gpu": "A", "compute_capability": "9.0", "tensorrt": "11.4", "cuda": "13.0"}
    binding |= {"cuda_driver": "13.4", "driver": "580.1"}
    path = timing_cache_file(tmp_path / "mask_decoder.fp16.plan", binding)
    write_timing_cache(path, binding, b"bytes\nand more")
    assert read_timing_cache(path, binding) == b"bytes\nand more"
    for fact in binding:
        other = {**binding, fact: "another"}
        assert timing_cache_file(tmp_path / "mask_decoder.fp16.plan", other) != path
        with pytest.raises(ExportError, match=f"was timed for {fact} .*, and this build has another; delete it"):
            read_timing_cache(path, other)
    path.write_bytes(b"no header")
    with pytest.raises(ExportError, match="is no timing cache of samkit's"):
        read_timing_cache(path, binding)


# --- Profiles ---


@pytest.mark.parametrize("name", list_methods())
def test_profiles_are_ordered_and_never_empty(name):
    method = get_method(name)
    for config in method.sizes.values():
        for graph in method.graphs(config):
            for spec in graph.inputs:
                smallest, usual, largest = engine_profile(graph)[spec.name]
                for axis, low, middle, high in zip(spec.axes, smallest, usual, largest, strict=True):
                    assert 1 <= low <= middle <= high == axis.max
                    assert low in (axis.min, 1)
                    assert [low % axis.step, middle % axis.step, high % axis.step] == [0, 0, 0]


@pytest.mark.parametrize(
    ("axis", "sentence"),
    [
        (Axis("rows", 0, 1, 8), "axis rows of 'x' may be empty"),
        (Axis("height", 32, 50, 64, step=32), "has the opt 50, which its step forbids"),
    ],
)
def test_axis_that_no_profile_takes_is_refused(axis, sentence):
    graph = GraphSpec("g", (TensorSpec("x", "float32", (axis,)),), (), {})
    with pytest.raises(ExportError, match=sentence):
        engine_profile(graph)


# --- The child process ---


def test_child_gets_a_plan_and_nothing_else(tmp_path):
    for arguments, sentence in (([], "usage: "), ([str(tmp_path / "none.json")], "is no plan of an engine")):
        ended = subprocess.run(
            [sys.executable, "-m", "samkit.export.build_engine", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2
        assert sentence in ended.stderr


@pytest.mark.parametrize("version", ["11.4"])
def test_child_refuses_a_graph_that_is_not_the_planned_one(stand_ins, export, tmp_path):
    plan = EnginePlan(
        onnx=str(export / "mask_decoder.onnx"), onnx_sha256="another", engine=str(tmp_path / "mask_decoder.fp32.plan"),
        library="tensorrt", target="", platform="",
        profile={}, workspace_bytes=1, optimization_level=0, timing_caches=[], log=str(tmp_path / "log"),
        result=str(tmp_path / "result.json"),
    )  # fmt: skip
    plan.save(tmp_path / "plan.json")
    assert EnginePlan.load(tmp_path / "plan.json") == replace(plan)
    command = [sys.executable, "-m", "samkit.export.build_engine", str(tmp_path / "plan.json")]
    assert subprocess.run(command, check=False).returncode == 1
    assert "mask_decoder.onnx changed since the build was planned" in json.loads(Path(plan.result).read_text())["error"]


def test_building_needs_neither_torch_nor_onnx():
    code = "import sys; sys.modules.update(torch=None, onnx=None)\nimport samkit.export.engines"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
