"""One export from plan to manifest.

Everything is made in a hidden folder beside the target and moved at the end, manifest last: a stage that fails
leaves the target as it was. What a plan names is resolved once, into a `Work` that every stage is handed.
"""

from __future__ import annotations

import logging
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samkit.errors import ExportError, MissingDependencyError
from samkit.export.check import ParityCheck
from samkit.export.folder import check_folder, finished_export, move_export
from samkit.export.loading import Work, load_work
from samkit.export.references import make_references
from samkit.extras import how_to_install
from samkit.files import working_folder
from samkit.manifest import ExportPlan, Manifest, describe_files
from samkit.methods import get_method

_log = logging.getLogger(__name__)


def run_export(plan: ExportPlan, out: Path, *, force: bool = False) -> Manifest:
    """Carry out `plan` into the folder `out` and return its manifest.

    An export of the same plan whose files are unchanged is kept. Raises ExportError for another export in `out`
    without `force`, and for every stage that fails; the folder is then as it was.
    """
    _check_dependencies()
    from samkit.export.writing import freeze_network, write_files

    check_folder(out)
    environment = _environment()
    work = load_work(plan, get_method(plan.method))
    for warning in _warnings(work):
        _log.warning("%s", warning)
    there = None if force else finished_export(out)
    if there is not None and (there.plan, there.environment.get("samkit")) == (work.plan, environment["samkit"]):
        _log.info("%s already holds this export, unchanged; nothing to do unless forced", out)
        return there
    if there is not None:
        raise ExportError(
            f"{out} holds another export (method {there.plan.method}, {there.plan.precision}, weights "
            f"{there.plan.weights.kind}); choose another {{out}}, or pass {{force}} to replace it",
            options=("out", "force"),
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with working_folder(out.parent) as folder:
            references = make_references(work, folder)
            merge = freeze_network(work, references)
            check = ParityCheck(work.method, work.plan, references)
            notes: dict[str, Any] = {}
            parity: dict[str, Any] = {}
            for precision in work.precisions:
                notes |= write_files(work, precision, folder, check)
                parity |= check.of_files(folder, work.files[precision.name], precision.name)
            manifest = Manifest(
                plan=work.plan,
                artifacts=describe_files(folder, sorted(path.name for path in folder.iterdir())),
                parity=parity,
                lora_merge=merge,
                precision_notes=notes,
                environment=environment,
                provenance=work.info.provenance,
            )
            manifest.save(folder)
            _log.info("manifest.json")
            move_export(folder, out, manifest)
    except OSError as error:
        raise ExportError(
            f"the export can't be written to {out} ({error.strerror}); choose another {{out}}", options=("out",)
        ) from error
    return manifest


def _check_dependencies() -> None:
    for package in ("torch", "onnx", "onnxscript"):
        try:
            version(package)
        except ImportError:
            raise MissingDependencyError(
                f"exporting needs {package}, which is not installed; {how_to_install('export', 'cpu')}"
            ) from None


def _environment() -> dict[str, str]:
    packages = ("samkit", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except ImportError:
            continue
    return {**found, "python": platform.python_version(), "machine": platform.machine(), "cores": str(os.cpu_count())}


def _warnings(work: Work) -> list[str]:
    """Return what has to be known of the weights before minutes are spent on them."""
    warnings = []
    if work.plan.is_demonstration and not work.plan.weights.demonstration:
        lent = " and ".join(name for name, weights in work.plan.others.items() if weights.demonstration)
        warnings.append(
            f"{work.plan.demonstration}, trained on phantoms, never for patients; all else is your checkpoint's. "
            f"Train the {lent}, too, and give it"
        )
    if work.info.found_nothing:
        measures = ", ".join(work.info.metrics)
        warnings.append(f"the checkpoint finds NOTHING on what its training held back: {measures} stayed at 0")
    return warnings
