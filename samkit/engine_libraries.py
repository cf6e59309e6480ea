"""NVIDIA's libraries that make engines of ONNX files, as data: what differs between them, and nothing else.

TensorRT builds for one GPU, the one it is built on. TensorRT for RTX builds on any x86-64 machine, without a GPU, for
every RTX card of a target; its kernels are compiled on the card, at first use.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineLibrary:
    """One library."""

    name: str
    """As manifests and `--engines` say it."""
    title: str
    modules: tuple[str, ...]
    """What it may be imported as; the first that is there is taken."""
    extra: str
    """The extra of samkit that installs it."""
    ending: str
    """Of its engines' files, behind graph and precision."""
    known_versions: tuple[str, ...]
    """Those whose APIs every call was checked against."""
    version_fact: str
    """What manifests call its version."""
    bound_to: tuple[tuple[str, str], ...] = ()
    """Facts of a manifest's entry that must hold where an engine runs, and what people call them."""
    targets: tuple[str, ...] = ()
    """GPUs that can be built for where none is there; none: engines are for the GPU they are built on."""
    platforms: tuple[str, ...] = ("linux",)
    """Systems that engines can be built for; the first is where samkit runs."""

    @property
    def needs_gpu(self) -> bool:
        """Return whether engines are built on the GPU they will run on, and can be measured there at once."""
        return not self.targets

    def engine_file(self, graph: str, precision: str) -> str:
        """Return the file name of one graph's engine.

        >>> TENSORRT.engine_file("mask_decoder", "fp16"), RTX.engine_file("mask_decoder", "fp16")
        ('mask_decoder.fp16.plan', 'mask_decoder.fp16.rtx.engine')
        """
        return f"{graph}.{precision}{self.ending}"


TENSORRT = EngineLibrary(
    name="tensorrt",
    title="TensorRT",
    modules=("tensorrt",),
    extra="tensorrt",
    ending=".plan",
    known_versions=("10.16", "11.4"),
    version_fact="tensorrt",
    bound_to=(("tensorrt", "TensorRT"), ("gpu", "GPU"), ("compute_capability", "compute capability")),
)
RTX = EngineLibrary(
    name="rtx",
    title="TensorRT for RTX",
    modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
    extra="tensorrt-rtx",
    ending=".rtx.engine",
    known_versions=("1.7",),
    version_fact="tensorrt_rtx",
    targets=("portable", "sm75", "sm80", "sm86", "sm89", "sm120"),
    platforms=("linux", "windows"),
)
LIBRARIES = (TENSORRT, RTX)
"""All of them."""


def get_library(name: str) -> EngineLibrary:
    """Return the library called `name` in a manifest; KeyError for another."""
    return {library.name: library for library in LIBRARIES}[name]
