"""What would fail if a model repository were served: `sam-serve check` says all of it before anything is started."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from samkit import engine_libraries
from samkit.errors import ManifestError, SamkitError
from samkit.extras import how_to_install
from samkit.manifest import Manifest, file_sha256
from samkit.methods import GraphSpec, SliceMethod, get_method
from samkit.runtime.backends.tensorrt_runner import describe_here
from samkit.runtime.client import tritonclient_library
from samkit.triton_models.model_config import DTYPES, ONNX_FILE, check_config, check_python_config, parse_config
from samkit.triton_models.record import ENSEMBLE, ONNXRUNTIME, PYTHON, TENSORRT, Repository, ServedExport
from samkit.triton_models.server_files import SHARED_BYTES, SHARED_MEMORY, check_numpy, find_server
from samkit.version import __version__


def find_problems(folder: Path, *, embedded: bool = True) -> list[str]:
    """Return everything that keeps a repository from being served on this machine, each in a sentence.

    It is the embedded server that is meant; without `embedded` NVIDIA's container, which brings its own.
    """
    try:
        record = Repository.load(folder)
    except ManifestError as error:
        return [str(error)]
    except OSError as error:
        return [_unreadable(folder, error)]
    problems = [*_readable(_in_record(record, folder))]
    for name, export in record.exports.items():
        problems += [*_in_files(export, folder), *_readable(_in_models(name, export, folder))]
        problems += _readable(_in_graph_files(export, folder))
    problems += _in_engines(record)
    if embedded:
        problems += _in_environment(record)
    return list(dict.fromkeys(problems))


def _readable(problems: Iterator[str]) -> Iterator[str]:
    """Yield `problems`; what can't be read ends them, and is the last."""
    try:
        yield from problems
    except OSError as error:
        yield _unreadable(error.filename, error)


def _unreadable(path: object, error: OSError) -> str:
    return f"{path} can't be read ({error.strerror}), and the server has to; give its user the right to"


# --- The repository ---


def _in_record(record: Repository, folder: Path) -> Iterator[str]:
    if record.samkit != __version__:
        yield (
            f"{folder} was written by samkit {record.samkit}, and here is {__version__}, whose models may "
            "understand each other in other ways; write the repository again"
        )
    if foreign := sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in record.models):
        yield (
            f"{folder} also holds {', '.join(foreign)}, which samkit did not write and the server would run; move it "
            "elsewhere"
        )


def _in_files(export: ServedExport, folder: Path) -> Iterator[str]:
    for file, sha256 in export.files.items():
        try:
            if not (folder / file).is_file():
                yield f"{folder / file} is missing though the record lists it; write the repository again"
            elif file_sha256(folder / file) != sha256:
                yield f"{folder / file} changed since it was written; restore it, or write the repository again"
        except OSError as error:
            yield _unreadable(folder / file, error)


def _in_models(name: str, export: ServedExport, folder: Path) -> Iterator[str]:
    graphs = _graphs(name, export, folder)
    for model, kind in export.models.items():
        path = folder / model / "config.pbtxt"
        if not (folder / model).is_dir():
            yield f"{folder} lacks the model {model} that its record lists; write the repository again"
            continue
        if kind == ENSEMBLE and not (folder / model / "1").is_dir():
            yield f"{folder / model} lacks the folder of its version, 1, which may be empty; make it"
        try:
            text = path.read_text()
            config = parse_config(text, model)
            if model in graphs:
                check_config(text, graphs[model])
            elif kind == PYTHON:
                slices = isinstance(get_method(export.method), SliceMethod)
                check_python_config(text, model, model.removeprefix(f"{name}_"), slices=slices)
        except (OSError, UnicodeDecodeError):
            yield f"{path} is missing or can't be read; restore it, or write the repository again"
        except SamkitError as error:
            yield str(error)
        else:
            if config.name != model:
                yield f"{path} is of a model '{config.name}', and the folder's is {model}; restore it"


def _in_graph_files(export: ServedExport, folder: Path) -> Iterator[str]:
    """Say where a config is not that of the ONNX file beside it, which the container's backend would not load then."""
    if find_spec("onnxruntime") is None:
        return  # a machine that only writes or checks
    from samkit.runtime.backends.onnxruntime_runner import read_file_tensors  # loads ONNX Runtime; --help does without

    for model in (model for model, kind in export.models.items() if kind == ONNXRUNTIME):
        text, file = folder / model / "config.pbtxt", folder / model / "1" / ONNX_FILE
        if not (text.is_file() and file.is_file()):
            continue  # said already
        try:
            config = parse_config(text.read_text(), model)
        except (SamkitError, UnicodeDecodeError):
            continue  # said already
        try:
            tensors = read_file_tensors(file)
        except SamkitError as error:
            yield f"{file} can't be run: {error}"
            continue
        batch = [-1] if config.max_batch_size else []
        yield from _differences(file, "inputs", config.input, tensors.inputs, batch)
        yield from _differences(file, "outputs", config.output, tensors.outputs, batch)


def _differences(
    file: Path, kind: str, configured: Sequence[Any], there: Mapping[str, tuple[str, list[int]]], batch: list[int]
) -> Iterator[str]:
    """Say where configured tensors are none of the file's: a size that the file fixes must be in the config."""
    dtype_name = tritonclient_library.model_config().DataType.Name
    wanted = {tensor.name: (dtype_name(tensor.data_type), batch + list(tensor.dims)) for tensor in configured}
    if set(wanted) != set(there):
        yield (
            f"{file} has the {kind} {', '.join(sorted(there))}, and its config {', '.join(sorted(wanted))}; write the "
            "repository again"
        )
        return
    for name, (dtype, dims) in wanted.items():
        found, sizes = there[name]
        alike = len(sizes) == len(dims) and all(size in (-1, dim) for size, dim in zip(sizes, dims, strict=True))
        if DTYPES.get(found) != dtype or not alike:
            yield (
                f"{file} has '{name}' as {found} {sizes}, and its config says {dtype} {dims}; write the repository "
                "again"
            )


def _graphs(name: str, export: ServedExport, folder: Path) -> dict[str, GraphSpec]:
    """Return the graph of each model that runs one; none where the manifest is gone, which the files tell."""
    for file in export.files:
        if file.endswith("/manifest.json"):
            try:
                specs = Manifest.load((folder / file).parent).plan.specs
            except SamkitError:
                continue
            return {f"{name}_{spec.name}": spec for spec in specs}
    return {}


# --- This machine ---


def _in_engines(record: Repository) -> Iterator[str]:
    """Say which engines can't run here: they run on the release, and the GPU or the target, they were built with."""
    for library in engine_libraries.LIBRARIES:
        engines = {
            model: facts
            for export in record.exports.values()
            for model, facts in export.engines.items()
            if facts.get("library", engine_libraries.TENSORRT.name) == library.name
        }
        if not engines:
            continue
        try:
            here = describe_here(library)
        except SamkitError as error:
            yield f"{', '.join(engines)} run as engines of {library.title}, which can't be used here: {error}"
            continue
        for model, facts in engines.items():
            if (misfit := library.misfit(facts, here)) is not None:
                yield (
                    f"the engine of {model} {misfit}; build it here with sam-export --build-engines, and write the "
                    "repository again"
                )


def _in_environment(record: Repository) -> Iterator[str]:
    """Say what the embedded server lacks here."""
    needs: tuple[Callable[[], object], ...] = (find_server, check_numpy, tritonclient_library.grpc)
    for need in needs:
        try:
            need()
        except SamkitError as error:
            yield str(error)
    models = record.models
    if ONNXRUNTIME in models.values() and find_spec("onnxruntime") is None:
        yield f"ONNX Runtime, which runs the graphs, is not installed; {how_to_install('cpu')}"
    if engines := [model for model, kind in models.items() if kind == TENSORRT]:
        yield (
            f"{', '.join(engines)} run as TensorRT engines, for which the embedded server has no backend; write the "
            "repository with --no-engines, or serve it with NVIDIA's container"
        )
    needed = SHARED_BYTES * sum(kind != ENSEMBLE for kind in models.values())
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        yield (
            f"{SHARED_MEMORY} has {free >> 20} MiB left and {len(models)} models take {needed >> 20} MiB at once; make "
            "it larger (--shm-size of a container), or serve fewer exports"
        )
