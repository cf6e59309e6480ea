"""TensorRT and TensorRT for RTX, as far as samkit uses them: an engine built from an ONNX file, and an engine run. The
only file that imports either.

One code path serves TensorRT 10.16 and 11.4 and TensorRT for RTX 1.7. TensorRT 11 has no precision flags and no
EXPLICIT_BATCH any more, and neither is needed: the network is strongly typed, so the graph alone says what runs in
which precision, and TF32 is switched off, so that float32 is float32.

TensorRT for RTX builds in every run of the tests, on any machine. No engine of either was ever run: no GPU was at
hand, and TensorRT's own libraries can't be had where samkit is made. mypy checks every use of theirs in this file
against stubs made of the lists of their APIs (tests/unit/tensorrt/test_api.py).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from samkit.engine_libraries import RTX, TENSORRT, EngineLibrary
from samkit.errors import ExportError, ManifestError, MissingDependencyError, SamkitError
from samkit.extras import how_to_install
from samkit.runtime.backends.runner import Closing

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

_log = logging.getLogger(__name__)

T = TypeVar("T")
Shape: TypeAlias = tuple[int, ...]
Profile: TypeAlias = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input name to its smallest, usual and largest shape."""


def import_tensorrt(library: EngineLibrary = TENSORRT) -> ModuleType:
    """Return a library's module; raises MissingDependencyError where it is missing or does not load."""
    name = next((name for name in library.modules if find_spec(name) is not None), None)
    if name is None:
        where = ", on a machine with an NVIDIA GPU, or work in one of NVIDIA's TensorRT containers" * library.needs_gpu
        raise MissingDependencyError(
            f"{library.title} is not installed, and its engines need it; {how_to_install(library.extra)}{where}"
        )
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        origin = "come from NVIDIA's own package index" if library.needs_gpu else "are wheels of the same package index"
        raise MissingDependencyError(
            f"{library.title} is installed and does not load ({error}); install the libraries of the same version, "
            f"which {origin}{', and check the driver' * library.needs_gpu}"
        ) from error


def tensorrt_version(library: EngineLibrary = TENSORRT) -> str:
    """Return the full version, such as "11.4.0.106": an engine of TensorRT runs on exactly the one that built it."""
    return str(import_tensorrt(library).__version__)


def is_known(version: str, library: EngineLibrary = TENSORRT) -> bool:
    """Return whether calls were checked against this version's API.

    >>> is_known("11.4.0.106"), is_known("10.1.0"), is_known("1.7.1.116", RTX)
    (True, False, True)
    """
    return ".".join(version.split(".")[:2]) in library.known_versions


def untested_warning(version: str, library: EngineLibrary = TENSORRT) -> str | None:
    """Return what a user must be told about this version; None where its calls were checked."""
    if is_known(version, library):
        return None
    known = " and ".join(library.known_versions)
    plural = "APIs" if len(library.known_versions) > 1 else "API"
    return f"{library.title} {version} is untested: calls were checked against the {plural} of {known} alone"


class Log:
    """What TensorRT says: each line goes to `write`, and errors are kept for our own sentences."""

    def __init__(self) -> None:
        self.write: Callable[[str], None] = lambda line: None
        self._errors: deque[str] = deque(maxlen=20)

    def take(self, severity: str, message: str, is_error: bool) -> None:
        """Take one message."""
        if is_error:
            self._errors.append(" ".join(message.split()))
        self.write(f"{severity}: {message}")

    def last_error(self) -> str:
        """Return TensorRT's last error in brackets with a space before it, or nothing; then forget all errors."""
        last = f" ({self._errors[-1]})" if self._errors else ""
        self._errors.clear()
        return last


NO_DRIVER = "cudaError 35:"
"""What CUDA says where there is no driver, and where it is too old."""

LOG = Log()
"""The only one: TensorRT keeps the first logger of a process for good, whatever later objects are given."""


@cache
def _logger(library: EngineLibrary) -> tensorrt.ILogger:
    """Return the object that a library calls with every message; it lives as long as the process."""
    trt = import_tensorrt(library)

    class Logger(trt.ILogger):  # type: ignore[name-defined]  # known at run time alone
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity != trt.ILogger.VERBOSE:
                is_error = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
                if not library.needs_gpu and NO_DRIVER in msg:
                    is_error = False  # where there is no driver, each error is followed by one that says so
                LOG.take(getattr(severity, "name", str(severity)), msg, is_error)

    return Logger()


# --- Building ---


@dataclass(frozen=True)
class Built:
    """What a build leaves."""

    engine: bytes
    timing_cache: bytes | None
    """What was timed, for the next build of the same graph on the same GPU; None where nothing is timed."""
    layers: str | None
    """The engine inspector's JSON: what the library made of the graph; None where only a GPU could tell."""


def new_parser(library: EngineLibrary) -> tuple[tensorrt.Builder, tensorrt.INetworkDefinition, tensorrt.OnnxParser]:
    """Return a builder, an empty network, strongly typed, and the one parser that fills it; all three live together."""
    trt = import_tensorrt(library)
    logger = _logger(library)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return builder, network, trt.OnnxParser(network, logger)


def build_engine(
    onnx: Path,
    profile: Profile,
    *,
    library: EngineLibrary = TENSORRT,
    workspace_bytes: int,
    optimization_level: int,
    timing_cache: bytes = b"",
    target: str = "",
    platform: str = "",
) -> Built:
    """Return the engine of an ONNX file, for all shapes of `profile`.

    `optimization_level` is 0 (fast to build) to 5; `timing_cache` is an earlier build's, or empty. `target` and
    `platform` are of those that the library knows, where it builds for other machines than this one. Raises ExportError
    with the library's own errors.
    """
    trt = import_tensorrt(library)
    builder, network, parser = new_parser(library)
    if not parser.parse_from_file(str(onnx)):  # from a file, because weights may lie in another one beside it
        raise ExportError(f"{library.title} can't parse {onnx.name}: {_parser_errors(parser)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.builder_optimization_level = optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    if library.needs_gpu:
        cache = config.create_timing_cache(timing_cache)
        if not config.set_timing_cache(cache, False):
            raise ExportError(
                f"TensorRT refuses the timing cache of {onnx.name}{LOG.last_error()}, which another GPU or version "
                "wrote; delete the .timing-cache files of this export and build again"
            )
    else:
        _aim(config, target, platform)
    shapes = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in profile.items():
        try:
            shapes.set_shape(name, smallest, usual, largest)
        except ValueError as error:
            raise ExportError(
                f"{library.title} takes no shapes from {smallest} over {usual} to {largest} for '{name}' of "
                f"{onnx.name} ({error}); report this"
            ) from error
    if config.add_optimization_profile(shapes) < 0:
        raise ExportError(
            f"{library.title} takes no profile {dict(profile)} for {onnx.name}{LOG.last_error()}; report this"
        )
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ExportError(f"{library.title} built no engine of {onnx.name}{LOG.last_error()}")
    plan = bytes(serialized)
    if not library.needs_gpu:
        return Built(plan, None, None)
    kept = config.get_timing_cache()
    return Built(plan, bytes(kept.serialize()), _inspect(plan))


def _aim(config: Any, target: str, platform: str) -> None:
    """Say for which GPUs and system an engine is built; the first target is the library's own."""
    rtx: Any = import_tensorrt(RTX)
    if target != RTX.targets[0]:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(rtx.ComputeCapability, target.upper()), 0)
    if platform == "windows":
        config.runtime_platform = rtx.RuntimePlatform.WINDOWS_AMD64


def _parser_errors(parser: tensorrt.OnnxParser) -> str:
    """Return the parser's errors, each with its node, and what the log adds to them."""
    found, reasons = [], []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        reasons.append(" ".join(error.desc().split()))
        # "false" is all that it says of an operator that it does not know
        reason = "it does not take this operator" if reasons[-1] == "false" else reasons[-1]
        found.append(f"node {error.node()} '{error.node_name()}' ({error.node_operator()}): {reason}")
    logged = LOG.last_error()
    return (" | ".join(found) or "no reason was given") + (
        "" if any(reason in logged for reason in reasons) else logged
    )


def _inspect(plan: bytes) -> str:
    """Return the engine inspector's JSON."""
    trt = import_tensorrt()
    runtime = trt.Runtime(_logger(TENSORRT))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ExportError(f"TensorRT can't load the engine it has just built{LOG.last_error()}")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


# --- Running ---

LAZY, EAGER = "lazy", "eager"
"""When TensorRT for RTX compiles kernels for a new shape: while general ones do the work, or before the first run."""


@dataclass(frozen=True)
class Compilation:
    """How TensorRT for RTX makes an engine's kernels; of TensorRT's, the engine has all."""

    kernels: str = LAZY
    captures: bool = False
    """Whether the library captures CUDA graphs, and replays them where shapes stay."""
    known: bytes = b""
    """Kernels of earlier runs here, as `Engine.kernels` gave them; or none."""


class Engine(Closing):
    """One engine with one execution context. The CUDA context must be current in every call."""

    def __init__(
        self, plan: bytes, name: str, library: EngineLibrary = TENSORRT, compilation: Compilation | None = None
    ) -> None:
        """Load a serialised engine, which the caller trusts; raises ManifestError where its library does not take it.

        `compilation` is for libraries that have a runtime cache.
        """
        trt = import_tensorrt(library)
        self._name = name
        self._library = library
        self._cache: Any = None
        self._config: Any = None
        # The runtime is needed for as long as the engine lives, and the engine for as long as its context.
        runtime = trt.Runtime(_logger(library))
        if library.has_runtime_cache and (reason := invalidity(runtime, plan, name)) is not None:
            raise ManifestError(
                f"{library.title} does not run {name} here ({reason}); update the driver, or build it again with the "
                "release that is here: sam-export --build-engines"
            )
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise ManifestError(
                f"{library.title} can't load {name}{LOG.last_error()}; build it again here: sam-export --build-engines"
            )
        self._runtime: tensorrt.Runtime | None = runtime
        self._engine: tensorrt.ICudaEngine | None = engine
        self._context: tensorrt.IExecutionContext | None
        if library.has_runtime_cache:
            self._context = self._compiling(engine, compilation or Compilation())
        else:
            self._context = engine.create_execution_context()
        if self._context is None:
            raise SamkitError(
                f"{library.title} has no room to run {name}{LOG.last_error()}; free memory of the GPU and try again"
            )

    def _compiling(self, engine: Any, compilation: Compilation) -> Any:
        """Return the execution context of an engine of TensorRT for RTX."""
        rtx = import_tensorrt(RTX)
        compiled: tensorrt_rtx.ICudaEngine = engine
        config = compiled.create_runtime_config()
        strategies = rtx.DynamicShapesKernelSpecializationStrategy
        is_eager = compilation.kernels == EAGER
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER if is_eager else strategies.LAZY
        graphs = rtx.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if compilation.captures else graphs.DISABLED
        cache = config.create_runtime_cache()
        if compilation.known and not cache.deserialize(compilation.known):
            _log.info("%s: %s does not take the kernels of earlier runs; they are compiled anew", self._name, RTX.title)
        if not config.set_runtime_cache(cache):
            _log.warning("%s: %s takes no cache, so kernels are compiled in each session", self._name, RTX.title)
        self._cache, self._config = cache, config
        return compiled.create_execution_context(config)

    def kernels(self) -> bytes:
        """Return what was compiled so far and before; nothing of a library without a runtime cache."""
        if self._cache is None:
            return b""
        cache: tensorrt_rtx.IRuntimeCache = self._cache
        made = cache.serialize()
        return b"" if made is None else bytes(made)

    def tensors(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return inputs and outputs: names to dtypes, as numpy calls them where it can."""
        trt = import_tensorrt(self._library)
        engine = self._held(self._engine)
        known = {
            trt.DataType.FLOAT: "float32",
            trt.DataType.HALF: "float16",
            trt.DataType.INT32: "int32",
            trt.DataType.INT64: "int64",
            trt.DataType.BOOL: "bool",
        }
        inputs: dict[str, str] = {}
        outputs: dict[str, str] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else outputs)[name] = known.get(kind, str(kind))
        return inputs, outputs

    def feed(self, name: str, shape: Shape, address: int) -> None:
        """Say where an input lies and which shape it has; raises SamkitError where the engine was not built for it."""
        context = self._held(self._context)
        if not (context.set_input_shape(name, shape) and context.set_tensor_address(name, address)):
            raise SamkitError(
                f"{self._name} does not take '{name}' of shape {shape}{LOG.last_error()}; it was built for other "
                "sizes, build it again: sam-export --build-engines"
            )

    def output_shapes(self, names: Sequence[str]) -> dict[str, Shape]:
        """Return the shapes that outputs will have, now that all inputs are fed."""
        context = self._held(self._context)
        missing = context.infer_shapes()
        shapes = {name: tuple(int(size) for size in context.get_tensor_shape(name)) for name in names}
        for name, shape in shapes.items():
            if missing or min(shape, default=0) < 0:
                raise SamkitError(
                    f"{self._name} can't tell the shape of '{name}' (it is {shape}, not given: {list(missing)}); the "
                    "graph has data-dependent shapes, which samkit's graphs never have; export again"
                )
        return shapes

    def place_output(self, name: str, address: int) -> None:
        """Say where an output goes."""
        context = self._held(self._context)
        if not context.set_tensor_address(name, address):
            raise SamkitError(f"{self._name} can't write '{name}'{LOG.last_error()}; this is a bug, report it")

    def queue(self, stream: int) -> None:
        """Run on a CUDA stream, without waiting; raises SamkitError with TensorRT's reason where it does not start."""
        context = self._held(self._context)
        if not context.execute_async_v3(stream):
            raise SamkitError(
                f"{self._library.title} could not run {self._name}{LOG.last_error()}; see the driver's log"
            )

    def _held(self, part: T | None) -> T:
        if part is None:
            raise SamkitError(f"{self._name} is closed; open the session again")
        return part

    def close(self) -> None:
        """Let go of execution context, what it was made with, engine and runtime, in this order."""
        self._context = None
        self._cache = self._config = None
        self._engine = None
        self._runtime = None


def invalidity(runtime: Any, plan: bytes, name: str) -> str | None:
    """Return why an engine of TensorRT for RTX is not valid here, as its header tells the library; None where it is."""
    rtx = import_tensorrt(RTX)
    asked: tensorrt_rtx.Runtime = runtime
    validity, diagnostics = asked.get_engine_validity(plan[: asked.engine_header_size])
    if validity == rtx.EngineValidity.SUBOPTIMAL:
        _log.warning("%s may run slower here than it could, says %s; build it again here", name, RTX.title)
    if validity != rtx.EngineValidity.INVALID:
        return None
    kinds = rtx.EngineInvalidityDiagnostics
    meanings = (
        (kinds.VERSION_MISMATCH, "another release built it"),
        (kinds.UNSUPPORTED_CC, "it was not built for this GPU's compute capability"),
        (kinds.OLD_CUDA_DRIVER, "the CUDA driver is too old"),
        (kinds.OLD_CUDA_RUNTIME, "the CUDA runtime is too old"),
        (kinds.INSUFFICIENT_GPU_MEMORY, "the GPU has too little memory"),
        (kinds.MALFORMED_ENGINE, "it is no engine of this library"),
        (kinds.CUDA_ERROR, "CUDA is not installed as it should be"),
    )
    told = [f"{kind.name}: {meaning}" for kind, meaning in meanings if int(diagnostics) & int(kind)]
    return ", ".join(told) or "it gives no reason"
