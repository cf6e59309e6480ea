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
    """What is measured, and how often, as the options of the command say it; their defaults."""

    rounds: int = 7
    threads: tuple[int, ...] = ()
    """How many an operator may use on the CPU, several to compare; none given: all cores."""
    device: str = "cpu"
    parts: tuple[str, ...] = PARTS
    graphs: tuple[str, ...] = ()
    """By name; none given: all."""
    baselines: tuple[str, ...] = BASELINES
    batches: tuple[int, ...] = (1,)
    points: tuple[int, ...] = (1,)
    """Of each row of a graph; as with rows, one measurement each."""
    cold_starts: int = 3
    """New processes for each backend: a second or two each."""
    engines: bool = False
    """Whether backends that run on a GPU alone take turns on a CPU's machine, too."""
