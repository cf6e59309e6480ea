"""The ONNX files of an export in one precision: PyTorch's graphs as they are, or what is made of their files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from samkit.errors import ParityError
from samkit.export.graphs import write_graph
from samkit.export.loading import Work
from samkit.export.parity import relative_error
from samkit.export.tensorrt_operators import check_files
from samkit.precisions import Precision

MERGE_RELATIVE = 1e-5
"""How much merging LoRA may move the embedding: it is exact but for rounding (1e-6 was measured)."""

_log = logging.getLogger(__name__)


def freeze_network(work: Work, references: list[Any]) -> dict[str, float] | None:
    """Bring the network into the form that is exported; return how far merging LoRA moved it, None without LoRA."""
    network = work.network
    network.set_folded(work.plan.folded)
    if not work.plan.folded:
        return None  # upstream's formulation keeps LoRA beside the weights
    merge = _merge_lora(work, references) if getattr(work.plan.config, "lora_rank", 0) else None
    network.freeze()
    return merge


def write_files(work: Work, precision: Precision, folder: Path, check: Callable[..., Any]) -> dict[str, Any]:
    """Write an export's files of one precision into `folder`; return its notes by file.

    `check` runs the parity procedure on runners, in a precision named. Raises ExportError and ParityError.
    """
    files, notes = work.files[precision.name], {}
    if precision.writer is None:
        for spec in work.specs:
            _log.info("%s: torch.onnx", files[spec.name])
            write_graph(work.network, spec, folder / files[spec.name], opset=work.plan.opset, folded=work.plan.folded)
    else:
        module, function = precision.writer.split(":")
        notes = getattr(import_module(module), function)(folder, work.plan, check)
    check_files(sorted(folder / file for file in files.values()))
    return notes


def _merge_lora(work: Work, references: list[Any]) -> dict[str, float]:
    """Merge LoRA in place and return how far that moved the embeddings."""
    import torch

    network = work.network

    def embeddings() -> list[Any]:
        images = (torch.from_numpy(r.network_input(work.method, network.config)) for r in references)
        with torch.inference_mode():
            return [network.run_graph("image_encoder", image)[0].numpy() for image in images]

    before = embeddings()
    network.merge_lora()
    errors = [relative_error(a, b) for a, b in zip(embeddings(), before, strict=True)]
    worst = float(np.max(errors))  # `np.max` and `not <=`, because nan must fail
    if not worst <= MERGE_RELATIVE:
        raise ParityError(
            f"merging LoRA moved the image embedding by {worst:.1e} relative, at most {MERGE_RELATIVE:.0e} is allowed; "
            "are the LoRA weights of this checkpoint finite and of usual size?"
        )
    return {"relative_error": worst}
