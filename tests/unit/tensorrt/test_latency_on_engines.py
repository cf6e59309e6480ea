"""Guards that `sam-bench latency` times the TensorRT engines of an export where they run, and says why where not.

TensorRT and pycuda are stand-ins: what is guarded is what is run and compared, and no time.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from samkit.benchmarks.latency import graphs as graph_rows
from samkit.benchmarks.latency import stages
from samkit.benchmarks.latency.graphs import GraphTimer
from samkit.benchmarks.measure import machine, turns
from samkit.export.engines import build_engines
from samkit.manifest import Manifest
from samkit.runtime.backends import tensorrt_library

pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture(params=["11.4"])
def version(request):
    return request.param


@pytest.fixture
def here(monkeypatch):
    """A machine that is asked for one run of everything."""
    monkeypatch.setattr(graph_rows, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(turns, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(machine, "COPIED_MB", 1)
    monkeypatch.setattr(machine, "SIDE", 64)
    with machine.Machine(1) as made:
        yield made


def rows_of_graphs(folder, here):
    """The rows of all graphs on TensorRT."""
    with GraphTimer(folder, rounds=1, machine=here, rivals=(), memory=False, engines=True) as timer:
        rows = list(timer.rows(None))
    assert {row["device"] for row in rows if row["backend"] == "onnxruntime"} == {"cpu"}
    return [row for row in rows if row["backend"] == "tensorrt"]


def test_engines_take_turns_with_embeddings_of_their_own_encoder(stand_ins, quick, export, here, cuda, monkeypatch):
    build_engines(export)
    monkeypatch.setattr(tensorrt_library, "KNOWN_VERSIONS", ())

    rows = rows_of_graphs(export, here)

    assert [(row["graph"], row["precision"], row["device"]) for row in rows] == [
        ("image_encoder", "fp32", "cuda"), ("mask_decoder", "fp32", "cuda"),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["relative_error"] < 1e-5
        assert len(row["samples_ms"]) == 1
        assert row["limit_share"] > 0
        assert "is untested" in row["note"]
    assert cuda().left() == {}


def test_readers_wait_for_engines_too(stand_ins, quick, export, here):
    build_engines(export)

    rows = list(stages.time_stages(export, rounds=1, machine=here, cold_starts=1, engines=True))

    waited = {row["stage"]: row for row in rows if row["backend"] == "tensorrt"}
    assert tuple(waited) == stages.STAGES
    assert all(row["p50_ms"] > 0 and row["device"] == "cuda" for row in waited.values())


def test_export_without_engines_says_what_builds_them(stand_ins, quick, export, here):
    sentence = "the export has no TensorRT engine image_encoder.fp32.plan; sam-export --build-engines"

    rows = [
        *rows_of_graphs(export, here),
        *stages.time_stages(export, rounds=1, machine=here, cold_starts=0, engines=True),
    ]

    assert {row["not_run"] for row in rows if row["backend"] == "tensorrt"} == {sentence}


def test_engines_where_tensorrt_is_missing_are_not_run(stand_ins, quick, export, here, monkeypatch):
    build_engines(export)
    monkeypatch.setattr(tensorrt_library, "find_spec", lambda name: None)

    assert all("TensorRT is not installed" in row["not_run"] for row in rows_of_graphs(export, here))


def test_engine_of_another_gpu_is_an_error_and_the_others_have_their_times(stand_ins, quick, export, here):
    manifest = build_engines(export)
    replace(manifest, engines={name: {**facts, "gpu": "another"} for name, facts in manifest.engines.items()}).save(
        export
    )
    assert Manifest.load(export).engines

    assert all("was built for GPU another" in row["error"] for row in rows_of_graphs(export, here))

    rows = list(stages.time_stages(export, rounds=1, machine=here, cold_starts=1, engines=True))
    assert all(("error" in row) == (row["backend"] == "tensorrt") for row in rows)
