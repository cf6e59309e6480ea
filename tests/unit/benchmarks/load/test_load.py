"""Guards `sam-bench load`: how far it goes up, what its rows say, whom it refuses to load."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from samkit.benchmarks.cli import bench
from samkit.benchmarks.load import command as load
from samkit.benchmarks.load import levels, scaling
from samkit.benchmarks.load.readers import STAGES, LoadLevel
from samkit.benchmarks.load.scaling import MOST_SAMPLES, grown, growth_row
from samkit.benchmarks.load.workload import Workload
from samkit.benchmarks.record.rows import Absent, Identity
from samkit.benchmarks.record.run import Run
from samkit.errors import OptionError, SamkitError, ServingError
from samkit.geometry import Volume
from samkit.manifest import Export
from samkit.methods import get_method
from samkit.prompts import Point
from samkit.protocols.case import Case

IDENTITY = Identity("m-sam", "triton", "cpu", "fp32", mode="think", think_s=2.0)
VOLUMES = {"": Volume(np.ones((2, 2, 2), np.float32), np.eye(4))}
CASE = Case("cube", VOLUMES, {"": np.ones((2, 2, 2), bool)}, clicks=(Point((0, 0, 0), 1),) * 2)


def level(readers, errors=None, **samples):
    met = dict.fromkeys(STAGES, (0.01,)) | samples
    server = {"server_cpu_share": 0.5, "server_rss_mb": 900.0, "server_pss_mb": 700.0}
    figures = {"sessions_held": readers, "client_cpu_share": 0.25, **server}
    return LoadLevel(readers, met, 10.0, errors or {}, figures)


def reported(output):
    return " ".join(output.replace("│", " ").split())


# --- How far it goes ---


def climbed(*met, limit_ms=1000.0):
    given = iter(met)
    work = Workload(sessions=(1, 2, 4, 8), limit_ms=limit_ms)
    return levels.climb(lambda readers: next(given), work, "click")


def test_levels_go_up_to_the_last_where_nothing_stops_them():
    found, ended = climbed(*(level(n) for n in (1, 2, 4, 8)))

    assert [one.readers for one in found] == [1, 2, 4, 8]
    assert ended == "with 8, the most that were asked for, clicks stayed within 1000 ms at p95"


def test_levels_end_where_slow_clicks_pass_the_limit():
    slow = (0.1,) * 90 + (2.0,) * 10

    found, stopped = climbed(level(1), level(2, click=slow))

    assert [one.readers for one in found] == [1, 2]
    assert stopped == "with 2 readers the 95th percentile of a click was 2000 ms, above the limit of 1000"


def test_levels_end_where_calls_fail():
    found, stopped = climbed(level(1), level(2, {"AtCapacity": 3, "ServerTimeout": 1}))

    assert len(found) == 2
    assert stopped == "with 2 readers calls failed: AtCapacity 3 times, ServerTimeout 1 times"


def test_a_last_level_without_a_click_says_nothing_of_their_time():
    _, ended = climbed(*(level(n, click=()) for n in (1, 2, 4, 8)))

    assert ended.startswith("with 8, the most that were asked for, no click came up in 10 s, so nothing is known")


def test_slow_calls_that_are_no_clicks_do_not_end_it():
    found, _ = climbed(*(level(n, scan=(9.0,), first_click=(9.0,)) for n in (1, 2, 4, 8)))

    assert len(found) == 4


def test_where_nobody_clicks_the_decision_on_a_scan_is_what_counts():
    assert levels.judged_stage(get_method("brainseg-dmif")) == "scan"
    assert levels.judged_stage(get_method("medsam-yolo")) == "click"


# --- Rows ---


def level_rows(found, case=CASE):
    return levels.level_rows(found, IDENTITY, case, 1000.0)


def test_a_level_is_a_row_for_each_stage():
    rows = level_rows(level(2, click=(0.010, 0.020, 0.030)))

    assert [row.identity.stage for row in rows] == list(STAGES)
    assert len({row.identity.key() for row in rows}) == len(rows)
    (click,) = (row for row in rows if row.identity.stage == "click")
    assert click.times.p50_ms == 20.0
    assert (click.times.n, click.times.samples_ms) == (3, (10.0, 20.0, 30.0))
    assert (click.identity.sessions, click.sessions_held) == (2, 2)
    assert (click.clicks_per_second, click.server_rss_mb, click.server_pss_mb) == (0.4, 900.0, 700.0)
    assert (click.client_cpu_share, click.server_cpu_share) == (0.25, 0.5)


def test_samples_are_thinned_and_percentiles_are_those_of_all():
    times = tuple(np.random.default_rng(1).exponential(0.1, 9999))

    row = level_rows(level(1, click=times))[STAGES.index("click")]

    assert len(row.times.samples_ms) == MOST_SAMPLES
    assert row.times.n == 9999
    assert row.times.p99_ms == pytest.approx(1e3 * np.percentile(times, 99), rel=1e-4)


def test_a_stage_that_never_came_up_says_so():
    undo = level_rows(level(1, undo=()))[-1]
    failed = level_rows(level(1, {"AtCapacity": 7}, undo=()))

    assert (undo.reason, undo.is_failure) == ("no undo came up in 10 s; give --seconds more", False)
    sentence = "no undo was answered, calls failed: AtCapacity 7 times; see the server's log"
    assert (failed[-1].reason, failed[-1].is_failure) == (sentence, True)
    assert all(row.errors == {"AtCapacity": 7} for row in failed[:-1])


def test_a_reader_without_clicks_opens_and_scans():
    rows = level_rows(level(1), replace(CASE, clicks=()))

    assert [(row.identity.stage, row.clicks_per_second) for row in rows] == [("open", None), ("scan", None)]


def test_growth_is_told_apart_by_mode_and_not_by_sessions():
    samples = {1.0: [0.1], 2.0: [0.3]}
    rows = [growth_row(replace(IDENTITY, mode=mode), "click", "sessions", samples) for mode in ("think", "closed")]

    assert [row.identity.stage for row in rows] == ["click over sessions, think", "click over sessions, closed"]
    assert rows[0].identity.settings == ("mode", "think_s")
    assert rows[0].scaling.exponent.value == pytest.approx(np.log2(3), rel=1e-3)


def test_growth_over_one_size_is_a_row_that_says_why():
    row = growth_row(replace(IDENTITY, mode=None), "propagate", "slices", {2.0: [0.1]})

    assert row.identity.stage == "propagate over slices"
    assert "needs two sizes of slices" in row.reason
    assert not row.is_failure


def test_growth_that_could_not_be_measured_is_a_row(monkeypatch):
    def failing(session, case, rounds):
        raise SamkitError("ONNX Runtime can't run mask_decoder; export again")

    monkeypatch.setattr(scaling, "_OVER", {"volume": failing})

    (row,) = grown("volume", None, CASE, IDENTITY, 1)

    assert (row.reason, row.is_failure) == ("ONNX Runtime can't run mask_decoder; export again", True)


@pytest.mark.parametrize(
    ("over", "case", "why"),
    [
        ("volume", replace(CASE, plane="axial"), "works slice by slice"),
        ("slices", CASE, "works on volumes, not on slices"),
        ("clicks", replace(CASE, clicks=()), "takes no clicks"),
    ],
)
def test_what_a_method_does_not_do_is_not_run(over, case, why):
    (row,) = grown(over, None, case, IDENTITY, 1)

    assert why in row.reason
    assert not row.is_failure


# --- Exports and servers ---


@pytest.fixture
def served(monkeypatch, bright_export):
    """A session at every address, on `bright_export`; the machine is not measured."""
    export = Export.open(bright_export)
    session = SimpleNamespace(manifest=export.manifest, precision="fp32",
                              providers={"mask_decoder": ("CPUExecutionProvider",)})  # fmt: skip

    monkeypatch.setattr(levels, "open_remote_session", lambda url, timeout: nullcontext(session))
    return SimpleNamespace(session=session, export=export)


def test_a_server_of_another_export_is_refused(served):
    url = "triton://127.0.0.1:1/x"
    other = replace(served.export, manifest=replace(served.export.manifest, artifacts=()))

    assert levels.Endpoint.look_at(url, served.export).identity.device == "cpu"
    with pytest.raises(ServingError, match="give the folder that is served, or leave exports out"):
        levels.Endpoint.look_at(url, other)


def test_a_server_on_a_gpu_says_so(served):
    served.session.providers = {"mask_decoder": ("CUDAExecutionProvider", "CPUExecutionProvider")}
    served.session.precision = "fp16"

    identity = levels.Endpoint.look_at("triton://127.0.0.1:1/x").identity

    assert (identity.device, identity.precision) == ("cuda", "fp16")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "[::1]"])
def test_this_machine_may_be_loaded(host):
    load.check_own_machine(f"triton://{host}:8001/m-sam")


@pytest.mark.parametrize("host", ["10.0.0.7", "reading-room.example", "[fe80::1]", "127.0.0.1.example"])
def test_another_machine_is_loaded_only_where_it_is_said(host):
    ended = CliRunner().invoke(load.command, ["--server", f"triton://{host}:8001/m-sam"])

    assert isinstance(ended.exception, OptionError)
    assert "is not on this machine, and readers by the dozen keep others from their work" in str(ended.exception)
    assert ended.exception.options == ("not_loopback",)


def test_what_is_no_address_is_no_server():
    with pytest.raises(OptionError, match="the address 'here' is no server's"):
        load.check_own_machine("here")


def test_not_loopback_goes_where_it_is_told(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(load, "measure_load", lambda exports, work, server: asked.append(server) or empty_run())

    ended = CliRunner().invoke(
        bench,
        ["load", "--server", "triton://10.0.0.7:8001/m-sam", "--not-loopback", "--json", str(tmp_path / "x.json")],
    )

    assert ended.exit_code == 0, ended.output
    assert asked == ["triton://10.0.0.7:8001/m-sam"]


def empty_run(*rows):
    return Run("load", ("sam-bench",), "2026-11-22T00:00:00+00:00", 1.0, (), {}, {}, rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is nothing to serve; give --export DIR, or --server URL"),
        (["--export", "{here}", "--export", "{here}", "--server", "triton://127.0.0.1:1/x"], "--server serves one"),
        (["--sessions", "1,4,2"], "'1,4,2' are no numbers that go up"),
        (["--sessions", "0,1"], "'0,1' are no numbers that go up"),
        (["--sessions", "many"], "'many' are no numbers that go up"),
        (["--scaling", "volume,voxels"], "'voxels' is none of volume, slices, sessions, clicks"),
        (["--seconds", "0"], "--seconds"),
    ],
)
def test_options_that_say_nothing_are_refused(options, message, tmp_path):
    ended = CliRunner().invoke(load.command, [option.format(here=tmp_path) for option in options])

    assert ended.exit_code == 2
    assert message in reported(ended.output)


def test_a_part_that_failed_ends_the_command_after_all_is_saved(monkeypatch, tmp_path, in_process):
    row = Absent("load", replace(IDENTITY, stage="click"), "the server did not load its models", is_failure=True)
    monkeypatch.setattr(load, "measure_load", lambda exports, work, server: empty_run(row))
    out = tmp_path / "load.json"

    from samkit.benchmarks.cli import main

    code, _, err = in_process(main, "sam-bench", "load", "--server", "triton://127.0.0.1:1/x", "--json", out)

    assert code == 1
    assert err.startswith("sam-bench: 1 part failed, the first: the server did not load its models")
    assert out.exists()


def test_help_needs_neither_torch_nor_a_server():
    code = (
        "import sys\nfor name in ('torch', 'monai', 'matplotlib', 'tritonclient'): sys.modules[name] = None\n"
        "from samkit.benchmarks.load.command import command\ncommand(['--help'])"
    )

    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
