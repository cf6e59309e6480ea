"""ONNX graphs by ONNX Runtime's own TensorRT provider, which builds its engines when a session is opened."""

from __future__ import annotations

from samkit.manifest import Export
from samkit.runtime.backends.backend import Backend, open_each
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.runner import Runner


def _open_runners(export: Export, device: str, precision: str, threads: int | None) -> dict[str, Runner]:
    return open_each(
        export.specs,
        lambda graph: OnnxRuntimeRunner(
            export.path(graph.name, precision), graph, device=device, threads=threads, tensorrt=True
        ),
    )


BACKEND = Backend(
    name="onnxruntime-tensorrt",
    title="ONNX Runtime with TensorRT",
    summary="gives them to ONNX Runtime's own TensorRT provider",
    devices=("cuda",),
    extras={"cuda": "gpu"},
    open_runners=_open_runners,
    takes_preferred=False,  # nobody has seen what its provider makes of our float16 files
    in_benchmarks=False,
)
