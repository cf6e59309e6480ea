"""Phantoms as a method takes them: cases for accuracy, and cases on which a session's cost is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from samkit.clicks import central_click
from samkit.errors import InputRefused, SamkitError
from samkit.geometry import Index, Volume
from samkit.methods import Method, SliceMethod
from samkit.phantoms import SEQUENCES, make_phantom, make_structures
from samkit.prompts import FOREGROUND, Point
from samkit.protocols.case import Case
from samkit.sequences import sequence_of

ACCURACY_SEED = 900_000
"""The first of the phantoms that accuracy is measured on; no training, export or demonstration has seen them."""
COST_SEED = 7
_HEAD = (176, 208, 176)  # as large as a clinical scan
COST_SHAPES: Mapping[str | None, Index] = {None: _HEAD, "full": (96, 96, 96), "small": _HEAD, "tiny": (48, 48, 48)}
"""Voxels of a cost case, of 1 mm, by the size of the network, None for a checkpoint's. That of `full` fits into half a
patch: masks of random weights reach everywhere, and on a larger scan would lead every click to many crops."""

_SIDE, _STRUCTURES_SIDE = 96, 128
"""Voxels of 1 mm along each axis of a phantom for accuracy, as the demonstration weights know them."""
_THICK = 4
"""Every so many slices are kept for a method that goes through all of them: thick ones, as clinics have, and fewer."""
_SHOWN: Mapping[str, str] = {str(sequence_of(name)): name for name in SEQUENCES}
"""What a phantom calls each sequence."""


def phantom_cases(method: Method, config: Any, count: int) -> Iterator[Case]:
    """Yield `count` phantoms as the method takes them, of the seeds ACCURACY_SEED and on.

    What is to be found is the largest lesion, all lesions where the method looks by itself, and the structures where it
    has names for them. Methods that look by themselves get thick slices. Raises InputRefused for a sequence that
    phantoms do not have.
    """
    names = method.structures(config)
    side = _STRUCTURES_SIDE if names else _SIDE
    for number in range(count):
        # One sequence after the other where one is taken, as the demonstration weights learnt
        grey = SEQUENCES[number % len(SEQUENCES)]
        case, objects = _make(method, config, ACCURACY_SEED + number, (side,) * 3, grey)
        if names:
            values = {name: objects == value for value, name in enumerate(names, start=1)}
            targets = {name: mask for name, mask in values.items() if mask.any()}
        else:
            targets = {"": objects > 0 if method.is_automatic else _largest(objects)}
        case = replace(case, targets=targets)
        yield _thick(case) if method.is_automatic else case


def cost_case(method: Method, config: Any, shape: Index) -> Case:
    """Return a phantom of that many voxels with its largest object, which lies in one slice for a method of slices."""
    case, objects = _make(method, config, COST_SEED, shape, "flair")
    target = _largest(objects)
    if case.across is not None:
        slices = np.moveaxis(target, case.across, 0)
        slices[np.arange(len(slices)) != slices.sum(axis=(1, 2)).argmax()] = False
    return replace(case, targets={next(iter(method.structures(config)), ""): target})


def with_clicks(case: Case, session: Any, method: Method, clicks: int) -> Case:
    """Return a cost case with at most so many clicks, each in the middle of the worst error that `session` has left.

    They are simulated once, so that no time of a simulation is measured: all in the target's slice, of a method of
    slices, and none where it takes no points. Raises SamkitError where there is no error to click on.
    """
    session.set_image(case.image)
    if "point" not in method.prompts:
        return case
    ((structure, target),) = case.targets.items()
    seen = case.across is None or target.any(axis=tuple({0, 1, 2} - {case.across}), keepdims=True)
    points: list[Point] = []
    mask = session.mask()
    while len(points) < clicks and (point := central_click(mask & seen, target)) is not None:
        points.append(replace(point, structure=structure))
        mask = click_on(session, points[-1])
    if not points:
        raise SamkitError(f"{method.name} has no error on the {case.name} to click on; use another phantom")
    return replace(case, clicks=tuple(points))


def click_on(session: Any, point: Point) -> np.ndarray:
    """Return the whole mask after a click."""
    return session.click(point.index, point.label == FOREGROUND, structure=point.structure).mask


def _make(method: Method, config: Any, seed: int, shape: Index, grey: str) -> tuple[Case, np.ndarray]:
    """Return a phantom without targets, of the sequence `grey` if one is taken, and the numbers of its objects."""
    plane = method.plane if isinstance(method, SliceMethod) else ""
    if method.structures(config):
        volume, objects = make_structures(seed, shape)
        return Case(f"phantom {seed}", {"": volume}, {}, plane), objects
    sequences = method.sequences(config)
    if unknown := [name for name in sequences if name not in _SHOWN]:
        raise InputRefused(
            "unknown-sequence",
            f"phantoms have {', '.join(_SHOWN)}, and these weights of {method.name} take {unknown[0]}",
            "measure them on scans with sam-bench accuracy --data",
        )
    needed = {name: _SHOWN[name] for name in sequences} or {"": grey}
    phantom = make_phantom(seed, shape, sequences=tuple(needed.values()))
    volumes = {name: phantom.sequences[own] for name, own in needed.items()}
    return Case(f"phantom {seed}", volumes, {}, plane), phantom.lesions


def _largest(objects: np.ndarray) -> np.ndarray:
    """Return the mask of the object with the most voxels."""
    return objects == 1 + int(np.bincount(objects.ravel())[1:].argmax())


def brighter(case: Case, number: int) -> Case:
    """Return the case with scans that no cache has seen: every voxel of the object is brighter by `number`."""

    def raised(array: np.ndarray) -> np.ndarray:
        return np.where(array > 0, array + number, array).astype(array.dtype)

    return replace(case, volumes={name: Volume(raised(one.array), one.affine) for name, one in case.volumes.items()})


def padded(case: Case, shape: Index) -> Case:
    """Return the case in as much air as makes its scans `shape` voxels large; the patient stays where they were."""
    before = np.subtract(shape, case.shape) // 2
    pad = list(zip(before, shape - before - case.shape, strict=True))
    moved = np.eye(4)
    moved[:3, 3] = -before
    return _changed(case, lambda array: np.pad(array, pad), lambda affine: affine @ moved, lambda at: at + before)


def repeated(case: Case, slices: int) -> Case:
    """Return the case with its target's slice `slices` times over and nothing else; clicks lie in the middle one."""
    if case.across is None:
        raise SamkitError("a case of volumes has no slices to repeat; this is a bug, report it")
    across, one = case.across, int(np.argwhere(case.target)[0][case.across])
    return _changed(
        case,
        lambda array: np.repeat(np.take(array, [one], across), slices, across),
        np.copy,
        lambda at: np.where(np.arange(3) == across, slices // 2, at),
    )


def _thick(case: Case) -> Case:
    """Return every _THICK-th slice of a case without clicks; the first stays where it is, with the affine's origin."""
    steps = np.where(np.arange(3) == case.view().axes[0], _THICK, 1)
    chosen, scale = tuple(slice(None, None, int(step)) for step in steps), np.diag([*steps, 1.0])
    return _changed(case, lambda array: np.ascontiguousarray(array[chosen]), lambda affine: affine @ scale, np.copy)


_Change: TypeAlias = Callable[[np.ndarray], np.ndarray]


def _changed(case: Case, arrays: _Change, affines: _Change, places: _Change) -> Case:
    """Return the case with other arrays, targets too, other affines, and clicks at other voxel indices (3,)."""
    volumes = {name: Volume(arrays(one.array), affines(one.affine)) for name, one in case.volumes.items()}
    targets = {name: arrays(mask) for name, mask in case.targets.items()}
    moved = [(point, places(np.array(point.index)).tolist()) for point in case.clicks]
    clicks = tuple(replace(point, index=(float(i), float(j), float(k))) for point, (i, j, k) in moved)
    return replace(case, volumes=volumes, targets=targets, clicks=clicks)
