"""ONNX graphs on ONNX Runtime, on the CPU or a CUDA device. The only file that imports onnxruntime.

On a CUDA device inputs and outputs are bound (IO binding): what is kept stays there as an OrtValue, and only what is
asked for on the host is copied. The same code runs on the CPU with `binds=True`, which is how it is tested there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from samkit.errors import ManifestError, MissingDependencyError, SamkitError
from samkit.extras import how_to_install
from samkit.files import reason_of
from samkit.manifest import Export
from samkit.methods.method import GraphSpec
from samkit.runtime.backends.backend import Backend, open_each
from samkit.runtime.backends.runner import Closing, Runner, check_inputs, kept_names, still_open
from samkit.tensors import Tensor, TensorSpec, on_host

_DTYPES = {
    f"tensor({name})": dtype
    for name, dtype in {
        **{name: name for name in ("float16", "int64", "int32", "int16", "uint8", "bool")},
        "float": "float32",
        "double": "float64",
    }.items()
}
"""ONNX Runtime's name of a type to numpy's."""
_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class OrtTensor:
    """An output that stayed where ONNX Runtime computed it; a `DeviceTensor`."""

    def __init__(self, value: Any, spec: TensorSpec, place: str) -> None:
        """Hold `value`, an OrtValue that nobody else writes to."""
        self.shape: tuple[int, ...] = tuple(value.shape())
        self.dtype = np.dtype(spec.dtype)
        self.nbytes: int = value.tensor_size_in_bytes()
        self.place = place
        self._name = spec.name
        self._value: Any = value

    @property
    def is_open(self) -> bool:
        """Return whether the runner that made it is still open."""
        return self._value is not None

    @property
    def value(self) -> Any:
        """Return the OrtValue; raises SamkitError once the runner that made it is closed."""
        if self._value is None:
            raise SamkitError(f"'{self._name}' was kept by a runner that is closed; open the session again")
        return self._value

    def numpy(self) -> np.ndarray:
        """Return a copy on the host; raises SamkitError once the runner that made it is closed."""
        return np.array(self.value.numpy())  # on the CPU, ONNX Runtime's own is a view

    def free(self) -> None:
        """Let go of the memory."""
        self._value = None


class OnnxRuntimeRunner(Closing):
    """One ONNX file in one inference session."""

    def __init__(
        self,
        path: Path,
        graph: GraphSpec,
        *,
        device: str = "cpu",
        threads: int | None = None,
        tensorrt: bool = False,
        optimise: bool = True,
        binds: bool | None = None,
    ) -> None:
        """Load `path`.

        `device` is `cpu` or `cuda`. `threads` is for one operator on the CPU, all cores by default. `tensorrt` runs
        the graph by ONNX Runtime's own TensorRT provider on the CUDA device. `optimise` lets ONNX Runtime rewrite the
        graph; without it every node of the file is computed as it stands there. `binds` keeps tensors on the device
        when asked to; by default on CUDA, where it saves copies.

        Raises MissingDependencyError where ONNX Runtime, or the part of it that is needed, is not usable, and
        ManifestError where the file is not `graph`.
        """
        self.graph = graph
        self._device = device
        self._binds = device == "cuda" if binds is None else binds
        self._place = f"ONNX Runtime on {device}:0"
        self._kept: WeakSet[OrtTensor] = WeakSet()
        self._session: Any = open_inference_session(
            path,
            device=device,
            threads=threads,
            optimise=optimise,
            tensorrt_options=_tensorrt_options(graph) if tensorrt else None,
        )
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self._check_names(path)

    def _check_names(self, path: Path) -> None:
        for kind, found, specs in (
            ("inputs", self._session.get_inputs(), self.graph.inputs),
            ("outputs", self._session.get_outputs(), self.graph.outputs),
        ):
            names, wanted = [node.name for node in found], [spec.name for spec in specs]
            if sorted(names) != sorted(wanted):
                raise ManifestError(
                    f"{path.name} has the {kind} {names}, the method's {self.graph.name} has {wanted}; export again "
                    "with this samkit"
                )

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name, on the host.

        Raises TensorMismatchError for inputs that don't fit or lie elsewhere, SamkitError once closed.
        """
        return {name: on_host(tensor) for name, tensor in self.run_keeping(inputs, ()).items()}

    def run_keeping(self, inputs: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
        """Return the outputs by name, those named in `kept` on the device; raises as `run` does."""
        session = still_open(self._session, self.graph)
        check_inputs(self.graph, inputs, self._place)
        stay = kept_names(self.graph, kept)
        names = [spec.name for spec in self.graph.outputs]
        if not self._binds:
            feed = {name: on_host(tensor) for name, tensor in inputs.items()}
            return dict(zip(names, session.run(names, feed), strict=True))
        binding = session.io_binding()
        for name, tensor in inputs.items():
            if isinstance(tensor, OrtTensor):
                binding.bind_ortvalue_input(name, tensor.value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(on_host(tensor)))
        for name in names:
            binding.bind_output(name, self._device if name in stay else "cpu", 0)
        session.run_with_iobinding(binding)
        values = binding.get_outputs()  # allocated by this run alone
        outputs = {
            spec.name: OrtTensor(value, spec, self._place)
            for spec, value in zip(self.graph.outputs, values, strict=True)
        }
        binding.clear_binding_inputs()  # outputs hold on to the binding, which must not hold on to the image
        self._kept.update(outputs[name] for name in stay)
        return {name: tensor if name in stay else tensor.numpy() for name, tensor in outputs.items()}

    def close(self) -> None:
        """Let go of the session's memory and of every tensor that it kept."""
        for tensor in list(self._kept):
            tensor.free()
        self._session = None


@dataclass(frozen=True)
class FileTensors:
    """Inputs and outputs of an ONNX file: name to numpy's name of the dtype, and sizes with -1 for what may differ."""

    inputs: Mapping[str, tuple[str, list[int]]]
    outputs: Mapping[str, tuple[str, list[int]]]


def read_file_tensors(path: Path) -> FileTensors:
    """Return what an ONNX file takes and gives; raises MissingDependencyError and ManifestError."""
    session = open_inference_session(path, optimise=False)

    def named(nodes: Sequence[Any]) -> dict[str, tuple[str, list[int]]]:
        return {
            node.name: (
                _DTYPES.get(node.type, node.type),
                [size if isinstance(size, int) else -1 for size in node.shape],
            )
            for node in nodes
        }

    return FileTensors(named(session.get_inputs()), named(session.get_outputs()))


def _readable(path: Path) -> str:
    """Return the path of a file as ONNX Runtime takes it, whatever the locale; its own errors would mislead.

    Raises ManifestError where the file can't be opened, or the bytes of its path are no UTF-8.
    """
    try:
        with path.open("rb"):
            return os.fsencode(path).decode()
    except OSError as error:
        raise ManifestError(
            f"{path.name} can't be read ({reason_of(error)}); restore it, and check who may read the export's folder"
        ) from error
    except UnicodeDecodeError as error:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise ManifestError(
            f"the path {shown} is not UTF-8, and ONNX Runtime opens no other; rename that folder, or move the export"
        ) from error


def open_inference_session(
    path: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    optimise: bool = True,
    shares_cores: bool = False,
    tensorrt_options: Mapping[str, str] | None = None,
) -> Any:
    """Return ONNX Runtime's session of a file, as every runner and our server's backend have it.

    With `shares_cores` threads sleep as soon as a run is done. They spin on for a while otherwise, ready for the next
    one, which takes the processor from whoever works on the answer in another process. With `tensorrt_options` its
    TensorRT provider runs the graph; the rest is as OnnxRuntimeRunner has it. Raises MissingDependencyError and
    ManifestError.
    """
    ort = _import_onnxruntime(device)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    if shares_cores:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # In the file's order. ONNX Runtime's own one would leave a probe behind each tensor until the very end, and
        # hold every tensor till then.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    tensorrt = tensorrt_options is not None
    provider = _TENSORRT if tensorrt else _CUDA if device == "cuda" else _CPU
    wanted: list[Any] = [_CPU]
    if device == "cuda":
        if provider not in ort.get_available_providers():
            raise MissingDependencyError(
                f"this ONNX Runtime has {', '.join(ort.get_available_providers())} and not {provider}; install "
                "samkit[gpu] instead of samkit[cpu], or use {device} cpu",
                options=("device",),
            )
        ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels, where those are installed
        # TF32 keeps ten bits of the mantissa: float32 graphs would leave their parity.
        wanted.insert(0, (_CUDA, {"use_tf32": "0"}))
        if tensorrt:
            wanted.insert(0, (_TENSORRT, tensorrt_options))
    elif tensorrt:
        raise MissingDependencyError(
            "TensorRT runs on a CUDA device and not on the CPU; pass {device} cuda", options=("device",)
        )
    name = _readable(path)
    try:
        session: Any = ort.InferenceSession(name, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's own classes share no base below this
        raise ManifestError(
            f"ONNX Runtime can't load {path.name} ({str(error).splitlines()[0]}); run sam-export --verify on its "
            "folder, and compare the versions of ONNX Runtime in its manifest and here"
        ) from error
    providers: list[str] = session.get_providers()
    # ONNX Runtime falls back to the CPU with a line in its log. A hospital that bought a GPU wants to know.
    if providers[0] != provider:
        raise MissingDependencyError(
            f"asked for {provider}, ONNX Runtime loaded {path.name} with {', '.join(providers)} only; "
            + (
                "its wheel links TensorRT 10 (libnvinfer.so.10), so install that version's libraries, or use "
                "{backend} tensorrt"
                if tensorrt
                else "check driver, CUDA and cuDNN (onnxruntime-gpu says which it needs), or use {device} cpu"
            ),
            options=("backend", "device"),
        )
    return session


def _tensorrt_options(graph: GraphSpec) -> dict[str, str]:
    """Return the provider's options: one profile over all sizes that `graph` takes, so that nothing is built twice.

    `trt_fp16_enable` stays off: it would let TensorRT take what our float16 files keep in float32 to float16 as well.
    """

    def shapes(size: str) -> str:
        # TensorRT's profiles begin at one point; a run without any makes the provider build once more.
        return ",".join(
            f"{spec.name}:{'x'.join(str(max(getattr(axis, size), 1)) for axis in spec.axes)}" for spec in graph.inputs
        )

    return {f"trt_profile_{size}_shapes": shapes(size) for size in ("min", "opt", "max")}


def _import_onnxruntime(device: str) -> Any:
    there = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(there) == 2:
        raise MissingDependencyError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files, so neither can be "
            "trusted; run `pip uninstall onnxruntime onnxruntime-gpu`, then install one: "
            f"{how_to_install('cpu')}, or gpu in its place"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"running ONNX files needs ONNX Runtime; {how_to_install(BACKEND.extras[device])}"
        ) from error
    return onnxruntime


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _open_runners(export: Export, device: str, precision: str, threads: int | None) -> dict[str, Runner]:
    return open_each(
        export.specs,
        lambda graph: OnnxRuntimeRunner(export.path(graph.name, precision), graph, device=device, threads=threads),
    )


BACKEND = Backend(
    name="onnxruntime",
    title="ONNX Runtime",
    summary="runs the files of an export as they are",
    devices=("cpu", "cuda"),
    extras={"cpu": "cpu", "cuda": "gpu"},
    open_runners=_open_runners,
    emulated_on=frozenset({"cpu"}),
)
