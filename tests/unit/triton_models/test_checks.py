"""Guards what `sam-serve check` finds: everything that would keep a repository from being served, in one go."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from samkit.errors import MissingDependencyError
from samkit.runtime.backends import onnxruntime_runner
from samkit.triton_models import checks
from samkit.triton_models.checks import find_problems
from samkit.triton_models.repository import write_repository

HERE = {"gpu": "H100", "compute_capability": "9.0"}


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """A machine on which the embedded server runs, with TensorRT 11.4 and an H100 besides."""
    for need in ("find_server", "check_numpy"):
        monkeypatch.setattr(checks, need, lambda: None)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 40))
    monkeypatch.setattr(checks, "describe_here", lambda library: {"tensorrt": "11.4.0", **HERE})


@pytest.fixture
def repository(paper_export, tmp_path):
    write_repository([paper_export("m-sam")], tmp_path / "repository")
    return tmp_path / "repository"


@pytest.fixture
def with_engine(repository):
    """The repository with an engine in its record: those of paper lack most facts."""

    def change(**facts):
        path = repository / "samkit.json"
        record = json.loads(path.read_text())
        record["exports"]["m_sam"]["models"]["m_sam_image_encoder"] = "tensorrt"
        record["exports"]["m_sam"]["engines"]["m_sam_image_encoder"] = {"tensorrt": "11.4.0", **HERE, **facts}
        path.write_text(json.dumps(record))
        return repository

    return change


@pytest.fixture
def real_repository(bright_export, tmp_path):
    """A repository whose ONNX files can be run."""
    write_repository([bright_export], tmp_path / "real")
    return tmp_path / "real"


def only(problems):
    (problem,) = problems
    assert "\n" not in problem
    return problem


def test_a_repository_that_was_just_written_has_no_problem(repository):
    assert find_problems(repository) == []
    assert find_problems(repository, embedded=False) == []


# --- The repository ---


def test_a_folder_that_is_no_repository_is_said(tmp_path):
    assert "no samkit.json" in only(find_problems(tmp_path))


def test_a_newer_record_is_said(repository):
    record = json.loads((repository / "samkit.json").read_text())
    (repository / "samkit.json").write_text(json.dumps({**record, "schema_version": 99}))

    assert "schema 99" in only(find_problems(repository))


def test_another_samkit_is_said(repository):
    record = json.loads((repository / "samkit.json").read_text())
    (repository / "samkit.json").write_text(json.dumps({**record, "samkit": "0.0.1"}))

    assert "written by samkit 0.0.1" in only(find_problems(repository))


def test_a_changed_file_is_said(repository):
    (repository / "m_sam_mask_decoder" / "1" / "model.onnx").write_text("other")

    assert "model.onnx changed since it was written" in only(find_problems(repository))


def test_a_missing_file_is_said(repository):
    (repository / "m_sam_session" / "1" / "model.py").unlink()

    assert "model.py is missing" in only(find_problems(repository))


def test_a_missing_model_is_said(repository):
    shutil.rmtree(repository / "m_sam")

    assert "lacks the model m_sam " in only(find_problems(repository))


def test_a_missing_version_folder_of_the_ensemble_is_said(repository):
    (repository / "m_sam" / "1").rmdir()

    assert "lacks the folder of its version" in only(find_problems(repository))


def test_a_model_that_samkit_did_not_write_is_said(repository):
    (repository / "other" / "1").mkdir(parents=True)

    assert "also holds other" in only(find_problems(repository))


@pytest.mark.parametrize("model", ["m_sam", "m_sam_session", "m_sam_image_encoder"])
def test_a_missing_config_is_said(repository, model):
    (repository / model / "config.pbtxt").unlink()

    assert "config.pbtxt is missing" in only(find_problems(repository))


@pytest.mark.parametrize("model", ["m_sam", "m_sam_session", "m_sam_image_encoder"])
def test_a_config_that_does_not_parse_is_said(repository, model):
    (repository / model / "config.pbtxt").write_text("input [")

    assert "does not parse" in only(find_problems(repository))


def test_a_config_that_no_longer_fits_its_graph_is_said(repository):
    path = repository / "m_sam_mask_decoder" / "config.pbtxt"
    path.write_text(path.read_text().replace("mask_input", "mask"))

    assert "config.pbtxt of mask_decoder" in only(find_problems(repository))


def test_a_config_of_another_model_is_said(repository):
    path = repository / "m_sam_session" / "config.pbtxt"
    path.write_text(path.read_text().replace("m_sam_session", "session"))

    assert "is of a model 'session'" in only(find_problems(repository))


@pytest.mark.parametrize(
    ("found", "there", "words"),
    [
        ("count: 1", "count: 2", "needed is one on the CPU"),
        ('string_value: "16"', 'string_value: "many"', "the limit max_sessions is 'many'"),
        ('name: "token"', 'name: "tok"', "has the inputs"),
    ],
)
def test_a_session_that_can_not_be_served_so_is_said(repository, found, there, words):
    path = repository / "m_sam_session" / "config.pbtxt"
    assert found in path.read_text()
    path.write_text(path.read_text().replace(found, there))

    assert words in only(find_problems(repository))


def test_graphs_that_are_what_their_configs_say_have_no_problem(real_repository):
    assert find_problems(real_repository) == []


def test_another_graph_in_a_model_s_file_is_said(real_repository):
    encoder, decoder = (real_repository / f"sam_med3d_{name}" / "1" for name in ("image_encoder", "mask_decoder"))
    shutil.copy(encoder / "model.onnx", decoder / "model.onnx")
    problems = find_problems(real_repository)

    assert f"{decoder / 'model.onnx'} has the inputs image, and its config image_embeddings, " in "\n".join(problems)
    assert "has the outputs image_embeddings, and its config" in "\n".join(problems)


def test_a_file_that_no_longer_is_a_graph_is_said(real_repository):
    (real_repository / "sam_med3d_mask_decoder" / "1" / "model.onnx").write_text("text")

    assert "can't be run: ONNX Runtime can't load model.onnx" in find_problems(real_repository)[1]


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [("float16", [-1, 1, 32, 32, 32]), ("float32", [-1, 1, 32, 32, 64]), ("float32", [1, 1, 32, 32, 32])],
)
def test_a_graph_of_other_sizes_or_types_is_said(real_repository, monkeypatch, dtype, sizes):
    real = onnxruntime_runner.read_file_tensors

    def other(path):
        tensors = real(path)
        return tensors if "image" not in tensors.inputs else replace(tensors, inputs={"image": (dtype, sizes)})

    monkeypatch.setattr(onnxruntime_runner, "read_file_tensors", other)
    problem = only(find_problems(real_repository))

    assert f"has 'image' as {dtype} {sizes}, and its config says TYPE_FP32 [-1, 1, 32, 32, 32]" in problem


def test_sizes_that_a_file_leaves_open_are_no_problem(real_repository, monkeypatch):
    real = onnxruntime_runner.read_file_tensors

    def vague(path):
        found = real(path)
        return replace(
            found, outputs={name: (dtype, [-1] * len(dims)) for name, (dtype, dims) in found.outputs.items()}
        )

    monkeypatch.setattr(onnxruntime_runner, "read_file_tensors", vague)

    assert find_problems(real_repository) == []


def test_what_may_not_be_read_is_said(repository, monkeypatch):
    read_text, digest = Path.read_text, checks.file_sha256

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checks, "file_sha256", lambda path: refuse(path) if path.name == "model.py" else digest(path))
    monkeypatch.setattr(
        Path, "read_text", lambda self: refuse(self) if self.parent.name == "m_sam_refine" else read_text(self)
    )
    problems = find_problems(repository)

    assert len(problems) == 5
    assert f"{repository / 'm_sam_session' / '1' / 'model.py'} can't be read (Permission denied), " in "\n".join(
        problems
    )
    assert f"{repository / 'm_sam_refine' / 'config.pbtxt'} is missing or can't be read" in problems[-1]


def test_a_folder_that_may_not_be_listed_is_said(repository, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)

    assert only(find_problems(repository)) == (
        f"{repository} can't be read (Permission denied), and the server has to; give its user the right to"
    )


def test_a_folder_that_may_not_be_entered_is_said(repository, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refuse)

    assert only(find_problems(repository)).startswith(f"{repository} can't be read (Permission denied)")


def test_all_problems_are_said_at_once(repository):
    (repository / "m_sam_mask_decoder" / "1" / "model.onnx").write_text("other")
    (repository / "m_sam_session" / "1" / "manifest.json").unlink()
    (repository / "m_sam" / "config.pbtxt").unlink()

    assert len(find_problems(repository)) == 3


# --- This machine ---


@pytest.mark.parametrize("need", ["find_server", "check_numpy"])
def test_what_the_embedded_server_lacks_is_said_and_matters_to_no_container(repository, monkeypatch, need):
    def missing():
        raise MissingDependencyError("it is not here; install it")

    monkeypatch.setattr(checks, need, missing)

    assert find_problems(repository) == ["it is not here; install it"]
    assert find_problems(repository, embedded=False) == []


def test_a_missing_onnx_runtime_is_said(repository, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)

    assert "ONNX Runtime" in only(find_problems(repository))


def test_too_little_shared_memory_is_said(repository, monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))

    assert "has 64 MiB left" in only(find_problems(repository))


def test_engines_have_no_place_in_the_embedded_server(with_engine):
    repository = with_engine()

    assert "no backend" in only(find_problems(repository))
    assert find_problems(repository, embedded=False) == []


@pytest.mark.parametrize(
    ("fact", "there", "words"),
    [
        ("tensorrt", "10.16.1", "built for TensorRT 10.16.1, and here is 11.4.0"),
        ("gpu", "A100", "built for GPU A100, and here is H100"),
        ("compute_capability", "8.0", "built for compute capability 8.0, and here is 9.0"),
    ],
)
def test_an_engine_of_another_machine_is_said(with_engine, fact, there, words):
    assert words in only(find_problems(with_engine(**{fact: there}), embedded=False))


def test_engines_for_rtx_are_held_to_their_release_and_target(paper_export, tmp_path, monkeypatch):
    export = paper_export("m-sam", rtx=[("image_encoder", "fp32")])
    write_repository([export], tmp_path / "repository", rtx=True)

    def problems(**facts):
        here = {"tensorrt_rtx": "1.7.1.116", "gpu": "RTX 4090", "compute_capability": "8.9", **facts}
        monkeypatch.setattr(checks, "describe_here", lambda library: here)
        return find_problems(tmp_path / "repository")

    assert problems() == []  # the embedded server runs them as well, since they are Python
    assert only(problems(tensorrt_rtx="1.8.0")).startswith(
        "the engine of m_sam_image_encoder was built for TensorRT for RTX 1.7.1.116, and here is 1.8.0; build it here"
    )
    assert "was built for compute capability 8.0 and later, and here is 7.5" in only(problems(compute_capability="7.5"))
    config = tmp_path / "repository" / "m_sam_image_encoder" / "config.pbtxt"
    config.write_text(config.read_text().replace('"lazy"', '"eager"'))
    assert problems() == []
    config.write_text(config.read_text().replace('"eager"', '"later"'))
    assert "has the parameter kernels 'later', needed is lazy or eager" in only(problems())


def test_engines_without_tensorrt_are_said(with_engine, monkeypatch):
    def missing(library):
        raise MissingDependencyError("TensorRT is not installed")

    monkeypatch.setattr(checks, "describe_here", missing)

    assert "can't be used here: TensorRT is not installed" in only(find_problems(with_engine(), embedded=False))
