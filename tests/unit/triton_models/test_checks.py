"""Guards what `sam-serve check` finds: everything that would keep a repository from being served, in one go."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from samkit.errors import MissingDependencyError
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
    monkeypatch.setattr(checks, "tensorrt_version", lambda: "11.4.0")
    monkeypatch.setattr(checks, "describe_device", lambda: HERE)


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


def test_engines_without_tensorrt_are_said(with_engine, monkeypatch):
    def missing():
        raise MissingDependencyError("TensorRT is not installed")

    monkeypatch.setattr(checks, "tensorrt_version", missing)

    assert "can't be used here: TensorRT is not installed" in only(find_problems(with_engine(), embedded=False))
