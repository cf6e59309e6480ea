"""Decide everything an export will do, without torch; then complete the plan from the opened checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from samkit.checkpoints import CheckpointInfo, read_info, resolve_checkpoint
from samkit.errors import CheckpointError, OptionError
from samkit.imageio.reading import is_scan, read_geometry
from samkit.manifest import ExportPlan, GivenFile, Weights, file_sha256
from samkit.methods import Method, get_method
from samkit.networks.config import NetworkConfig
from samkit.precisions import BASE, PRECISIONS, get_precision
from samkit.weights import find_demo

OPSET = 20
"""The dynamo exporter's default: the first opset with a Gelu of its own."""
OPSETS = range(18, 24)
_LARGE = 2**28
"""Bytes of a scan that takes a second or so to hash."""


def plan_export(
    method_name: str,
    *,
    checkpoint: Path | None = None,
    others: Mapping[str, Path] = MappingProxyType({}),
    size: str | None = None,
    refinement: str | None = None,
    precision: str = BASE.name,
    folded: bool = True,
    opset: int = OPSET,
    calibration: Path | None = None,
    keep_list: Path | None = None,
    weights: str = "",
) -> ExportPlan:
    """Return the plan; a checkpoint is hashed, not opened.

    Without a checkpoint the demonstration weights are used, or seeded random ones for a size they do not have. `others`
    are companions of an official file and files for parts, by the names in the method's record. `calibration` is a
    folder of scans and `keep_list` a file of nodes, both for float16. `weights` says which is meant where the
    checkpoint holds several sets. Raises UnknownMethodError, CheckpointError, and OptionError for options that don't
    fit the method.
    """
    method = get_method(method_name)
    if refinement is not None and refinement not in method.refinements:
        raise OptionError(
            f"'{refinement}' refinement is not known to {method.name}, it has {', '.join(method.refinements)}; "
            "leave {refinement} out",
            options=("refinement",),
        )
    if opset not in OPSETS:
        raise OptionError(
            f"opset {opset} was never tested, use {OPSETS.start} to {OPSETS.stop - 1}; e.g. {{opset}} 20",
            options=("opset",),
        )
    written = get_precision(precision)
    if written.writer is not None and not folded:
        raise OptionError(
            f"{{no_fold}} is the {BASE.title} baseline, and {written.title} is made of the fast form; give one",
            options=("no_fold",),
        )
    for option, given in (("calibration", calibration), ("keep_list", keep_list)):
        if given is not None and option not in written.options:
            takers = [one for one in PRECISIONS if option in one.options]
            raise OptionError(
                f"{{{option}}} says how {' and '.join(one.title for one in takers)} is made; add "
                f"{' or '.join(f'{{{one.name}}}' for one in takers)}, or leave it out",
                options=(option, *(one.name for one in takers)),
            )
    known = (*method.companions, *(part.name for part in method.parts))
    for name in others:
        if name not in known:
            raise OptionError(
                f"{{{name}}} does not belong to {method.name}, which takes "
                f"{' and '.join(f'{{{other}}}' for other in known) or '{checkpoint} alone'}",
                options=(name, *known, "checkpoint"),
            )
        if checkpoint is None and (name in method.companions or size not in (None, "small")):
            raise OptionError(f"{{{name}}} goes with a {{checkpoint}}; give both", options=(name, "checkpoint"))
    if weights and checkpoint is None:
        raise OptionError("{weights} goes with a {checkpoint}; give both", options=("weights", "checkpoint"))
    info = None
    if checkpoint is not None:
        used = replace(_file_weights(checkpoint), entry=weights)
    elif size in (None, "small"):
        demo = find_demo(method.name)
        # A plan needs none of them: without the weights it is of the network that they are of
        used = Weights("demonstration", None, None if demo is None else file_sha256(demo), demonstration=True)
        info = replace(_sized(method, "small"), demonstration=True) if demo is None else read_info(demo)
    else:
        used = Weights("random", None, None)
        info = _sized(method, size)
    plan = ExportPlan(
        method=method.name,
        weights=used,
        size=size,
        config=None,
        refinement=refinement,
        precision=precision,
        folded=folded,
        opset=opset,
        graphs=_graphs(method, method.sizes[size or "full"], refinement, folded),
        others={name: _file_weights(path) for name, path in others.items()},
        calibration=_given_file(calibration),
        keep_list=_given_file(keep_list),
    )
    # With other files beside it, even the demonstration's config is known only when those are opened.
    return plan if info is None or others else complete_plan(plan, method, info)


def _sized(method: Method, size: str) -> CheckpointInfo:
    return CheckpointInfo(method.name, size, method.sizes[size], method.refinements[0])


def _graphs(method: Method, config: NetworkConfig, refinement: str | None, folded: bool) -> tuple[str, ...]:
    """Return the names of the graphs that an export holds: the one place where this is decided."""
    return tuple(graph.name for graph in method.graphs(config) if graph.is_in(refinement, folded))


def _given_file(path: Path | None) -> GivenFile | None:
    """Return a file or folder with its hash, which of a folder is over those of its files; OptionError for neither,
    InputRefused for a large scan that its header refuses.
    """
    if path is None:
        return None
    if path.is_file():
        return GivenFile(file_sha256(path), str(path.resolve()))
    if not path.is_dir():
        raise OptionError(f"{path} is no file and no folder; check the path")
    total = hashlib.sha256()
    for file in sorted(inside for inside in path.rglob("*") if inside.is_file()):
        if file.stat().st_size > _LARGE and is_scan(file):
            read_geometry(file)  # its header may refuse what would take long to hash
        total.update(file_sha256(file).encode())
    return GivenFile(total.hexdigest(), str(path.resolve()))


def _file_weights(path: Path) -> Weights:
    found = resolve_checkpoint(path).resolve()
    return Weights("checkpoint", str(found), file_sha256(found))


def complete_plan(
    plan: ExportPlan, method: Method, info: CheckpointInfo, borrowed: Mapping[str, Weights] = MappingProxyType({})
) -> ExportPlan:
    """Return `plan` with what the opened checkpoint says; raises CheckpointError where the two contradict.

    `borrowed` are the weights of parts that nobody gave.
    """
    if plan.size not in (None, info.size):
        raise CheckpointError(
            f"the checkpoint holds the {info.size} network, and {{size}} {plan.size} was asked for; leave {{size}} out",
            options=("size",),
        )
    weights = replace(plan.weights, demonstration=info.demonstration)
    refinement = plan.refinement or info.refinement
    others = {**plan.others, **borrowed}
    graphs = _graphs(method, info.config, refinement, plan.folded)
    return replace(
        plan, weights=weights, others=others, size=info.size, config=info.config, refinement=refinement, graphs=graphs
    )
