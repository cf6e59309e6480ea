"""The parity procedure of an export on any runners: of files, of engines, or of files that are still on trial."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samkit.errors import ManifestError
from samkit.export.parity import judge
from samkit.export.procedures import procedure_of
from samkit.manifest import ExportPlan
from samkit.methods import Method
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.runner import Runner, official_alone

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParityCheck:
    """What an export is held to."""

    method: Method
    plan: ExportPlan
    references: list[Any]

    def __call__(self, runners: Mapping[str, Runner], precision: str) -> dict[str, dict[str, Any]]:
        """Return the figures of each graph on `runners`; raises ParityError for the first output that moved too far."""
        return check_parity(runners, self.references, self.method, self.plan, precision)

    def of_files(self, folder: Path, files: Mapping[str, str], precision: str) -> dict[str, Any]:
        """Return the figures of ONNX files, by graph, on ONNX Runtime's CPU provider, by file."""
        if self.plan.config is None or self.plan.refinement is None:
            raise ManifestError(f"the plan in {folder} is not complete; export again")
        with ExitStack() as stack:
            runners: Mapping[str, Runner] = {
                spec.name: stack.enter_context(OnnxRuntimeRunner(folder / files[spec.name], spec))
                for spec in self.plan.specs
            }
            checked = check_parity(runners, self.references, self.method, self.plan, precision)
        for name, values in checked.items():
            _log.info("%s: %s", files[name], ", ".join(f"{k} {v:.3g}" for k, v in values.items()))
        return {files[name]: values for name, values in checked.items()}


def check_parity(
    runners: Mapping[str, Runner], references: list[Any], method: Method, plan: ExportPlan, precision: str
) -> dict[str, dict[str, Any]]:
    """Return the figures of each graph; raises ParityError naming the first output that moved too far.

    Outputs are compared as they come, each before the next graph runs.
    """
    alone = official_alone(runners, method.graphs(plan.config))
    procedure = procedure_of(method)
    figures: dict[str, dict[str, Any]] = procedure.new_figures(runners, references, plan)
    judge(procedure.findings(runners, alone, references, method, plan), plan.specs, precision, figures)
    return figures
