"""Axis and TensorSpec: the one description of a tensor that every stage reads.

A spec gives the ONNX names and dynamic axes, the input check of the runners, the plan's JSON, the TensorRT profile and
Triton's dims. They can't disagree, because nobody writes them twice.

A tensor that goes into a graph is a numpy array or, where a runner left one on its device, a `DeviceTensor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from samkit.errors import TensorMismatchError


class DeviceTensor(Protocol):
    """An output that stayed where a runner computed it. Nothing writes to it again, so whoever holds it may go back."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the sizes of its axes."""

    @property
    def dtype(self) -> np.dtype:
        """Return the type of its elements."""

    @property
    def nbytes(self) -> int:
        """Return how much of the device's memory it takes."""

    @property
    def place(self) -> str:
        """Return backend and device, such as "ONNX Runtime on cuda:0": runners of that place alone can take it."""

    @property
    def is_open(self) -> bool:
        """Return whether the runner that made it is still open; its memory goes with the runner."""

    def numpy(self) -> np.ndarray:
        """Return a copy on the host; raises SamkitError once the runner that made it is closed."""


Tensor: TypeAlias = np.ndarray | DeviceTensor
"""What a graph takes."""


def on_host(tensor: Tensor) -> np.ndarray:
    """Return `tensor` as a numpy array: itself, or a copy from its device."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.numpy()


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: its name and the sizes it may take."""

    name: str
    min: int
    opt: int
    """The size to tune for: TensorRT's optimum, and the size used where one must be picked."""
    max: int
    step: int = 1
    """Every size is a multiple of this."""

    @classmethod
    def fixed(cls, name: str, size: int) -> Axis:
        """Return an axis of exactly `size`."""
        return cls(name, size, size, size)

    @property
    def is_dynamic(self) -> bool:
        """Whether the axis may take more than one size."""
        return self.min != self.max

    def takes(self, size: int) -> bool:
        """Return whether the axis may have this size."""
        return self.min <= size <= self.max and size % self.step == 0

    def to_text(self) -> str:
        """Return the sizes for a message, such as `batch=1..8`."""
        steps = f" in steps of {self.step}" if self.step > 1 else ""
        return f"{self.name}={self.min}..{self.max}{steps}" if self.is_dynamic else f"{self.name}={self.min}"

    def to_list(self) -> list[str | int]:
        """Return the JSON form: [name, min, opt, max], with the step where it is not 1; fixed ones [name, size]."""
        if not self.is_dynamic:
            return [self.name, self.min]
        return [self.name, self.min, self.opt, self.max, *([self.step] if self.step > 1 else [])]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and axes of one input or output of a graph."""

    name: str
    dtype: str
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the optimum shape.

        >>> TensorSpec("x", "float32", (Axis("batch", 1, 1, 8), Axis.fixed("ijk", 3))).shape
        (1, 3)
        """
        return tuple(axis.opt for axis in self.axes)

    def check(self, array: Tensor) -> None:
        """Raise TensorMismatchError unless `array` has this dtype, rank and sizes within the axes' bounds."""
        wanted = ", ".join(axis.to_text() for axis in self.axes)
        fits = (
            array.dtype == np.dtype(self.dtype)
            and len(array.shape) == len(self.axes)
            and all(a.takes(n) for a, n in zip(self.axes, array.shape, strict=True))
        )
        if not fits:
            raise TensorMismatchError(
                f"tensor '{self.name}' is {array.dtype} {array.shape}, the graph needs {self.dtype} ({wanted}); "
                "pass an array of that shape and dtype"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "dtype": self.dtype, "axes": [axis.to_list() for axis in self.axes]}
