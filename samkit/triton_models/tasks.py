"""What the ensemble's steps tell each other beside tensors, as records: whoever calls a step by itself sends the same.

A step is a model that clients can reach, so nothing is believed that would fail, or take memory, further on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np

from samkit.errors import PromptError, TensorMismatchError
from samkit.geometry import Index, check_affine
from samkit.runtime.protocol import readers, wire
from samkit.runtime.protocol.record import Key, Record
from samkit.runtime.protocol.requests import EnsembleOptions

_RUN_BEFORE = "run the step before, and send what it answers"

Row: TypeAlias = tuple[float, ...]


def _read_three(value: object, name: str) -> Index:
    counts = readers.read_whole_numbers(value, name)
    if len(counts) != 3:
        raise PromptError(f"{name} has {len(counts)} numbers, needed are 3; {_RUN_BEFORE}")
    i, j, k = counts
    return i, j, k


def _read_shape(value: object, name: str) -> Index:
    shape = _read_three(value, name)
    if min(shape) < 1:
        raise PromptError(f"{name} is {list(shape)}, needed are numbers above 0; {_RUN_BEFORE}")
    return shape


def _read_affine(value: object, name: str) -> tuple[Row, ...]:
    if not isinstance(value, list) or len(value) != 4:
        raise PromptError(f"{name} is {value!r:.100}, needed are four rows; {_RUN_BEFORE}")
    rows = tuple(readers.read_measures(row, name) for row in value)
    if any(len(row) != 4 for row in rows):
        raise PromptError(f"{name} has a row that is not of four numbers; {_RUN_BEFORE}")
    check_affine(np.array(rows, np.float64))
    return rows


def _read_entries(value: object, name: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or len(value) > readers.MOST_PROMPTS:
        raise PromptError(f"{name} is no list of at most {readers.MOST_PROMPTS} prompts; {_RUN_BEFORE}")
    return tuple(readers.read_object(entry, name) for entry in value)


def _read_options(value: object, name: str) -> EnsembleOptions:
    return EnsembleOptions.from_json(value)


@dataclass(frozen=True, kw_only=True)
class Task(Record):
    """What `preprocess` tells `refine`."""

    called = "the task"

    prompts: Annotated[tuple[Mapping[str, Any], ...], Key("list", "in the frame of `prepared`", _read_entries, list)]
    shape: Annotated[Index, Key("`[I, J, K]`", "of the scan", _read_shape, list)]
    affine: Annotated[
        tuple[Row, ...],
        Key("four rows", "voxel index to world RAS+ [mm]", _read_affine, lambda rows: [list(row) for row in rows]),
    ]
    options: Annotated[EnsembleOptions, Key("object", "of the ensemble", _read_options, EnsembleOptions.to_json)]
    seconds: Annotated[Mapping[str, float], Key("object of numbers", "by step", readers.read_seconds)]


@dataclass(frozen=True, kw_only=True)
class Box(Record):
    """Where a piece of the logits lies."""

    called = "a piece"

    origin: Annotated[Index, Key("`[i, j, k]`", "first grid voxel, which may lie outside", _read_three)]
    shape: Annotated[Index, Key("`[I, J, K]`", "of the piece", _read_shape)]


def _read_boxes(value: object, name: str) -> tuple[Box, ...]:
    if not isinstance(value, list):
        raise PromptError(f"{name} is {value!r:.100}, needed is a list; {_RUN_BEFORE}")
    return tuple(Box.from_json(entry) for entry in value)


@dataclass(frozen=True, kw_only=True)
class FoundInVolume(Task):
    """What `refine` tells `postprocess` of a volume, beside the logits of all pieces, one after the other."""

    called = "what was found"

    pieces: Annotated[
        tuple[Box, ...],
        Key("list", "the logits' boxes", _read_boxes, lambda boxes: [box.to_json() for box in boxes]),
    ]
    crops: Annotated[int, Key("number", "in use", readers.read_count)]
    limit_reached: Annotated[bool, Key("boolean", "whether the object goes on beyond them", readers.read_flag)]
    iou: Annotated[Row, Key("list of numbers", "predicted", readers.read_measures)]


@dataclass(frozen=True, kw_only=True)
class FoundInSlices(Task):
    """What `refine` tells `postprocess` of slices, beside their labels."""

    called = "what was found"

    boxes: Annotated[int, Key("number", "that the detector found", readers.read_count)]
    slices: Annotated[tuple[int, ...], Key("list of numbers", "with an answer", readers.read_counts)]
    iou: Annotated[Row, Key("list of numbers", "predicted", readers.read_measures)]


def check_shape(name: str, found: Sequence[int], needed: Sequence[int]) -> None:
    """Raise TensorMismatchError unless a tensor has the shape that the JSON beside it makes necessary."""
    if tuple(found) != tuple(needed):
        raise TensorMismatchError(
            f"tensor '{name}' is {' x '.join(map(str, found))}, needed is {' x '.join(map(str, needed))}; {_RUN_BEFORE}"
        )


def check_prepared(found: Sequence[int], sequences: int) -> None:
    """Raise TensorMismatchError unless `prepared` has as many sequences as the method takes."""
    check_shape(wire.PREPARED, found, (sequences, *found[1:]))
