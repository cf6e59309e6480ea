"""Runner: one graph on one backend."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np

from samkit.errors import SamkitError, TensorMismatchError
from samkit.methods.method import IMAGES, GraphSpec

T = TypeVar("T")


class Runner(Protocol):
    """Runs one graph; a context manager. Backends differ in nothing that a caller sees."""

    @property
    def graph(self) -> GraphSpec:
        """Return what goes in and comes out."""

    @property
    def providers(self) -> tuple[str, ...]:
        """Return what really runs the graph, as the backend names it."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name; raises TensorMismatchError for inputs that don't fit, SamkitError once closed."""

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


def check_inputs(graph: GraphSpec, inputs: Mapping[str, np.ndarray]) -> None:
    """Raise TensorMismatchError unless `inputs` are exactly the graph's, each of a fitting shape and dtype."""
    wanted = {spec.name for spec in graph.inputs}
    if set(inputs) != wanted:
        raise TensorMismatchError(
            f"graph {graph.name} was given {sorted(inputs)} and needs {sorted(wanted)}; pass exactly those"
        )
    for spec in graph.inputs:
        spec.check(inputs[spec.name])
    rows = {spec.name: len(inputs[spec.name]) for spec in graph.inputs}
    shared = {spec.name for spec in graph.inputs if spec.axes[0].name == IMAGES and rows[spec.name] == 1}
    if len({count for name, count in rows.items() if name not in shared}) > 1:
        raise TensorMismatchError(f"graph {graph.name} was given different batches {rows}; make them equal")
