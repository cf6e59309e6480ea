"""What PyTorch float32 answers, upstream's formulation, on phantoms and on scans of the user's own: the references.

Those of the phantoms are kept as parity.npz beside the graphs, so that `sam-export --verify` can repeat the comparison
on a machine without torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from samkit.errors import ManifestError
from samkit.export.calibration import CalibrationScan, find_calibration, read_calibration
from samkit.export.loading import Work
from samkit.export.procedures import procedure_of
from samkit.methods import Method
from samkit.runtime.backends.runner import Runner, add_substitutes

FILE_NAME = "parity.npz"
CASES = 2
"""Phantoms; their answers are kept."""

_log = logging.getLogger(__name__)


def make_references(work: Work, folder: Path) -> list[Any]:
    """Return the references of an export, on phantoms first, and keep those in `folder`.

    Scans of patients don't travel with an export.
    """
    from samkit.runtime.backends.torch_runner import TorchRunner

    _log.info("reference: PyTorch float32, upstream's formulation, on phantoms")
    subjects: list[CalibrationScan] = []
    calibration = work.plan.calibration
    if calibration is not None and calibration.path is not None:
        paths, found = find_calibration(Path(calibration.path), work.method, work.plan.config)
        _log.info("calibration: %d of %d subjects of the folder, besides %d phantoms", len(paths), found, CASES)
        subjects = read_calibration(paths, work.method, work.plan.config)
    runners: dict[str, Runner] = {graph.name: TorchRunner(work.network, graph) for graph in work.specs}
    add_substitutes(runners, work.method.graphs(work.plan.config))
    work.network.set_folded(False)
    try:
        references = list(procedure_of(work.method).make_references(runners, work.method, work.plan, CASES, subjects))
    finally:
        work.network.set_folded(True)
    save_references(folder, [reference.to_arrays() for reference in references[:CASES]])
    return references


def save_references(folder: Path, cases: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write the arrays of each case as `load_references` reads them."""
    arrays: dict[str, Any] = {}
    for number, case in enumerate(cases):
        arrays |= {f"{number}.{key}": array for key, array in case.items()}
    np.savez(folder / FILE_NAME, **arrays)


def load_references(method: Method, folder: Path) -> list[Any]:
    """Return the references that an export keeps; raises ManifestError when the file holds none of this method."""
    path = folder / FILE_NAME
    try:
        # Opened here: of what is no archive numpy would leave it open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        cases: list[dict[str, np.ndarray]] = [{} for _ in range(1 + max(int(name.split(".")[0]) for name in arrays))]
        for name, array in arrays.items():
            number, key = name.split(".", 1)
            cases[int(number)][key] = array
        return [procedure_of(method).Reference.from_arrays(case) for case in cases]
    except (OSError, EOFError, LookupError, ValueError, TypeError, BadZipFile) as error:
        raise ManifestError(f"{path} does not hold parity references ({error!r}); export again") from error
