"""What `tools.rewrites` measures: one record per graph, and what it has to reach. No torch in here.

Each case compares the graph that an export runs with what `--no-fold` exports in its place, at full size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from samkit.benchmarks.measure.graph_work import seeded_inputs
from samkit.errors import SamkitError
from samkit.methods import GraphSpec, get_method
from samkit.networks.config import NetworkConfig
from samkit.networks.sam2d_config import Sam2DConfig

FORMULATIONS = ("folded", "official")
SIZES = ("full", "tiny")


@dataclass(frozen=True)
class Goal:
    """What one figure of a case has to reach. An aim is printed and never judged."""

    figure: str
    """One of FIGURES."""
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    """Has to be more than this: no gain is a miss."""
    aim: float | None = None

    def miss(self, value: float) -> str | None:
        """Return what is wrong with a value, None where nothing is; nan is wrong."""
        if self.least <= value <= self.most and value > self.above:
            return None
        return f"{FIGURES[self.figure].format(value)}, wanted is {self.bound}"

    @property
    def bound(self) -> str:
        """Return the bound in words."""
        if self.above > -math.inf:
            return f"more than {self.above:g}"
        return f"at least {self.least:g}" if self.least > -math.inf else f"at most {self.most:g}"


FIGURES = {
    "ratio": "is {} times as fast as --no-fold",
    "share": "runs at {} of the rate of a matrix product",
    "above_session_mb": "adds {} MB to the loaded session",
    "peak_of_official": "has {} of --no-fold's peak memory",
}
"""The figures that may have goals, and how a sentence gives them: medians of interleaved runs in ONNX Runtime, the rate
on a 2048^3 product in the same run, resident memory of a process of its own."""


@dataclass(frozen=True)
class RewriteCase:
    """One comparison."""

    name: str
    """As on the command line."""
    method: str
    config: NetworkConfig
    folded: str
    """The graph an export runs."""
    official: str
    """The graph that does the same work in an export with `--no-fold`."""
    goals: tuple[Goal, ...]
    before: str | None = None
    """A graph of the folded form that runs once per image and whose outputs `folded` takes, too; not timed."""
    has_mask: bool = True
    """Whether a mask prompt is given; 3D networks always take one."""

    def graph(self, formulation: str) -> GraphSpec:
        """Return the graph that is timed in one of FORMULATIONS."""
        return self.find(self.folded if formulation == "folded" else self.official)

    def find(self, name: str) -> GraphSpec:
        """Return the graph called `name`."""
        specs = {graph.name: graph for graph in get_method(self.method).graphs(self.config)}
        if name not in specs:
            raise SamkitError(
                f"{self.name} needs the graph '{name}', {self.method} has {', '.join(specs)}; name one of them in CASES"
            )
        return specs[name]

    def inputs(self) -> dict[str, np.ndarray]:
        """Return one image or one row of prompts with one point, for the official graph; seeded."""
        return seeded_inputs(self.graph("official"), self.config, has_mask=self.has_mask)

    def at(self, size: str) -> RewriteCase:
        """Return this case with a network of another of SIZES; only the full one has goals."""
        if size == "full":
            return self
        return replace(self, config=get_method(self.method).sizes[size], goals=())


_SAM, _MED3D, _M_SAM = (get_method(name).sizes["full"] for name in ("sam", "sam-med3d", "m-sam"))
_MEMORY = Goal("above_session_mb", most=250)
_ENCODER_3D = (Goal("ratio", least=4.0, aim=5.0), Goal("share", least=0.70, aim=0.85), _MEMORY)

CASES = {
    case.name: case
    for case in (
        RewriteCase("sam-med3d-encoder", "sam-med3d", _MED3D, "image_encoder", "image_encoder", _ENCODER_3D),
        RewriteCase("m-sam-encoder", "m-sam", _M_SAM, "image_encoder", "image_encoder", _ENCODER_3D),
        RewriteCase(
            "vit-b-256-encoder", "sam", Sam2DConfig(image=256), "image_encoder", "image_encoder",
            (Goal("ratio", least=1.2, aim=1.4), Goal("share", least=0.70, aim=0.85), _MEMORY),
        ),
        RewriteCase(
            "vit-b-1024-encoder", "sam", _SAM, "image_encoder", "image_encoder",
            (Goal("ratio", least=1.0), Goal("share", least=0.55), Goal("peak_of_official", most=0.45)),
        ),
        RewriteCase("sam-click", "sam", _SAM, "mask_decoder", "mask_decoder", (Goal("ratio", least=1.3),)),
        RewriteCase(
            "sam-click-no-mask", "sam", _SAM, "mask_decoder_no_mask", "mask_decoder", (Goal("ratio", least=1.5),),
            has_mask=False,
        ),
        RewriteCase(
            "sam-med3d-click", "sam-med3d", _MED3D, "mask_decoder", "mask_decoder",
            (Goal("ratio", least=1.6), _MEMORY),
        ),
        RewriteCase(
            "m-sam-click-anchored", "m-sam", _M_SAM, "mask_decoder_anchored", "mask_decoder",
            (Goal("ratio", above=1.0, aim=1.2), _MEMORY), before="adapter_stem",
        ),
        # What a recurrent session runs: its image embedding is another one at every click, so nothing can be kept.
        RewriteCase("m-sam-click", "m-sam", _M_SAM, "mask_decoder", "mask_decoder", (_MEMORY,)),
    )
}  # fmt: skip
