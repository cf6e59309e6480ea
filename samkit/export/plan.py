"""Decide everything an export will do, without torch; then complete the plan from the opened checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from samkit.checkpoints import CheckpointInfo, read_info, resolve_checkpoint
from samkit.errors import CheckpointError
from samkit.manifest import ExportPlan, Weights, file_sha256
from samkit.methods import get_method
from samkit.weights import demo_checkpoint

OPSET = 20
"""The dynamo exporter's default: the first opset with a Gelu of its own."""
OPSETS = range(18, 24)


def plan_export(
    method_name: str,
    *,
    checkpoint: Path | None = None,
    size: str | None = None,
    refinement: str | None = None,
    precision: str = "fp32",
    folded: bool = True,
    opset: int = OPSET,
) -> ExportPlan:
    """Return the plan; a checkpoint is hashed, not opened.

    Without a checkpoint the demonstration weights are used, or seeded random ones for a size they do not have.
    Raises UnknownMethodError, CheckpointError, and click.UsageError for options that don't fit the method.
    """
    method = get_method(method_name)
    if refinement is not None and refinement not in method.refinements:
        raise click.UsageError(
            f"'{refinement}' refinement is not known to {method.name}, it has {', '.join(method.refinements)}; "
            "leave --refinement out"
        )
    if opset not in OPSETS:
        raise click.UsageError(
            f"opset {opset} was never tested, use {OPSETS.start} to {OPSETS.stop - 1}; e.g. --opset 20"
        )
    info = None
    if checkpoint is not None:
        path = resolve_checkpoint(checkpoint).resolve()
        weights = Weights("checkpoint", str(path), file_sha256(path))
    elif size in (None, "small"):
        demo = demo_checkpoint(method.name)
        weights, info = Weights("demonstration", None, file_sha256(demo), demonstration=True), read_info(demo)
    else:
        weights = Weights("random", None, None)
        info = CheckpointInfo(method.name, size, method.sizes[size], method.refinements[0])
    plan = ExportPlan(
        method=method.name,
        weights=weights,
        size=size,
        config=None,
        refinement=refinement,
        precision=precision,
        folded=folded,
        opset=opset,
        graphs=tuple(graph.name for graph in method.graphs(method.sizes[size or "full"])),
    )
    return plan if info is None else complete_plan(plan, info)


def complete_plan(plan: ExportPlan, info: CheckpointInfo) -> ExportPlan:
    """Return `plan` with what the opened checkpoint says; raises CheckpointError where the two contradict."""
    if plan.size not in (None, info.size):
        raise CheckpointError(
            f"the checkpoint holds the {info.size} network, and --size {plan.size} was asked for; leave --size out"
        )
    weights = replace(plan.weights, demonstration=info.demonstration)
    refinement = plan.refinement or info.refinement
    return replace(plan, weights=weights, size=info.size, config=info.config, refinement=refinement)
