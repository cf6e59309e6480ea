"""The child process that builds one engine: `python -m samkit.export.build_engine plan.json`.

It gets plan.json and nothing else, so that a build that runs out of memory or crashes takes nothing with it. What it
has to say stands in the files that the plan names; an error is one sentence in `result`, and this process ends with 1.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from samkit.engine_libraries import get_library
from samkit.errors import ExportError, SamkitError
from samkit.files import reason_of
from samkit.manifest import file_sha256
from samkit.runtime.backends.tensorrt_library import LOG, Shape, build_engine
from samkit.runtime.backends.tensorrt_runner import describe_machine


@dataclass(frozen=True)
class EnginePlan:
    """Everything the build of one engine needs; paths are absolute."""

    onnx: str
    onnx_sha256: str
    """Of the graph and, where its weights lie beside it, of both: `graph_sha256`."""
    engine: str
    """The file to write; the inspector's JSON and the timing cache get the same name with other endings."""
    library: str
    target: str
    platform: str
    profile: dict[str, list[list[int]]]
    """Per input its smallest, usual and largest shape."""
    workspace_bytes: int
    optimization_level: int
    timing_caches: list[str]
    """Caches of earlier builds, of which the one with this build's name is used."""
    log: str
    result: str

    @classmethod
    def load(cls, path: Path) -> EnginePlan:
        """Return the plan in a file; raises ExportError when it is none."""
        try:
            data = json.loads(path.read_text())
            return cls(**{field.name: data[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExportError(
                f"{path} is no plan of an engine ({error!r}); sam-export --build-engines makes them"
            ) from (error)

    def save(self, path: Path) -> None:
        """Write the plan."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def graph_sha256(onnx: Path) -> str:
    """Return the SHA-256 of an ONNX file, joined by that of the weights beside it where there are any."""
    data = onnx.with_name(f"{onnx.name}.data")
    own = file_sha256(onnx)
    return f"{own}+{file_sha256(data)}" if data.is_file() else own


def layers_file(engine: Path) -> Path:
    """Return where the inspector's JSON of an engine lies.

    >>> str(layers_file(Path("mask_decoder.fp16.plan")))
    'mask_decoder.fp16.layers.json'
    """
    return engine.with_suffix(".layers.json")


# --- Timing caches: one line of JSON that says what they are bound to, then TensorRT's bytes ---


def timing_cache_file(engine: Path, binding: dict[str, str]) -> Path:
    """Return where the timing cache of a build lies, whose name says what it is bound to."""
    key = hashlib.sha256(json.dumps(binding, sort_keys=True).encode()).hexdigest()
    return engine.with_suffix(f".{key[:12]}.timing-cache")


def write_timing_cache(path: Path, binding: dict[str, str], cache: bytes) -> None:
    """Write a timing cache with what it is bound to."""
    path.write_bytes(json.dumps(binding, sort_keys=True).encode() + b"\n" + cache)


def read_timing_cache(path: Path, binding: dict[str, str]) -> bytes:
    """Return TensorRT's part of a timing cache; raises ExportError where it is bound to anything but `binding`."""
    header, _, cache = path.read_bytes().partition(b"\n")
    try:
        found = json.loads(header)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ExportError(f"{path.name} is no timing cache of samkit's; delete it and build again")
    for fact in binding:
        if found.get(fact) != binding[fact]:
            raise ExportError(
                f"{path.name} was timed for {fact} {found.get(fact)}, and this build has {binding[fact]}; delete it "
                "and build again"
            )
    return cache


# --- The build ---


def build(plan: EnginePlan) -> dict[str, Any]:
    """Build the engine of `plan` and return what the manifest keeps of it; raises ExportError in one sentence."""
    onnx, engine = Path(plan.onnx), Path(plan.engine)
    if graph_sha256(onnx) != plan.onnx_sha256:
        raise ExportError(f"{onnx.name} changed since the build was planned; run sam-export --verify on its folder")
    library = get_library(plan.library)
    machine = describe_machine(library)
    binding = {"onnx_sha256": plan.onnx_sha256, **machine}
    cache_path = timing_cache_file(engine, binding)
    known = [Path(path) for path in plan.timing_caches if Path(path).name == cache_path.name]
    cache = read_timing_cache(known[0], binding) if known else b""
    started = time.perf_counter()
    with Path(plan.log).open("a") as log:
        LOG.write = lambda line: _write_line(log, line)
        try:
            built = build_engine(
                onnx,
                {name: _shapes(shapes) for name, shapes in plan.profile.items()},
                library=library,
                workspace_bytes=plan.workspace_bytes,
                optimization_level=plan.optimization_level,
                timing_cache=cache,
                target=plan.target,
                platform=plan.platform,
            )
        finally:
            LOG.write = lambda line: None
    seconds = time.perf_counter() - started
    files = [engine.name]
    try:
        engine.write_bytes(built.engine)
        if built.layers is not None:
            layers_file(engine).write_text(built.layers)
            files.append(layers_file(engine).name)
        if built.timing_cache is not None:
            write_timing_cache(cache_path, binding, built.timing_cache)
            files.append(cache_path.name)
    except OSError as error:
        raise ExportError(f"{engine.name} can't be written ({reason_of(error)}); make room for it") from error
    return {
        "library": library.name,
        **machine,
        **(
            {"platform": library.platforms[0]}
            if library.needs_gpu
            else {"target": plan.target, "platform": plan.platform}
        ),
        "onnx": onnx.name,
        "onnx_sha256": plan.onnx_sha256,
        "sha256": hashlib.sha256(built.engine).hexdigest(),
        "bytes": len(built.engine),
        "profile": plan.profile,
        "workspace_bytes": plan.workspace_bytes,
        "optimization_level": plan.optimization_level,
        "build_seconds": round(seconds, 2),
        **({"timing_cache_used": bool(known)} if library.needs_gpu else {}),
        "files": files,
    }


def _shapes(shapes: list[list[int]]) -> tuple[Shape, Shape, Shape]:
    smallest, usual, largest = (tuple(shape) for shape in shapes)
    return smallest, usual, largest


def _write_line(log: TextIO, line: str) -> None:
    """Write a line at once: the process may not live to close the file."""
    log.write(line + "\n")
    log.flush()


def main(arguments: list[str]) -> int:
    """Build what the one argument, a plan, says; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m samkit.export.build_engine plan.json", file=sys.stderr)  # noqa: T201  # no command of ours
        return 2
    try:
        plan = EnginePlan.load(Path(arguments[0]))
    except SamkitError as error:
        print(error, file=sys.stderr)  # noqa: T201  # there is no file to write to yet
        return 2
    try:
        result = build(plan)
    except SamkitError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    Path(plan.result).write_text(json.dumps(result, indent=1) + "\n")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
