"""Memory and processor time of processes: of a new one that measures something alone, and of a server's.

A Triton server is one process for each model, so all that a process started counts. Linux only: everything is read from
/proc. Processes that end while they are read are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samkit.errors import SamkitError

_MODEL = "1"
"""Folder of a model's version."""
_USER, _SYSTEM = 11, 12
"""Where /proc/PID/stat has the clock ticks in user and in kernel mode, counted from the state."""


def ask_process(module: str, words: Sequence[str], failure: str) -> tuple[float, dict[str, Any]]:
    """Run `python -m MODULE WORDS`; return how long it took until its line of JSON was there [s], and the line.

    The time begins before the process does. Raises SamkitError, `failure` and where to read on, where there is no line.
    """
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline() if process.stdout is not None else ""
        seconds = time.perf_counter() - start
    if process.returncode or not line:
        raise SamkitError(f"{failure}; the message of its process stands above")
    return seconds, json.loads(line)


def resident_mb(name: str = "VmRSS") -> float:
    """Return the resident memory of this process [MB, 10^6 bytes]: now, or with "VmHWM" the most there was."""
    kilobytes = int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
    return round(kilobytes * 1024 / 1e6, 1)


def memory_of(pid: int) -> dict[str, Any]:
    """Return what a process and its descendants hold now [MB, 10^6 bytes]: `rss` and `pss` together, and of each.

    The sum of `rss` counts what processes share once for each of them, the sum of `pss` counts it once.
    """
    processes = {}
    for process in descendants(pid, _parents()):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it ended meanwhile
            continue
        processes[f"{process_name(words)} {process}"] = parse_rollup(text)
    totals = {kind: round(sum(held[kind] for held in processes.values()), 1) for kind in ("rss", "pss")}
    return {**totals, "processes": processes}


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process and its living descendants have taken so far [s]."""
    found = (_stat(process) for process in descendants(pid, _parents()))
    return sum(int(words[_USER]) + int(words[_SYSTEM]) for words in found if words) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int, parents: Mapping[int, int]) -> list[int]:
    """Return a process and all that it started, and those did; `parents` has the parent of every process.

    >>> descendants(5, {1: 0, 5: 1, 6: 5, 7: 6, 8: 1})
    [5, 6, 7]
    """
    found = [pid]
    for process in found:  # grows as it goes
        found += sorted(child for child, parent in parents.items() if parent == process)
    return found


def process_name(words: Sequence[str]) -> str:
    """Return the model that a stub runs, from its command line, or the program's name.

    >>> process_name(["/b/triton_python_backend_stub", "/repository/m_sam_session/1/model.py"])
    'm_sam_session'
    """
    if len(words) > 1 and Path(words[1]).parent.name == _MODEL:
        return Path(words[1]).parents[1].name
    return Path(words[0]).name


def parse_rollup(text: str) -> dict[str, float]:
    """Return resident memory and the proportional share of it [MB] from /proc/PID/smaps_rollup.

    What several processes share counts in each one's `rss`, and as a part in each one's `pss`.
    """
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line and line[0].isupper())
    return {kind: round(int(fields[kind.capitalize()].split()[0]) * 1024 / 1e6, 1) for kind in ("rss", "pss")}


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return {pid: int(words[1]) for pid in pids if (words := _stat(pid))}


def _stat(pid: int) -> list[str]:
    """Return the words of /proc/PID/stat after the program's name, which may hold anything: state, parent, ...; none of
    a process that ended.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
