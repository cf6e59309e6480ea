"""Precision: the frozen record of all that differs between the precisions that graphs are written in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """How far a converted graph may drift from PyTorch float32 on the same input."""

    relative: float
    """Largest norm(ours - torch) / norm(torch) of any output."""
    min_dice: float
    """Smallest Dice of the masks; masks under 1000 voxels may differ in at most `max_voxels` instead."""
    max_voxels: int = 5
    max_hd95: float = 1.0
    """Largest 95th percentile of the distances between the masks' surfaces [voxels of the mask's grid]."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What graphs compute in. The reasons of all limits stand in docs/explanation/numerics.md."""

    name: str
    """As on the command line and in manifests: `fp16`."""
    title: str
    """As in a sentence: `float16`."""
    summary: str
    """What the option of `sam-export` that is called like it does, in a sentence."""
    suffix: str
    """What stands between a graph's name and `.onnx`."""
    encoder: Tolerance
    """Of graphs whose outputs are features."""
    decoder: Tolerance
    """Of graphs that masks, or boxes, are made of."""
    absent_points: float
    """How much points labelled ABSENT may change the logits, norm over norm."""
    min_dice: float
    """Least Dice of a mask with PyTorch float32's that `sam-bench accuracy` takes where nobody says otherwise."""
    rounding: float
    """Relative difference of an output from PyTorch eager's up to which a benchmark takes it for rounding: whoever
    computes something else is off by about 1."""
    preferred_on: frozenset[str] = frozenset()
    """Devices on which it is what runs when nobody asks, where the export has it."""
    writer: str | None = None
    """What makes its files of an export's first ones, as `module:function` because the exporter alone may import it;
    None where PyTorch's graphs are written as they are."""
    options: frozenset[str] = frozenset()
    """Options of `sam-export` that say how its files are made."""
    emulator: str | None = None
    """The runner, as `module:class`, that rounds and overflows on a CPU as a device would that computes in it; None
    where a CPU does that anyway."""
    emulated: str = ""
    """What users must be told of its speed on a CPU, in a sentence."""

    def graph_file(self, graph: str) -> str:
        """Return the file name of one graph."""
        return f"{graph}{self.suffix}.onnx"
