"""NVIDIA's libraries that make engines of ONNX files, as data: what differs between them, and nothing else.

TensorRT builds for one GPU, the one it is built on. TensorRT for RTX builds on any x86-64 machine, without a GPU, for
every RTX card of a target; its kernels are compiled on the card, at first use. Engines of neither run on another
release of their library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EngineLibrary:
    """One library."""

    name: str
    """As manifests and `--engines` say it."""
    title: str
    backend: str
    """What runs its engines, as `--backend` says it."""
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
    bound_to: tuple[tuple[str, str], ...]
    """Facts of a manifest's entry that must hold where an engine runs, and what people call them."""
    advice: str
    """What to do about an engine that does not run on a machine, before the command."""
    targets: tuple[str, ...] = ()
    """GPUs that can be built for where none is there, the first for all from `oldest` on, the others for one compute
    capability; none: engines are for the GPU they are built on."""
    oldest: str = ""
    """The compute capability from which on engines of the first target run."""
    listed: tuple[str, ...] = ()
    """The compute capabilities in its documentation; on others nobody promises anything. None: every one is."""
    has_runtime_cache: bool = False
    """Whether kernels are compiled where an engine runs, which a cache there keeps."""
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

    def generations(self, target: str) -> tuple[str, ...]:
        """Return the targets of one generation of cards each that a target stands for.

        >>> RTX.generations("sm86"), RTX.generations("portable")
        (('sm86',), ('sm80', 'sm86', 'sm89', 'sm120'))
        """
        first, *each = self.targets
        if target != first:
            return (target,)
        return tuple(name for name in each if _as_numbers(_capability(name)) >= _as_numbers(self.oldest))

    def misfit(self, facts: Mapping[str, Any], here: Mapping[str, str]) -> str | None:
        """Return why an engine with `facts` in the manifest does not run `here`, behind its name; None where it does.

        >>> here = {"tensorrt_rtx": "1.7.1.116", "compute_capability": "8.6"}
        >>> RTX.misfit({"tensorrt_rtx": "1.7.1.116", "target": "sm75", "platform": "linux"}, here)
        'was built for compute capability 7.5, and here is 8.6'
        >>> RTX.misfit({"tensorrt_rtx": "1.7.1.116", "target": "portable", "platform": "linux"}, here)
        """
        for fact, meaning in self.bound_to:
            if facts.get(fact) != here[fact]:
                return f"was built for {meaning} {facts.get(fact)}, and here is {here[fact]}"
        if not self.targets:
            return None
        if (platform := facts.get("platform")) != self.platforms[0]:
            return f"was built for {platform}, and here is {self.platforms[0]}"
        target, found = facts.get("target"), here["compute_capability"]
        if target not in self.targets:
            return f"was built for '{target}', which is none of {', '.join(self.targets)}"
        if target != self.targets[0]:
            wanted = _capability(target)
            return None if found == wanted else f"was built for compute capability {wanted}, and here is {found}"
        if _as_numbers(found) < _as_numbers(self.oldest):
            return f"was built for compute capability {self.oldest} and later, and here is {found}"
        return None

    def untried(self, here: Mapping[str, str]) -> str | None:
        """Return what must be said loudly of the GPU `here`; None where the library's documentation lists it.

        >>> RTX.untried({"gpu": "H200", "compute_capability": "9.0"})
        'compute capability 9.0 (H200) is in no list of TensorRT for RTX: its engines were never tried there'
        """
        found = here["compute_capability"]
        if not self.listed or found in self.listed:
            return None
        return (
            f"compute capability {found} ({here['gpu']}) is in no list of {self.title}: its engines were never tried "
            "there"
        )


def _capability(target: str) -> str:
    """Return the compute capability that a target names: 12.0 of sm120."""
    return f"{target[2:-1]}.{target[-1]}"


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


TENSORRT = EngineLibrary(
    name="tensorrt",
    title="TensorRT",
    backend="tensorrt",
    modules=("tensorrt",),
    extra="tensorrt",
    ending=".plan",
    known_versions=("10.16", "11.4"),
    version_fact="tensorrt",
    bound_to=(("tensorrt", "TensorRT"), ("gpu", "GPU"), ("compute_capability", "compute capability")),
    advice="an engine runs where it was built, so build it",
)
RTX = EngineLibrary(
    name="rtx",
    title="TensorRT for RTX",
    backend="tensorrt-rtx",
    modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
    extra="tensorrt-rtx",
    ending=".rtx.engine",
    known_versions=("1.7",),
    version_fact="tensorrt_rtx",
    bound_to=(("tensorrt_rtx", "TensorRT for RTX"),),
    advice="build it again",
    targets=("portable", "sm75", "sm80", "sm86", "sm89", "sm120"),
    oldest="8.0",
    listed=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    has_runtime_cache=True,
    platforms=("linux", "windows"),
)
LIBRARIES = (TENSORRT, RTX)
"""All of them."""


def get_library(name: str) -> EngineLibrary:
    """Return the library called `name` in a manifest; KeyError for another."""
    return {library.name: library for library in LIBRARIES}[name]
