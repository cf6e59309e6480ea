"""Memory of sessions is counted once, and the machine's is known."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from samkit.triton_models.memory import Counted, budget_of_machine


@dataclass(frozen=True)
class Node:
    array: np.ndarray
    rest: object = None


def test_arrays_are_counted_wherever_they_are_and_once():
    array, device = np.zeros(1000, np.uint8), SimpleNamespace(nbytes=300)
    tree = [Node(array, {"view": array[10:20], "deep": (Node(np.zeros(200, np.uint8)), "text", None)}), device]

    assert Counted().count(tree) == 1500


def test_what_states_share_is_counted_once_and_what_is_gone_no_more():
    shared, counted = np.zeros(1000, np.uint8), Counted()
    first, second = Node(shared), Node(shared, np.zeros(50, np.uint8))

    assert counted.count([first]) == 1000
    assert counted.count([first, second]) == 1050
    assert counted.count([second]) == 1050
    assert counted.count([]) == 0


@pytest.mark.parametrize(
    ("file", "says", "found"),
    [
        (None, "", 512 << 20),
        ("memory.max", "max", 512 << 20),
        ("memory.max", str(100 << 20), 50 << 20),
        ("memory/memory.limit_in_bytes", str(2**63 - 4096), 512 << 20),
    ],
)
def test_half_of_the_machine_or_the_container_is_shared(tmp_path, file, says, found):
    (tmp_path / "meminfo").write_text("MemTotal:  1048576 kB\nMemFree: 1 kB\n")
    if file is not None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(says + "\n")

    assert budget_of_machine(1, proc=tmp_path, cgroup=tmp_path) == found
    assert budget_of_machine(2, proc=tmp_path, cgroup=tmp_path) == found // 2


def test_this_machine_has_memory():
    assert budget_of_machine(1) > 0
