"""Guards `sam-bench load` against a real server: readers get answers, rows are whole, nothing is left running."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samkit.benchmarks.cli import main
from samkit.benchmarks.load import command as load
from samkit.benchmarks.load.readers import STAGES
from samkit.benchmarks.load.workload import Workload
from samkit.benchmarks.record.rows import LoadRow
from samkit.benchmarks.record.run import load_run
from samkit.benchmarks.report.tables import show
from samkit.errors import MissingDependencyError, ServingError
from samkit.manifest import Manifest
from samkit.triton_models import server as server_module
from samkit.triton_models.limits import Limits
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server import EmbeddedServer
from support.serving import need_server

pytestmark = pytest.mark.xdist_group("export")
SHORT = Workload(sessions=(1, 3), modes=("closed",), seconds=2.0, limit_ms=1e6, scaling=())


@pytest.fixture
def _server():
    need_server()


@pytest.mark.usefixtures("_server")
def test_readers_of_an_export_are_answered_and_every_row_is_there(tiny_export, tmp_path, in_process):
    out = tmp_path / "load.json"
    words = ("load", "--export", tiny_export, "--sessions", "1,2", "--mode", "closed", "--seconds", "2",
             "--limit-ms", "1e6", "--scaling", "sessions,clicks,slices", "--rounds", "2", "--json", out)  # fmt: skip

    code, shown, err = in_process(main, "sam-bench", *words)

    assert code == 0, err
    run = load_run(out)
    assert run.command[:2] == ("sam-bench", "load")
    assert [one["manifest"] for one in run.exports] == [Manifest.load(tiny_export).digest]
    levels = [row for row in run.rows if row.identity.sessions is not None]
    met = [(row.identity.sessions, row.identity.stage) for row in levels]
    assert met == [(readers, stage) for readers in (1, 2) for stage in STAGES]
    for row in levels:  # an undo need not come up in two seconds
        assert row.identity.stage == "undo" or isinstance(row, LoadRow)
        assert isinstance(row, LoadRow) or not row.is_failure
    timed = [row for row in levels if isinstance(row, LoadRow)]
    assert all(row.errors == {} and row.sessions_held == row.identity.sessions for row in timed)
    clicks = [row for row in timed if row.identity.stage == "click"]
    assert all(0 < row.times.p50_ms <= row.times.p99_ms for row in clicks)
    assert all(row.server_rss_mb >= row.server_pss_mb > 0 for row in clicks)
    assert all(row.client_cpu_share > 0 and row.server_cpu_share > 0 for row in clicks)
    rest = {row.identity.stage: row for row in run.rows if row.identity.sessions is None}
    assert rest["click over sessions, closed"].scaling.x == (1.0, 2.0)
    assert rest["click over clicks"].identity.backend == "onnxruntime"
    assert "works on volumes, not on slices" in rest["click over slices"].reason
    assert "click over sessions" in shown


@pytest.mark.usefixtures("_server")
def test_a_server_that_runs_is_loaded_until_it_is_full(tiny_export, tmp_path):
    write_repository([tiny_export], tmp_path / "repository", limits=Limits(max_sessions=2))
    with EmbeddedServer(tmp_path / "repository") as server:
        url = f"triton://{server.grpc}/m-sam"

        run = load.measure_load([], SHORT, url)
        show(run)
        afterwards = load.measure_load([tiny_export], replace(SHORT, sessions=(2,)), url)

    digest = Manifest.load(tiny_export).digest
    assert all(row.identity.manifest == digest for row in run.rows)
    alone, full = ([row for row in run.rows if row.identity.sessions == readers] for readers in (1, 3))
    assert all(row.errors == {} if isinstance(row, LoadRow) else not row.is_failure for row in alone)
    for row in full:
        if isinstance(row, LoadRow):
            assert row.errors.keys() == {"AtCapacity"}
            assert row.sessions_held == 2
        else:
            assert "calls failed: AtCapacity" in row.reason
    assert run.rows[0].server_rss_mb is None
    assert "m-sam, closed: with 3 readers calls failed: AtCapacity" in run.notes[-1]
    # Every session of the readers before was closed
    assert all(row.errors == {} if isinstance(row, LoadRow) else not row.is_failure for row in afterwards.rows)
    assert afterwards.notes[-1].startswith("m-sam, closed: with 2, the most that were asked for, clicks stayed within")


def test_without_a_server_there_are_rows_that_say_so(tiny_export, monkeypatch):
    def missing():
        raise MissingDependencyError("no server is installed; pip install 'samkit[serve]'")

    monkeypatch.setattr(server_module, "find_server", missing)

    rows = load.measure_load([tiny_export], replace(SHORT, scaling=("clicks",), rounds=1)).rows

    assert [(row.identity.sessions, row.word, row.reason) for row in rows[:2]] == [
        (1, "not_run", "no server is installed; pip install 'samkit[serve]'"),
        (3, "not_run", "no server is installed; pip install 'samkit[serve]'"),
    ]
    assert rows[2].scaling.over == "clicks"


def test_a_server_that_does_not_start_is_a_row(tiny_export, monkeypatch):
    def broken(self):
        raise ServingError("the server did not load its models within 60 s")

    monkeypatch.setattr(EmbeddedServer, "start", broken)

    rows = load.measure_load([tiny_export], SHORT).rows

    assert [row.reason for row in rows if row.is_failure] == ["the server did not load its models within 60 s"] * 2
