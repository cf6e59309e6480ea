"""What `sam-bench latency` is asked for. Nothing heavy is imported here: the command's help reads it."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("graphs", "memory", "stages")
"""`memory` is that of graphs, and comes with their times."""
EAGER, AUTOCAST, COMPILE, NO_FOLD = "torch", "torch-autocast", "torch-compile", "onnxruntime-no-fold"
BASELINES = (NO_FOLD, EAGER, AUTOCAST, COMPILE)
"""What graphs are timed beside: ONNX Runtime of `--no-fold`, PyTorch eager, under autocast, compiled."""


@dataclass(frozen=True)
class LatencySettings:
    """What is measured, and how often."""

    rounds: int = 7
    """Turns of each backend."""
    threads: tuple[int, ...] = ()
    """How many an operator may use on the CPU, several to compare; none given: all cores."""
    device: str = "cpu"
    parts: tuple[str, ...] = PARTS
    graphs: tuple[str, ...] = ()
    """Names of graphs; none given: all."""
    baselines: tuple[str, ...] = BASELINES
    batches: tuple[int, ...] = (1,)
    """Rows of a graph, one measurement each."""
    points: tuple[int, ...] = (1,)
    """Points of each row, one measurement each."""
    cold_starts: int = 3
    """New processes for each backend: a second or two each."""
    engines: bool = False
    """Whether backends that run on a GPU alone take turns on a CPU's machine, too."""
