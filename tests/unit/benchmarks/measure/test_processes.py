"""Guards what is read of a server's processes: which they are, what they hold, what they took."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from samkit.benchmarks.measure import processes

WAITS = "import os; print(os.getpid(), flush=True); input()"


def test_every_process_of_the_tree_counts_and_no_other():
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAITS!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        grandchild = int(parent.stdout.readline())
        held = processes.memory_of(parent.pid)
        parent.communicate(b"\n")

    assert [int(name.rpartition(" ")[2]) for name in held["processes"]] == [parent.pid, grandchild]
    assert held["rss"] == pytest.approx(sum(of["rss"] for of in held["processes"].values()))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/b/triton_python_backend_stub", "/repository/m_sam_session/1/model.py", "x"], "m_sam_session"),
        (["/usr/bin/tritonserver", "--model-repository=/repository"], "tritonserver"),
        ([""], ""),
        ([], ""),
    ],
)
def test_processes_are_called_by_their_model(words, name):
    assert processes.process_name(words) == name


def test_a_child_counts_in_memory_and_in_processor_time():
    code = (
        "import time\nheld = bytearray(b'1' * 50_000_000)\nwhile time.process_time() < 0.3: pass\n"
        "print('ready', flush=True)\ninput()"
    )
    before = processes.processor_seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        held, taken = processes.memory_of(os.getpid()), processes.processor_seconds(os.getpid())
        child.communicate(b"\n")

    assert any(name.endswith(f" {child.pid}") and of["pss"] > 50 for name, of in held["processes"].items())
    assert held["rss"] >= held["pss"] > 50
    assert taken - before >= 0.25


def test_a_process_that_ended_counts_for_nothing():
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)

    assert processes.memory_of(int(ended.stdout)) == {"rss": 0, "pss": 0, "processes": {}}
    assert processes.processor_seconds(int(ended.stdout)) == 0


def test_a_process_that_ended_and_that_nobody_asked_after_holds_nothing():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie until `with` ends

        assert processes.memory_of(child.pid)["processes"] == {}


def test_what_is_timed_from_its_start_does_not_wait_for_psutil():
    code = "import sys, samkit.benchmarks.latency.cold_start\nprint(*sys.modules)"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "psutil" not in found.stdout.split()
