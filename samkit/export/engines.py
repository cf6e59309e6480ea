"""Build TensorRT engines from a finished export, check them, and add them to its manifest. Needs no torch and no onnx.

Engines belong where they will run: they load on one kind of GPU and one version of TensorRT. So this is a command of
its own, `sam-export --build-engines DIR`, for use inside the serving container; `sam-export` calls it where it can.

Each engine is built in a child process (build_engine.py). All are built and pass parity before the export changes.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samkit.errors import ExportError, MissingDependencyError, SamkitError
from samkit.export.build_engine import EnginePlan, describe_machine, graph_sha256
from samkit.export.verify import repeat_parity
from samkit.files import working_folder
from samkit.manifest import Export, Manifest, describe_files, engine_file, file_sha256
from samkit.methods import GraphSpec
from samkit.runtime.backends.pycuda_device import import_pycuda
from samkit.runtime.backends.runner import Runner
from samkit.runtime.backends.tensorrt_library import import_tensorrt, untested_warning
from samkit.runtime.backends.tensorrt_runner import POINTS, TensorRTRunner
from samkit.tensors import Axis

_log = logging.getLogger(__name__)

MIB = 1 << 20


@dataclass(frozen=True)
class EngineSettings:
    """What the builder may use and how hard it tries."""

    workspace_bytes: int = 4096 * MIB
    """Most memory of the GPU that a layer's algorithm may take while it runs."""
    optimization_level: int = 3
    """TensorRT's builder_optimization_level, 0 to 5; 3 is its own default, 0 ignores the timing cache."""


def check_tensorrt() -> dict[str, str]:
    """Return what engines built here would be bound to; raises MissingDependencyError where none can be built."""
    import_tensorrt()
    import_pycuda()
    return describe_machine()


def engine_profile(graph: GraphSpec) -> dict[str, list[list[int]]]:
    """Return the smallest, usual and largest shape of each input of `graph`.

    TensorRT's profiles begin at one point, because not every release takes an empty axis: the runner passes an ABSENT
    point in place of none. Raises ExportError for any other axis that may be empty.
    """
    profile = {}
    for spec in graph.inputs:
        empty = [axis.name for axis in spec.axes if axis.min < 1 and axis.name != POINTS]
        if empty:
            raise ExportError(
                f"the axis {empty[0]} of '{spec.name}' may be empty, and an engine's axes begin at 1; raise its "
                f"minimum in the record of {graph.name}"
            )
        profile[spec.name] = [[_size(axis, which) for axis in spec.axes] for which in ("min", "opt", "max")]
    return profile


def _size(axis: Axis, which: str) -> int:
    size = max(int(getattr(axis, which)), axis.step)
    if not size % axis.step == 0:
        raise ExportError(f"the axis {axis.to_text()} has the {which} {size}, which its step forbids; mend its record")
    return size


def build_engines(
    folder: Path,
    *,
    settings: EngineSettings | None = None,
    force: bool = False,
) -> Manifest:
    """Build an engine of every ONNX file of the export in `folder`, and return its new manifest.

    Engines that are there, unchanged, of this machine and with these settings are kept, unless `force`; engines' own
    files may be missing or changed, all others not. An untested version of TensorRT is logged as a warning. Raises
    MissingDependencyError without TensorRT, pycuda or a GPU, ManifestError for a changed export, ExportError with
    TensorRT's own errors, and ParityError; the export is then as it was.
    """
    settings = settings or EngineSettings()
    machine = check_tensorrt()
    export = Export.open(folder)
    if (untested := untested_warning(machine["tensorrt"])) is not None:
        _log.warning(untested)
    wanted = [(spec, precision) for spec in export.specs for precision in export.plan.precisions]
    if not force and all(_is_current(export, spec, p, machine, settings) for spec, p in wanted):
        _log.info("%s already holds these engines, unchanged; nothing to do unless forced", folder)
        return export.manifest
    try:
        with working_folder(folder) as work:
            facts = {}
            for spec, precision in wanted:
                name = engine_file(spec.name, precision)
                _log.info("%s: TensorRT %s on %s", name, machine["tensorrt"], machine["gpu"])
                facts[name] = _build(export, work, spec, precision, settings)
                _log.info("%s: built in %.1f s", name, facts[name]["build_seconds"])
            new = _with_engines(export.manifest, work, facts)
            for precision in export.plan.precisions:
                for name, figures in _check_parity(replace(export, manifest=new), work, precision).items():
                    new.engines[name]["parity"] = figures
                    shown = (f"{k} {v:.3g}" for k, v in figures.items() if isinstance(v, float | int))
                    _log.info("%s: %s", name, ", ".join(shown))
            _move(work, export, new)
    except OSError as error:
        raise ExportError(f"the engines can't be written to {folder} ({error.strerror}); make it writable") from error
    return new


def _is_current(
    export: Export,
    graph: GraphSpec,
    precision: str,
    machine: dict[str, str],
    settings: EngineSettings,
) -> bool:
    """Return whether the manifest has this engine as a build here and now would make it, and its files are there."""
    there = export.manifest.engines.get(engine_file(graph.name, precision), {})
    wanted = {
        **machine,
        **asdict(settings),
        "profile": engine_profile(graph),
        "onnx_sha256": graph_sha256(export.path(graph.name, precision)),
    }
    return all(there.get(fact) == value for fact, value in wanted.items()) and all(
        _is_unchanged(export, file) for file in there["files"]
    )


def _is_unchanged(export: Export, file: str) -> bool:
    """Return whether a file is there with the SHA-256 that the manifest lists."""
    listed, path = {artifact.file: artifact.sha256 for artifact in export.manifest.artifacts}, export.folder / file
    return path.is_file() and listed.get(file) == file_sha256(path)


def _build(export: Export, work: Path, graph: GraphSpec, precision: str, settings: EngineSettings) -> dict[str, Any]:
    """Return the facts of one engine, built into `work` by a child process; raises ExportError with its sentence."""
    onnx = export.path(graph.name, precision).resolve()
    name = engine_file(graph.name, precision)
    logs = Path(tempfile.mkdtemp(prefix=f"samkit-{name}-"))  # outside of the export: it outlives a failure
    log = logs / "build.log"
    # What was timed before is handed to TensorRT, so it must be what a build of ours left
    known = [f for f in export.manifest.engines.get(name, {}).get("files", ()) if _is_unchanged(export, f)]
    plan = EnginePlan(
        onnx=str(onnx),
        onnx_sha256=graph_sha256(onnx),
        engine=str((work / name).resolve()),
        profile=engine_profile(graph),
        workspace_bytes=settings.workspace_bytes,
        optimization_level=settings.optimization_level,
        timing_caches=[str((export.folder / file).resolve()) for file in known],
        log=str(log),
        result=str(logs / "result.json"),
    )
    plan.save(logs / "plan.json")
    with log.open("a") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "samkit.export.build_engine", str(logs / "plan.json")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    result = _read_result(Path(plan.result))
    if ended.returncode != 0 or "error" in result:
        raise _failure(result, ended.returncode, name, log)
    shutil.rmtree(logs)
    return {"graph": graph.name, "precision": precision, **result}


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        return result
    except (OSError, ValueError):
        return {}


def _failure(result: dict[str, Any], code: int, name: str, log: Path) -> SamkitError:
    """Return the error of a child that failed: its own sentence, or how it ended, and where its log lies."""
    where = f"the log is {log}"
    if "error" in result:
        kind = MissingDependencyError if result["kind"] == MissingDependencyError.__name__ else ExportError
        return kind(f"{name} was not built: {result['error']}; {where}")
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
        advice = ", often for want of memory: try a smaller {engine_workspace}" if -code == signal.SIGKILL else ""
    else:
        lines = log.read_text(errors="replace").strip().splitlines()
        how, advice = f"ended with code {code}" + (f" ({lines[-1].strip()})" if lines else ""), ""
    return ExportError(
        f"{name} was not built: the process that built it {how}{advice}; {where}", options=("engine_workspace",)
    )


def _with_engines(manifest: Manifest, work: Path, facts: dict[str, Any]) -> Manifest:
    """Return the manifest with the engines in `work` in place of those it lists."""
    kept = tuple(artifact for artifact in manifest.artifacts if artifact.file not in manifest.engine_files)
    made = describe_files(work, [file for entry in facts.values() for file in entry["files"]])
    artifacts = tuple(sorted((*kept, *made), key=lambda artifact: artifact.file))
    return replace(manifest, artifacts=artifacts, engines=facts)


def _check_parity(export: Export, work: Path, precision: str) -> dict[str, dict[str, Any]]:
    """Return the figures of the engines of one precision, which lie in `work`, against PyTorch float32's answers."""
    made = replace(export, folder=work)
    with ExitStack() as opened:
        runners: dict[str, Runner] = {
            spec.name: opened.enter_context(TensorRTRunner(made, spec, precision)) for spec in export.specs
        }
        figures = repeat_parity(export, runners, precision)
    return {engine_file(graph, precision): values for graph, values in figures.items()}


def _move(work: Path, export: Export, new: Manifest) -> None:
    """Move the engines into the export; at every moment its manifest tells the truth about its files."""
    folder, old = export.folder, export.manifest
    _with_engines(old, work, {}).save(folder)
    for entry in old.engines.values():
        for file in entry["files"]:
            (folder / Path(file).name).unlink(missing_ok=True)
    for entry in new.engines.values():
        for file in entry["files"]:
            (work / file).replace(folder / file)
    new.save(folder)
