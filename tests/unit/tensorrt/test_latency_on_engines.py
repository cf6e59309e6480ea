"""Guards that `sam-bench latency` times the TensorRT engines of an export where they run, and says why where not.

TensorRT and pycuda are stand-ins: what is guarded is what is run and compared, and no time.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from samkit.benchmarks.latency import graphs as graph_rows
from samkit.benchmarks.latency import stages
from samkit.benchmarks.latency.graphs import GraphTimer
from samkit.benchmarks.latency.settings import LatencySettings
from samkit.benchmarks.measure import machine, turns
from samkit.benchmarks.record.rows import Absent, LatencyRow
from samkit.export.engines import build_engines
from samkit.manifest import Export, Manifest
from samkit.runtime.backends import tensorrt_library

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export")]
ASKED = LatencySettings(rounds=1, parts=("graphs",), engines=True)


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
    with ExitStack() as held:
        rows = list(GraphTimer(Export.open(folder), here, replace(ASKED, baselines=()), held).rows())
    assert {row.identity.device for row in rows if row.identity.backend == "onnxruntime"} == {"cpu"}
    return [row for row in rows if row.identity.backend == "tensorrt"]


def rows_of_stages(folder, here, *, cold_starts):
    return list(stages.time_stages(Export.open(folder), here, replace(ASKED, cold_starts=cold_starts)))


def test_engines_take_turns_with_embeddings_of_their_own_encoder(stand_ins, quick, export, here, cuda, monkeypatch):
    build_engines(export)
    monkeypatch.setattr(tensorrt_library, "is_known", lambda *which: False)

    rows = rows_of_graphs(export, here)

    assert [(row.identity.graph, row.identity.precision, row.identity.device) for row in rows] == [
        ("image_encoder", "fp32", "cuda"), ("mask_decoder", "fp32", "cuda"),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row.relative_error < 1e-5
        assert len(row.times.samples_ms) == 1
        assert row.limit_share > 0
        assert "is untested" in row.note
    assert cuda().left() == {}


def test_readers_wait_for_engines_too(stand_ins, quick, export, here):
    build_engines(export)

    rows = rows_of_stages(export, here, cold_starts=1)

    waited = {row.identity.stage: row for row in rows if row.identity.backend == "tensorrt"}
    assert tuple(waited) == stages.STAGES
    assert all(row.times.p50_ms > 0 and row.identity.device == "cuda" for row in waited.values())


def test_export_without_engines_says_what_builds_them(stand_ins, quick, export, here):
    sentence = "the export has no TensorRT engine image_encoder.fp32.plan; sam-export --build-engines"

    rows = [*rows_of_graphs(export, here), *rows_of_stages(export, here, cold_starts=0)]

    absent = [row for row in rows if row.identity.backend == "tensorrt"]
    assert {(row.reason, row.is_failure) for row in absent} == {(sentence, False)}


def test_engines_where_tensorrt_is_missing_are_not_run(stand_ins, quick, export, here, monkeypatch):
    build_engines(export)
    monkeypatch.setattr(tensorrt_library, "find_spec", lambda name: None)

    for row in rows_of_graphs(export, here):
        assert "TensorRT is not installed" in row.reason
        assert not row.is_failure


def test_engine_of_another_gpu_is_an_error_and_the_others_have_their_times(stand_ins, quick, export, here):
    manifest = build_engines(export)
    replace(manifest, engines={name: {**facts, "gpu": "another"} for name, facts in manifest.engines.items()}).save(
        export
    )
    assert Manifest.load(export).engines

    for row in rows_of_graphs(export, here):
        assert "was built for GPU another" in row.reason
        assert row.is_failure

    for row in rows_of_stages(export, here, cold_starts=1):
        assert isinstance(row, Absent) == row.identity.backend.startswith("tensorrt")
        # The export has none for RTX, which is no failure
        assert isinstance(row, LatencyRow) or row.is_failure == (row.identity.backend == "tensorrt")
