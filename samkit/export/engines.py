"""Build engines from a finished export, check them, and add them to its manifest. Needs no torch and no onnx.

TensorRT's engines belong where they will run: they load on one kind of GPU and one version of TensorRT. So this is a
command of its own, `sam-export --build-engines DIR`, for use inside the serving container; `sam-export` calls it where
it can. TensorRT for RTX builds anywhere, and what it builds can be measured on a GPU alone: the manifest says that it
was not run.

Each engine is built in a child process (build_engine.py). All of a library are built, and where they can run pass
parity, before the export changes.
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

from samkit.engine_libraries import RTX, TENSORRT, EngineLibrary
from samkit.errors import ExportError, MissingDependencyError, SamkitError
from samkit.export.build_engine import EnginePlan, graph_sha256
from samkit.export.verify import repeat_parity
from samkit.files import working_folder
from samkit.manifest import Export, Manifest, describe_files, file_sha256
from samkit.methods import GraphSpec
from samkit.runtime.backends.runner import Runner
from samkit.runtime.backends.tensorrt_library import untested_warning
from samkit.runtime.backends.tensorrt_runner import POINTS, TensorRTRunner, describe_machine
from samkit.tensors import Axis

_log = logging.getLogger(__name__)

MIB = 1 << 20


@dataclass(frozen=True)
class EngineSettings:
    """What the builder may use and how hard it tries."""

    workspace_bytes: int = 4096 * MIB
    """Most memory of the GPU that a layer's algorithm may take while it runs."""
    optimization_level: int = 3
    """builder_optimization_level, 0 to 5; 3 is the libraries' own default, 0 ignores the timing cache."""
    target: str = RTX.targets[0]
    """GPUs that TensorRT for RTX builds for."""
    platform: str = RTX.platforms[0]
    """System that TensorRT for RTX builds for."""


def check_library(library: EngineLibrary) -> dict[str, str]:
    """Return what engines built here would be made with; raises MissingDependencyError where none can be built."""
    return describe_machine(library)


def engine_profile(graph: GraphSpec) -> dict[str, list[list[int]]]:
    """Return the smallest, usual and largest shape of each input of `graph`.

    Profiles begin at one point, because not every release takes an empty axis: the runner passes an ABSENT
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
    library: EngineLibrary = TENSORRT,
    *,
    settings: EngineSettings | None = None,
    force: bool = False,
) -> Manifest:
    """Build a library's engine of every ONNX file of the export in `folder`, and return its new manifest.

    Engines that are there, unchanged, of this machine and with these settings are kept, unless `force`; engines' own
    files may be missing or changed, all others not, and those of another library stay. An untested version is logged as
    a warning. Raises MissingDependencyError without the library, or the GPU that it needs, ManifestError for a changed
    export, ExportError with the library's own errors, and ParityError; the export is then as it was.
    """
    settings = settings or EngineSettings()
    machine = check_library(library)
    version = machine[library.version_fact]
    export = Export.open(folder)
    if (untested := untested_warning(version, library)) is not None:
        _log.warning(untested)
    wanted = [(spec, precision) for spec in export.specs for precision in export.plan.precisions]
    if not force and all(_is_current(export, library, spec, p, machine, settings) for spec, p in wanted):
        _log.info("%s already holds these engines, unchanged; nothing to do unless forced", folder)
        return export.manifest
    try:
        with working_folder(folder) as work:
            facts = {}
            for spec, precision in wanted:
                name = library.engine_file(spec.name, precision)
                where = machine["gpu"] if library.needs_gpu else f"{settings.target}, {settings.platform}"
                _log.info("%s: %s %s for %s", name, library.title, version, where)
                facts[name] = _build(export, library, work, spec, precision, settings)
                _log.info("%s: built in %.1f s", name, facts[name]["build_seconds"])
            new = _with_engines(export.manifest, library, work, facts)
            for precision in export.plan.precisions if library.needs_gpu else ():
                for name, figures in _check_parity(replace(export, manifest=new), work, precision).items():
                    new.engines[name] |= {"parity": figures, "run": machine}
                    shown = (f"{k} {v:.3g}" for k, v in figures.items() if isinstance(v, float | int))
                    _log.info("%s: %s", name, ", ".join(shown))
            _move(work, export, library, new)
    except OSError as error:
        raise ExportError(f"the engines can't be written to {folder} ({error.strerror}); make it writable") from error
    return new


def _is_current(
    export: Export,
    library: EngineLibrary,
    graph: GraphSpec,
    precision: str,
    machine: dict[str, str],
    settings: EngineSettings,
) -> bool:
    """Return whether the manifest has this engine as a build here and now would make it, and its files are there."""
    there = export.manifest.engines.get(library.engine_file(graph.name, precision), {})
    asked = asdict(settings)
    if library.needs_gpu:
        del asked["target"], asked["platform"]
    wanted = {
        **machine,
        **asked,
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


def _build(
    export: Export, library: EngineLibrary, work: Path, graph: GraphSpec, precision: str, settings: EngineSettings
) -> dict[str, Any]:
    """Return the facts of one engine, built into `work` by a child process; raises ExportError with its sentence."""
    onnx = export.path(graph.name, precision).resolve()
    name = library.engine_file(graph.name, precision)
    logs = Path(tempfile.mkdtemp(prefix=f"samkit-{name}-"))  # outside of the export: it outlives a failure
    log = logs / "build.log"
    # What was timed before is handed to TensorRT, so it must be what a build of ours left
    known = [f for f in export.manifest.engines.get(name, {}).get("files", ()) if _is_unchanged(export, f)]
    plan = EnginePlan(
        onnx=str(onnx),
        onnx_sha256=graph_sha256(onnx),
        engine=str((work / name).resolve()),
        library=library.name,
        target=settings.target,
        platform=settings.platform,
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
    return {"graph": graph.name, "precision": precision, **result, "run": None}


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


def engines_of(manifest: Manifest, library: EngineLibrary) -> dict[str, dict[str, Any]]:
    """Return the entries of a library's engines in a manifest; those of older ones, which name none, are TensorRT's."""
    return {
        name: entry for name, entry in manifest.engines.items() if entry.get("library", TENSORRT.name) == library.name
    }


def _with_engines(manifest: Manifest, library: EngineLibrary, work: Path, facts: dict[str, Any]) -> Manifest:
    """Return the manifest with the library's engines in `work` in place of those of it that are listed."""
    old = engines_of(manifest, library)
    replaced = {file for entry in old.values() for file in entry["files"]}
    kept = tuple(artifact for artifact in manifest.artifacts if artifact.file not in replaced)
    made = describe_files(work, [file for entry in facts.values() for file in entry["files"]])
    artifacts = tuple(sorted((*kept, *made), key=lambda artifact: artifact.file))
    others = {name: entry for name, entry in manifest.engines.items() if name not in old}
    return replace(manifest, artifacts=artifacts, engines={**others, **facts})


def _check_parity(export: Export, work: Path, precision: str) -> dict[str, dict[str, Any]]:
    """Return the figures of the engines of one precision, which lie in `work`, against PyTorch float32's answers."""
    made = replace(export, folder=work)
    with ExitStack() as opened:
        runners: dict[str, Runner] = {
            spec.name: opened.enter_context(TensorRTRunner(made, spec, precision)) for spec in export.specs
        }
        figures = repeat_parity(export, runners, precision)
    return {TENSORRT.engine_file(graph, precision): values for graph, values in figures.items()}


def _move(work: Path, export: Export, library: EngineLibrary, new: Manifest) -> None:
    """Move a library's engines into the export; at every moment its manifest tells the truth about its files."""
    folder, old = export.folder, export.manifest
    _with_engines(old, library, work, {}).save(folder)
    for entry in engines_of(old, library).values():
        for file in entry["files"]:
            (folder / Path(file).name).unlink(missing_ok=True)
    for entry in engines_of(new, library).values():
        for file in entry["files"]:
            (work / file).replace(folder / file)
    new.save(folder)
