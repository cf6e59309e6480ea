"""TensorRT, as far as samkit uses it: an engine built from an ONNX file, and an engine run. The only file that
imports tensorrt.

One code path serves 10.16 and 11.4. TensorRT 11 has no precision flags and no EXPLICIT_BATCH any more, and neither is
needed: the network is strongly typed, so the graph alone says what runs in which precision, and TF32 is switched off,
so that float32 is float32.

None of this was ever run: TensorRT's libraries can't be had where samkit is made. A test (tests/unit/tensorrt) walks
every use in this file against lists of both APIs: it follows the annotations `tensorrt.X`, which is why they are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from samkit.errors import ExportError, ManifestError, MissingDependencyError, SamkitError
from samkit.runtime.runner import Closing

if TYPE_CHECKING:
    import tensorrt

KNOWN_VERSIONS = ("10.16", "11.4")
"""Those whose APIs every call was checked against."""

Shape: TypeAlias = tuple[int, ...]
Profile: TypeAlias = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input name to its smallest, usual and largest shape."""


def import_tensorrt() -> Any:
    """Return the module `tensorrt`; raises MissingDependencyError where it is missing or does not load."""
    if find_spec("tensorrt") is None:
        raise MissingDependencyError(
            "TensorRT is not installed, and engines need it; pip install 'samkit[tensorrt]' on a machine with an "
            "NVIDIA GPU, or work in one of NVIDIA's TensorRT containers"
        )
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"TensorRT is installed and does not load ({error}); install the libraries of the same version, which "
            "come from NVIDIA's own package index, and check the driver"
        ) from error
    return tensorrt


def tensorrt_version() -> str:
    """Return the full version, such as "11.4.0.106": an engine runs on exactly the one that built it."""
    return str(import_tensorrt().__version__)


def is_known(version: str) -> bool:
    """Return whether calls were checked against this version's API.

    >>> is_known("11.4.0.106"), is_known("10.1.0")
    (True, False)
    """
    return ".".join(version.split(".")[:2]) in KNOWN_VERSIONS


class Log:
    """What TensorRT says while it works: each line goes to `write`, and errors are kept for our own sentences."""

    def __init__(self, write: Callable[[str], None] = lambda line: None) -> None:
        self.write = write
        self.errors: list[str] = []

    def last_error(self) -> str:
        """Return TensorRT's last error in brackets with a space before it, or nothing."""
        return f" ({self.errors[-1]})" if self.errors else ""


def _make_logger(log: Log) -> tensorrt.ILogger:
    """Return the object that TensorRT calls with every message."""
    trt = import_tensorrt()

    class Logger(trt.ILogger):  # type: ignore[name-defined]  # known at run time alone
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                log.errors.append(" ".join(msg.split()))
            if severity != trt.ILogger.VERBOSE:
                log.write(f"{getattr(severity, 'name', severity)}: {msg}")

    return Logger()


# --- Building ---


@dataclass(frozen=True)
class Built:
    """What a build leaves."""

    engine: bytes
    timing_cache: bytes
    """What was timed, for the next build of the same graph on the same GPU."""
    layers: str
    """The engine inspector's JSON: what TensorRT made of the graph."""


def build_engine(
    onnx: Path,
    profile: Profile,
    *,
    workspace_bytes: int,
    optimization_level: int,
    timing_cache: bytes,
    log: Log,
) -> Built:
    """Return the engine of an ONNX file, for all shapes of `profile`.

    `optimization_level` is 0 (fast to build) to 5; `timing_cache` is an earlier build's, or empty. Raises ExportError
    with TensorRT's own errors.
    """
    trt = import_tensorrt()
    logger = _make_logger(log)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):  # from a file, because weights may lie in another one beside it
        raise ExportError(f"TensorRT can't parse {onnx.name}: {_parser_errors(parser)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.builder_optimization_level = optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    cache = config.create_timing_cache(timing_cache)
    if not config.set_timing_cache(cache, False):
        raise ExportError(
            f"TensorRT refuses the timing cache of {onnx.name}{log.last_error()}, which another GPU or version wrote; "
            "delete the .timing-cache files of this export and build again"
        )
    shapes = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in profile.items():
        shapes.set_shape(name, smallest, usual, largest)
    if config.add_optimization_profile(shapes) < 0:
        raise ExportError(f"TensorRT takes no profile {dict(profile)} for {onnx.name}{log.last_error()}; report this")
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ExportError(f"TensorRT built no engine of {onnx.name}{log.last_error()}")
    plan = bytes(serialized)
    kept = config.get_timing_cache()
    return Built(plan, bytes(kept.serialize()), _inspect(plan, log))


def _parser_errors(parser: tensorrt.OnnxParser) -> str:
    """Return the parser's errors, each with its node."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        found.append(f"node {error.node()} '{error.node_name()}' ({error.node_operator()}): {error.desc()}")
    return " | ".join(found) or "no reason was given"


def _inspect(plan: bytes, log: Log) -> str:
    """Return the engine inspector's JSON."""
    trt = import_tensorrt()
    runtime = trt.Runtime(_make_logger(log))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ExportError(f"TensorRT can't load the engine it has just built{log.last_error()}")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


# --- Running ---


class Engine(Closing):
    """One engine with one execution context. The CUDA context must be current in every call."""

    def __init__(self, plan: bytes, name: str) -> None:
        """Load a serialised engine, which the caller trusts; raises ManifestError where TensorRT does not take it."""
        trt = import_tensorrt()
        self._name = name
        self._log = Log()
        # Each is needed for as long as the one after it lives.
        self._logger: tensorrt.ILogger | None = _make_logger(self._log)
        self._runtime: tensorrt.Runtime | None = trt.Runtime(self._logger)
        self._engine: tensorrt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ManifestError(
                f"TensorRT can't load {name}{self._log.last_error()}; build it again here: sam-export --build-engines"
            )
        self._context: tensorrt.IExecutionContext | None = self._engine.create_execution_context()
        if self._context is None:
            raise SamkitError(
                f"TensorRT has no room to run {name}{self._log.last_error()}; free memory of the GPU and try again"
            )

    def tensors(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return inputs and outputs: names to dtypes, as numpy calls them where it can."""
        trt = import_tensorrt()
        engine: tensorrt.ICudaEngine = self._engine
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
        context: tensorrt.IExecutionContext = self._context
        if not (context.set_input_shape(name, shape) and context.set_tensor_address(name, address)):
            raise SamkitError(
                f"{self._name} does not take '{name}' of shape {shape}{self._log.last_error()}; it was built for other "
                "sizes, build it again: sam-export --build-engines"
            )

    def output_shape(self, name: str) -> Shape:
        """Return the shape that an output will have, now that all inputs are fed."""
        context: tensorrt.IExecutionContext = self._context
        missing = context.infer_shapes()
        shape = tuple(int(size) for size in context.get_tensor_shape(name))
        if missing or min(shape, default=0) < 0:
            raise SamkitError(
                f"{self._name} can't tell the shape of '{name}' (it is {shape}, not given: {list(missing)}); the graph "
                "has data-dependent shapes, which samkit's graphs never have; export again"
            )
        return shape

    def place_output(self, name: str, address: int) -> None:
        """Say where an output goes."""
        context: tensorrt.IExecutionContext = self._context
        if not context.set_tensor_address(name, address):
            raise SamkitError(f"{self._name} can't write '{name}'{self._log.last_error()}; this is a bug, report it")

    def queue(self, stream: int) -> None:
        """Run on a CUDA stream, without waiting; raises SamkitError with TensorRT's reason where it does not start."""
        context: tensorrt.IExecutionContext = self._context
        if not context.execute_async_v3(stream):
            raise SamkitError(f"TensorRT could not run {self._name}{self._log.last_error()}; see the driver's log")

    def close(self) -> None:
        """Let go of execution context, engine and runtime, in this order."""
        self._context = None
        self._engine = None
        self._runtime = None
        self._logger = None
