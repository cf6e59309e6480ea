"""Guards what `sam-export` does about engines: built where TensorRT is, said where it is not, an error when asked."""

from __future__ import annotations

import functools
import json

import pytest

from samkit.export import cli
from samkit.export import export as export_module
from samkit.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export")]


@pytest.fixture
def version():
    return "11.4"


@pytest.fixture
def sam_export(monkeypatch, in_process, export):
    """Return a function that runs `sam-export`, where --method finds the export made; exit code, stdout, stderr."""
    monkeypatch.setattr(export_module, "run_export", lambda *arguments, **options: Manifest.load(export))
    return functools.partial(in_process, cli.main, "sam-export")


def test_engines_are_built_from_an_export(stand_ins, quick, export, sam_export):
    code, out, err = sam_export(
        "--build-engines", export, "--engines", "tensorrt", "--engine-workspace", 7, "--engine-level", 1
    )
    assert code == 0, err
    engine = json.loads(out)["engines"]["image_encoder.fp32.plan"]
    assert (engine["workspace_bytes"], engine["optimization_level"]) == (7 << 20, 1)
    assert "image_encoder.fp32.plan: built in" in err


def test_untested_version_is_said_however_quiet(stand_ins, quick, export, sam_export, monkeypatch):
    monkeypatch.setattr("samkit.runtime.backends.tensorrt_library.is_known", lambda *which: False)
    code, _, err = sam_export("--build-engines", export, "--engines", "tensorrt", "--quiet")
    assert code == 0, err
    assert [line for line in err.splitlines() if "sam-export: TensorRT 11.4.0.106 is untested: calls were" in line]
    assert "built in" not in err


def test_engines_are_built_after_the_graphs(stand_ins, quick, export, sam_export):
    code, out, err = sam_export("--method", "m-sam", "--size", "tiny", "--out", export, "--engines", "tensorrt")
    assert code == 0, err
    assert set(json.loads(out)["engines"]) == set(Manifest.load(export).engines) != set()


def test_engines_can_be_left_out(stand_ins, quick, export, sam_export):
    code, out, err = sam_export("--method", "m-sam", "--size", "tiny", "--out", export, "--engines", "none")
    assert (code, json.loads(out)["engines"]) == (0, {})
    assert "engine" not in err


def test_missing_tensorrt_is_said_or_an_error(export, sam_export, monkeypatch):
    monkeypatch.setattr("samkit.runtime.backends.tensorrt_library.find_spec", lambda name: None)
    words = ("--method", "m-sam", "--size", "tiny", "--out", export, "--quiet")
    code, out, err = sam_export(*words)
    assert (code, json.loads(out)["engines"]) == (0, {})
    assert "no engines were built: TensorRT is not installed, and its engines need it; pip install" in err
    code, out, err = sam_export(*words, "--require-tensorrt")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("sam-export: TensorRT is not installed")


@pytest.mark.parametrize(
    "words",
    [
        ("--build-engines", "x", "--method", "m-sam"),
        ("--build-engines", "x", "--verify", "x"),
        ("--method", "m-sam", "--engines", "none", "--require-tensorrt"),
        ("--build-engines", "x", "--engines", "none"),
    ],
)
def test_options_that_contradict_are_usage(sam_export, words):
    code, _, err = sam_export(*words)
    assert code == 2
    assert "stand alone" in err or "contradicts" in err
