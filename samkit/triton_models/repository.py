"""Write export folders as one Triton model repository.

    NAME_<graph>/config.pbtxt, 1/model.onnx or 1/model.plan      each graph of the export; or, as an engine of TensorRT
                                                                  for RTX, 1/model.py, 1/manifest.json and the engine
    NAME_preprocess, NAME_refine, NAME_postprocess, NAME_session  config.pbtxt, 1/model.py, 1/manifest.json
    NAME/config.pbtxt, 1/                                         the ensemble
    samkit.json                                                   what was written, with SHA-256 (record.py)

Files are copied, never linked: an export may be made again in place while a server runs. A repository says nothing
about where weights lay or how they were trained.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samkit import engine_libraries
from samkit.engine_libraries import EngineLibrary
from samkit.errors import ManifestError, MissingDependencyError, ServingError
from samkit.files import working_folder
from samkit.manifest import FILE_NAME as MANIFEST_FILE
from samkit.manifest import Export, Manifest, file_sha256
from samkit.methods import GraphSpec, SliceMethod
from samkit.precisions import BASE
from samkit.runtime.backends.tensorrt_runner import describe_here
from samkit.runtime.client.tritonclient_library import model_config
from samkit.triton_models.limits import DEFAULTS, LIMITS, Limits
from samkit.triton_models.model_config import (
    ENGINE_FILE,
    ONNX_FILE,
    ROLES,
    SESSION,
    check_config,
    ensemble_config,
    graph_config,
    python_config,
)
from samkit.triton_models.record import (
    ENSEMBLE,
    FILE_NAME,
    ONNXRUNTIME,
    PYTHON,
    RTX,
    TENSORRT,
    Repository,
    ServedExport,
)
from samkit.version import __version__

NAME_FORM = re.compile(r"[a-z][a-z0-9_]*")
MODELS = Path(__file__).parent / "models"
"""The model.py of each role."""
VERSION = "1"
"""Triton's name for the one version of every model."""
_KINDS = {None: ONNXRUNTIME, engine_libraries.TENSORRT: TENSORRT, engine_libraries.RTX: RTX}


@dataclass(frozen=True)
class _Source:
    """One export that is to be served."""

    export: Export
    name: str
    precision: str
    libraries: tuple[EngineLibrary, ...]
    """Whose engines are taken, where there are some."""

    @property
    def graphs(self) -> tuple[GraphSpec, ...]:
        return self.export.specs

    @property
    def slices(self) -> bool:
        return isinstance(self.export.method, SliceMethod)

    def library(self, graph: GraphSpec) -> EngineLibrary | None:
        """Return the library whose engine runs `graph`; None where ONNX Runtime does."""
        there = self.export.manifest.engines
        return next((one for one in self.libraries if one.engine_file(graph.name, self.precision) in there), None)

    def engine(self, graph: GraphSpec) -> str | None:
        """Return the file of that engine."""
        library = self.library(graph)
        return None if library is None else library.engine_file(graph.name, self.precision)

    @property
    def models(self) -> dict[str, str]:
        """Return every model's name and what runs it."""
        graphs = {self.model(graph.name): _KINDS[self.library(graph)] for graph in self.graphs}
        return {**graphs, **{self.model(role): PYTHON for role in (*ROLES, SESSION)}, self.name: ENSEMBLE}

    def model(self, part: str) -> str:
        return f"{self.name}_{part}"


def write_repository(
    exports: Sequence[Path],
    out: Path,
    *,
    precision: str | None = None,
    name: str | None = None,
    engines: bool = True,
    rtx: bool | None = None,
    limits: Limits = DEFAULTS,
) -> Repository:
    """Write `exports` into the model repository `out` and return its record.

    `precision` is that of all graphs, float32 unless another is asked for. `name` replaces the method's name, of one
    export. With `engines`, graphs that have a TensorRT engine in this precision are served by it, and with `rtx` those
    that have one of TensorRT for RTX by that, behind the Python backend: by default where this machine runs them. A
    repository of samkit's that is in `out` is replaced, edited configs included, once the new one is complete; a server
    that runs on it has loaded its models and goes on with them.

    Raises ServingError for names that can't be served together and an `out` that is something else, ManifestError for
    an export that is not whole or lacks the precision, MissingDependencyError without tritonclient.
    """
    model_config()  # before any work
    out = Path(os.path.realpath(out))  # not `resolve`, which knows no sentence for links that go in circles
    sources = [_open(folder, precision or BASE.name, name, engines, rtx) for folder in exports]
    _check_names(sources, name)
    try:
        _check_out(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with working_folder(out.parent) as work:
            new = work / "new"
            new.mkdir()  # inside of the temporary folder, which nobody else could read
            record = Repository(__version__, {s.name: _write_export(s, new, limits) for s in sources})
            record.save(new)
            _move(new, out, work / "old")
    except OSError as error:
        raise ServingError(
            f"the repository can't be written to {out} ({error.strerror}); choose another {{out}}", options=("out",)
        ) from error
    return record


# --- Before any work ---


def _open(folder: Path, precision: str, name: str | None, engines: bool, rtx: bool | None) -> _Source:
    """Return an export whose files were verified and that has every graph in this precision."""
    export = Export.open(folder, verify=False)
    for graph in export.specs:
        export.path(graph.name, precision)
    libraries: tuple[EngineLibrary, ...] = (engine_libraries.TENSORRT,) if engines else ()
    if engines and (_runs_rtx(export, precision) if rtx is None else rtx):
        libraries += (engine_libraries.RTX,)
    source = _Source(export, name or export.method.name.replace("-", "_"), precision, libraries)
    export.manifest.verify(folder, engines=any(source.engine(graph) for graph in export.specs))
    return source


def _runs_rtx(export: Export, precision: str) -> bool:
    """Return whether this machine runs an export's engines of TensorRT for RTX, all that there are."""
    library = engine_libraries.RTX
    names = [library.engine_file(graph.name, precision) for graph in export.specs]
    facts = [export.manifest.engines[name] for name in names if name in export.manifest.engines]
    if not facts:
        return False
    try:
        here = describe_here(library)
    except MissingDependencyError:
        return False
    return all(library.misfit(each, here) is None for each in facts)


def _check_names(sources: Sequence[_Source], name: str | None) -> None:
    """Raise ServingError where models can't stand in one repository under their names."""
    if not sources:
        raise ServingError("no export was given, and a repository serves at least one; name its folder")
    if name is not None and len(sources) > 1:
        raise ServingError(
            f"{{name}} {name} can't name {len(sources)} exports at once; leave it out, or write a repository for each",
            options=("name",),
        )
    for source in sources:
        if NAME_FORM.fullmatch(source.name) is None:
            raise ServingError(
                f"the name '{source.name}' is no name for a model, which has small letters, digits and underscores and "
                "begins with a letter; pass another {name}",
                options=("name",),
            )
    if repeated := [name for name, count in Counter(source.name for source in sources).items() if count > 1]:
        raise ServingError(
            f"two exports would be served as {', '.join(repeated)}, and a name has one; write a second repository with "
            "{name}",
            options=("name",),
        )
    if repeated := [name for name, count in Counter(m for s in sources for m in s.models).items() if count > 1]:
        raise ServingError(
            f"the model {', '.join(repeated)} would stand in the repository twice, as a name and as a part of another; "
            "write a second repository with {name}",
            options=("name",),
        )


def _check_out(out: Path) -> None:
    """Raise ServingError where `out` holds anything but a repository of ours, which is all that is ever replaced."""
    if out.exists() and not out.is_dir():
        raise ServingError(f"{out} is a file, and a repository is a folder; choose another {{out}}", options=("out",))
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there and FILE_NAME not in there:
        raise ServingError(
            f"{out} holds files that are no repository of samkit's, and nothing of yours is replaced; choose an empty "
            "or a new folder with {out}",
            options=("out",),
        )
    if there and (foreign := sorted(there - {FILE_NAME, *Repository.load(out).models})):
        raise ServingError(
            f"{out} also holds {', '.join(foreign)}, which samkit did not write and would take away; move it "
            "elsewhere, or choose another {out}",
            options=("out",),
        )


# --- Writing ---


def _write_export(source: _Source, new: Path, limits: Limits) -> ServedExport:
    """Write every model of an export into the folder `new` and return what was written."""
    files: list[Path] = []
    for graph in source.graphs:
        files += _write_graph(source, graph, new)
    for role in (*ROLES, SESSION):
        files += _write_python(source, role, new, limits)
    _new_model(new, source.name, ensemble_config(source.name, slices=source.slices))
    engines = {source.model(graph.name): source.engine(graph) for graph in source.graphs}
    return ServedExport(
        method=source.export.method.name,
        precision=source.precision,
        manifest=source.export.digest,
        models=source.models,
        files={str(path.relative_to(new)): file_sha256(path) for path in files},
        engines={model: source.export.manifest.engines[file] for model, file in engines.items() if file is not None},
    )


def _new_model(new: Path, model: str, config: str) -> Path:
    """Write a model's config, and return the new folder of its version: an ensemble needs one, too."""
    version = new / model / VERSION
    version.mkdir(parents=True)
    (new / model / "config.pbtxt").write_text(config)
    return version


def _write_graph(source: _Source, graph: GraphSpec, new: Path) -> Iterator[Path]:
    """Write the model of one graph; yield its files."""
    model, engine = source.model(graph.name), source.engine(graph)
    is_rtx = source.library(graph) is engine_libraries.RTX
    config = graph_config(
        model, graph, engine=engine is not None and not is_rtx, rtx=source.precision if is_rtx else None
    )
    check_config(config, graph)
    version = _new_model(new, model, config)
    if engine is not None and is_rtx:
        yield _copy(source, engine, version / engine)
        yield from _write_model("engine", source, version)
        return
    if engine is not None:
        yield _copy(source, engine, version / ENGINE_FILE)
        return
    path = source.export.path(graph.name, source.precision)
    yield _copy(source, path.name, version / ONNX_FILE)
    weights = f"{path.name}.data"  # where the exporter puts those beyond 2 GiB; the graph finds them by this very name
    if weights in {artifact.file for artifact in source.export.manifest.artifacts}:
        yield _copy(source, weights, version / weights)


def _copy(source: _Source, file: str, target: Path) -> Path:
    """Copy one of the manifest's files; raises ManifestError where the copy is not what the manifest lists."""
    listed = {artifact.file: artifact.sha256 for artifact in source.export.manifest.artifacts}
    shutil.copyfile(source.export.folder / file, target)
    if listed.get(file) != file_sha256(target):
        raise ManifestError(
            f"{source.export.folder / file} changed while it was copied; wait until the export is made, and write again"
        )
    return target


def _write_python(source: _Source, role: str, new: Path, limits: Limits) -> Iterator[Path]:
    """Write one Python model; yield its files."""
    parameters = {
        "samkit_name": source.name,
        "precision": source.precision,
        # The manifest beside the model does not have it: its weights have no path
        "manifest": source.export.digest,
        "engines": " ".join(g.name for g in source.graphs if source.library(g) is engine_libraries.TENSORRT),
    }
    parameters |= {key: str(getattr(limits, key)) for key in LIMITS[role]}
    model = source.model(role)
    version = _new_model(new, model, python_config(model, role, parameters, slices=source.slices))
    yield from _write_model(role, source, version)


def _write_model(role: str, source: _Source, version: Path) -> Iterator[Path]:
    """Write what every Python model has, its code and the manifest; yield both files."""
    shutil.copyfile(MODELS / f"{role}.py", version / "model.py")
    without_origin(source.export.manifest).save(version)
    yield from (version / "model.py", version / MANIFEST_FILE)


def without_origin(manifest: Manifest) -> Manifest:
    """Return a manifest without paths of weights and without the commands that trained them: those name folders."""
    plan = manifest.plan
    others = {name: replace(weights, path=None) for name, weights in plan.others.items()}
    plan = replace(plan, weights=replace(plan.weights, path=None), others=others)
    return replace(manifest, plan=plan, provenance={})


def _move(new: Path, out: Path, old: Path) -> None:
    """Put the finished repository in place of what is in `out`, by two renames: between them there is no `out`.

    Whatever keeps the second from being done, Ctrl-C included, puts the old one back.
    """
    if not out.exists():
        new.rename(out)
        return
    try:
        out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
