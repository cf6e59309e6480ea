"""Guards `sam-bench load` against a real server: readers get answers, rows are whole, nothing is left running."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samkit.benchmarks.cli import main
from samkit.benchmarks.load import command as load
from samkit.benchmarks.load.readers import STAGES
from samkit.benchmarks.record.rows import to_dict
from samkit.benchmarks.record.run import load_run
from samkit.benchmarks.report.tables import show
from samkit.errors import MissingDependencyError, ServingError
from samkit.manifest import Manifest
from samkit.triton_models import server as server_module
from samkit.triton_models.limits import Limits
from samkit.triton_models.repository import write_repository
from samkit.triton_models.server import EmbeddedServer
from samkit.triton_models.server_files import find_server

pytestmark = pytest.mark.xdist_group("export")
SHORT = load.Workload(sessions=(1, 3), modes=("closed",), seconds=2.0, limit_ms=1e6)


@pytest.fixture
def _server():
    try:
        find_server()
    except MissingDependencyError as missing:
        pytest.skip(f"the embedded server can't run here: {missing}")


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
    levels = [row for row in map(to_dict, run.rows) if "sessions" in row]
    assert [(row["sessions"], row["stage"]) for row in levels] == [(n, stage) for n in (1, 2) for stage in STAGES]
    assert all(row["errors"] == {} and row["sessions_held"] == row["sessions"] for row in levels)
    clicks = [row for row in levels if row["stage"] == "click"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] and row["server_rss_mb"] >= row["server_pss_mb"] for row in clicks)
    assert all(row["client_cpu_share"] > 0 and row["server_cpu_share"] > 0 for row in clicks)
    rest = {row["stage"]: row for row in map(to_dict, run.rows) if "sessions" not in row}
    assert rest["click over sessions, closed"]["scaling"]["x"] == [1.0, 2.0]
    assert rest["click over clicks"]["backend"] == "onnxruntime"
    assert "works on volumes, not on slices" in rest["click over slices"]["not_run"]
    assert "click over sessions" in shown


@pytest.mark.usefixtures("_server")
def test_a_server_that_runs_is_loaded_until_it_is_full(tiny_export, tmp_path):
    write_repository([tiny_export], tmp_path / "repository", limits=Limits(max_sessions=2))
    with EmbeddedServer(tmp_path / "repository") as server:
        url = f"triton://{server.grpc}/m-sam"

        run = load.measure_load([], server=url, work=SHORT, scaling=())
        show(run)
        afterwards = load.measure_load([tiny_export], server=url, work=replace(SHORT, sessions=(2,)), scaling=())

    digest = Manifest.load(tiny_export).digest
    assert all(row["manifest"] == digest for row in map(to_dict, run.rows))
    alone, full = ([row for row in map(to_dict, run.rows) if row["sessions"] == readers] for readers in (1, 3))
    assert all(row["errors"] == {} for row in alone)
    assert all(row["errors"].keys() == {"AtCapacity"} and row["sessions_held"] == 2 for row in full)
    assert run.rows[0].server_rss_mb is None
    assert "m-sam, closed: with 3 readers calls failed: AtCapacity" in run.notes[-1]
    assert all(row.errors == {} for row in afterwards.rows)  # every session of the readers before was closed
    assert afterwards.notes[-1].startswith("m-sam, closed: with 2, the most that were asked for, clicks stayed within")


def test_without_a_server_there_are_rows_that_say_so(tiny_export, monkeypatch):
    def missing():
        raise MissingDependencyError("no server is installed; pip install 'samkit[serve]'")

    monkeypatch.setattr(server_module, "find_server", missing)

    rows = load.measure_load([tiny_export], work=SHORT, scaling=("clicks",), rounds=1).rows

    assert [(row.identity.sessions, row.word, row.reason) for row in rows[:2]] == [
        (1, "not_run", "no server is installed; pip install 'samkit[serve]'"),
        (3, "not_run", "no server is installed; pip install 'samkit[serve]'"),
    ]
    assert rows[2].scaling.over == "clicks"


def test_a_server_that_does_not_start_is_a_row(tiny_export, monkeypatch):
    def broken(self):
        raise ServingError("the server did not load its models within 60 s")

    monkeypatch.setattr(EmbeddedServer, "start", broken)

    rows = load.measure_load([tiny_export], work=SHORT, scaling=()).rows

    assert [row.reason for row in rows if row.is_failure] == ["the server did not load its models within 60 s"] * 2
