"""Backend: the frozen record of all that differs between what runs graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from samkit.manifest import Export
from samkit.methods.method import GraphSpec
from samkit.precisions import get_precision
from samkit.runtime.backends.runner import Runner


class OpenRunners(Protocol):
    """Opens a backend's runners."""

    def __call__(self, export: Export, device: str, precision: str, threads: int | None) -> dict[str, Runner]:
        """Return a runner of each graph that `export` has files of, by name.

        `threads` is for one operator on the CPU, all cores where None. Raises MissingDependencyError for what is not
        installed or not there, ManifestError for files that are not what they should be; then nothing is left open.
        """


def missing_files(export: Export, precision: str) -> str | None:
    """Return why `export` has no graphs in `precision`; None where it has."""
    if precision in export.plan.precisions:
        return None
    record = get_precision(precision)
    return f"the export has no {record.title} files; sam-export --{record.name} writes them"


def no_warnings() -> Sequence[str]:
    """Return that there is nothing to tell."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Backend:
    """What runs the graphs of an export."""

    name: str
    """As on the command line: `onnxruntime`."""
    title: str
    """As readers of tables call it: `ONNX Runtime`."""
    summary: str
    """What it does, for the help of `--backend`: a sentence that begins with its name."""
    devices: tuple[str, ...]
    """Where it runs, `cpu` or `cuda`; the first is where it does when nobody asks."""
    open_runners: OpenRunners
    """Called once everything else is checked. Imports what may be missing, and then says which extra installs it."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """The extra of samkit that installs what it needs, by device."""
    precisions: frozenset[str] | None = None
    """What it computes in; None: whatever the export was written in."""
    takes_preferred: bool = True
    """Whether, when nobody asks, it runs what the device prefers, where the export has that; else float32 always."""
    checks_bytes: bool = False
    """Whether its runners compare the very bytes that they load with the manifest, and need no other file."""
    missing: Callable[[Export, str], str | None] = missing_files
    """Why an export can't run on it in a precision, as far as the manifest says; None where nothing is missing."""
    warnings: Callable[[], Sequence[str]] = no_warnings
    """What users must be told of it as it is installed here, in sentences."""
    emulated_on: frozenset[str] = frozenset()
    """Devices on which it computes in float32 whatever the files say: accuracy is judged by emulation there."""
    is_original: bool = False
    """Whether it runs the network as it was trained, which everything else is compared with."""
    in_benchmarks: bool = True
    """Whether `sam-bench` knows it."""


@dataclass(frozen=True)
class Variant:
    """One backend in one precision on one device: what a benchmark measures."""

    backend: str
    precision: str
    device: str


def open_each(graphs: Sequence[GraphSpec], open_graph: Callable[[GraphSpec], Runner]) -> dict[str, Runner]:
    """Return a runner of each of `graphs` by name, opened one by one; where one fails those before it are closed."""
    runners: dict[str, Runner] = {}
    with ExitStack() as opened:
        for graph in graphs:
            runners[graph.name] = opened.enter_context(open_graph(graph))
        opened.pop_all()
    return runners
