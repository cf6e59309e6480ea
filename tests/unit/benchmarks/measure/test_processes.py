"""Guards what is read of a server's processes: which they are, what they hold, what they took."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from samkit.benchmarks.measure import processes


def test_memory_is_read_as_the_kernel_writes_it():
    text = (
        "557d84025000-7ffcaae66000 ---p 00000000 00:00 0                          [rollup]\n"
        "Rss:               75632 kB\nPss:               48047 kB\nPss_Dirty:         46608 kB\nLocked:     0 kB\n"
    )

    assert processes.parse_rollup(text) == {"rss": 77.4, "pss": 49.2}


def test_every_process_of_the_tree_counts_and_no_other():
    assert processes.descendants(10, {1: 0, 10: 1, 12: 10, 11: 10, 20: 12, 30: 1, 31: 30}) == [10, 11, 12, 20]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["/b/triton_python_backend_stub", "/repository/m_sam_session/1/model.py", "x"], "m_sam_session"),
        (["/usr/bin/tritonserver", "--model-repository=/repository"], "tritonserver"),
        ([""], ""),
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
