"""Runner: one graph on one backend.

Outputs come to the host unless `run_keeping` is asked to leave them where they are: between the clicks of a session an
embedding has no business on the host. Such a `DeviceTensor` is an input like any array, of runners of the same place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np

from samkit.errors import SamkitError, TensorMismatchError
from samkit.methods.method import IMAGES, GraphSpec
from samkit.tensors import DeviceTensor, Tensor

T = TypeVar("T")


class Runner(Protocol):
    """Runs one graph; a context manager. Backends differ in nothing that a caller sees."""

    @property
    def graph(self) -> GraphSpec:
        """Return what goes in and comes out."""

    @property
    def providers(self) -> tuple[str, ...]:
        """Return what really runs the graph, as the backend names it."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name, on the host.

        Raises TensorMismatchError for inputs that don't fit or lie elsewhere, SamkitError once closed.
        """

    def run_keeping(self, inputs: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
        """Return the outputs by name, those named in `kept` where the graph runs: an array if that is the host.

        Nothing ever writes to a kept tensor again. Raises as `run` does.
        """

    def close(self) -> None:
        """Let go of memory and device."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def still_open(held: T | None, graph: GraphSpec) -> T:
    """Return `held`, which closing makes None; raises SamkitError when it has."""
    if held is None:
        raise SamkitError(f"the runner of {graph.name} is closed and a run needs it open; open the session again")
    return held


def kept_names(graph: GraphSpec, kept: Collection[str]) -> frozenset[str]:
    """Return `kept` as a set; raises TensorMismatchError for what is no output of `graph`."""
    names = [spec.name for spec in graph.outputs]
    if unknown := sorted(set(kept) - set(names)):
        raise TensorMismatchError(
            f"graph {graph.name} has no output {', '.join(unknown)} to keep, it has {', '.join(names)}; keep those"
        )
    return frozenset(kept)


class Closing:
    """Makes runners and sessions context managers."""

    def close(self) -> None:
        """Let go of memory and device."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HostRunner(Closing):
    """A runner whose outputs are on the host anyway, so that to keep them is to return them."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        raise NotImplementedError

    def run_keeping(self, inputs: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
        """Return what `run` does."""
        return dict(self.run(inputs))


class SubstituteRunner(Closing):
    """Runs a graph that an export lacks by the one it works for, given zeros besides; numbers are the same."""

    def __init__(self, graph: GraphSpec, other: Runner) -> None:
        """Run `graph` by `other`, the runner of `graph.works_for`, which its owner closes."""
        self.graph = graph
        self.providers = other.providers
        self.other = other

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the outputs by name, on the host; raises TensorMismatchError, and as the other does."""
        return self.other.run(self._with_zeros(inputs))

    def run_keeping(self, inputs: Mapping[str, Tensor], kept: Collection[str]) -> dict[str, Tensor]:
        """Return the outputs by name, those named in `kept` where the graph runs; raises as the other does."""
        return self.other.run_keeping(self._with_zeros(inputs), kept)

    def _with_zeros(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        _check_names(self.graph, inputs)
        for spec in self.graph.inputs:
            spec.check(inputs[spec.name])
        sizes = {
            axis.name: size
            for spec in self.graph.inputs
            for axis, size in zip(spec.axes, inputs[spec.name].shape, strict=True)
            if axis.is_dynamic
        }
        zeros = {
            spec.name: np.zeros([sizes[axis.name] if axis.is_dynamic else axis.min for axis in spec.axes], spec.dtype)
            for spec in self.other.graph.inputs
            if spec.name not in inputs
        }
        return {**inputs, **zeros}


def add_substitutes(runners: MutableMapping[str, Runner], graphs: Sequence[GraphSpec]) -> None:
    """Add to `runners`, by name, one for each of `graphs` that is missing there and works for one that is not, if that
    one takes all that it takes.
    """
    for graph in graphs:
        if graph.name in runners or graph.works_for is None or graph.works_for not in runners:
            continue
        other = runners[graph.works_for]
        if {spec.name for spec in graph.inputs} <= {spec.name for spec in other.graph.inputs}:
            runners[graph.name] = SubstituteRunner(graph, other)


def official_alone(runners: Mapping[str, Runner], graphs: Sequence[GraphSpec]) -> dict[str, Runner]:
    """Return `runners` without those of fast forms, for which the graphs stand in that they work for: clients may use
    these for everything.
    """
    fast = {graph.name for graph in graphs if graph.works_for is not None}
    alone = {name: runner for name, runner in runners.items() if name not in fast}
    add_substitutes(alone, graphs)
    return alone


def check_inputs(graph: GraphSpec, inputs: Mapping[str, Tensor], place: str = "host memory") -> None:
    """Raise TensorMismatchError unless `inputs` are exactly the graph's, each of a fitting shape and dtype.

    Tensors on a device must lie at `place`, where the graph runs, and raise SamkitError when their runner is closed.
    """
    _check_names(graph, inputs)
    for spec in graph.inputs:
        tensor = inputs[spec.name]
        if not isinstance(tensor, np.ndarray):
            _check_place(graph, spec.name, tensor, place)
        spec.check(tensor)
    rows = {spec.name: inputs[spec.name].shape[0] for spec in graph.inputs}
    shared = {spec.name for spec in graph.inputs if spec.axes[0].name == IMAGES and rows[spec.name] == 1}
    if len({count for name, count in rows.items() if name not in shared}) > 1:
        raise TensorMismatchError(f"graph {graph.name} was given different batches {rows}; make them equal")


def _check_names(graph: GraphSpec, inputs: Mapping[str, Tensor]) -> None:
    wanted = {spec.name for spec in graph.inputs}
    if set(inputs) != wanted:
        raise TensorMismatchError(
            f"graph {graph.name} was given {sorted(inputs)} and needs {sorted(wanted)}; pass exactly those"
        )


def _check_place(graph: GraphSpec, name: str, tensor: DeviceTensor, place: str) -> None:
    if not tensor.is_open:
        raise SamkitError(
            f"tensor '{name}' was kept by a runner that is closed, and {graph.name} needs it; encode the image again"
        )
    if tensor.place != place:
        raise TensorMismatchError(
            f"tensor '{name}' lies in {tensor.place} and {graph.name} runs in {place}; pass its numpy() instead"
        )
