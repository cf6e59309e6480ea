"""Phantoms as a method takes them: cases for accuracy, and cases on which a session's cost is measured.

Clicks of a cost case are simulated once, on a session, and given again to every session that is measured: then no time
of a simulation lies between them, and every run has the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from samkit.benchmarks.cases.case import Case
from samkit.clicks import central_click
from samkit.errors import InputRefused, SamkitError
from samkit.geometry import Index, Triple, Volume
from samkit.methods import Method, SliceMethod
from samkit.phantoms import SEQUENCES, make_phantom, make_structures
from samkit.prompts import FOREGROUND, Point
from samkit.sequences import sequence_of

ACCURACY_SEED = 900_000
"""The first of the phantoms that accuracy is measured on; no training, export or demonstration has seen them."""
COST_SEED = 7
COST_SHAPES: Mapping[str | None, Index] = {
    None: (176, 208, 176),
    "full": (96, 96, 96),
    "small": (176, 208, 176),
    "tiny": (48, 48, 48),
}
"""Voxels of a cost case, of 1 mm, by the size of the network, None for a checkpoint's. That of `small` is as large as a
clinical head scan. That of `full` fits into half a patch: masks of random weights reach everywhere, and on a larger
scan would lead every click to many crops."""

_SIDE, _STRUCTURES_SIDE = 96, 128
"""Voxels of 1 mm along each axis of a phantom for accuracy, as the demonstration weights know them."""
_THICK = 4
"""Every so many slices of it are kept for a method that goes through all of them: thick ones, as clinics have, and
fewer."""
_SHOWN: Mapping[str, str] = {str(sequence_of(name)): name for name in SEQUENCES}
"""What a phantom calls each sequence."""


def phantom_cases(method: Method, config: Any, count: int, seed0: int = ACCURACY_SEED) -> Iterator[Case]:
    """Yield `count` phantoms as the method takes them, of the seeds `seed0` and on; no patient, no file.

    What is to be found is the largest lesion where the method is prompted, all lesions where it looks for them by
    itself, and the structures where it has names for them. Methods that go through every slice get thick ones. Raises
    InputRefused for a sequence that phantoms do not have.
    """
    names = _structures(method, config)
    side = _STRUCTURES_SIDE if names else _SIDE
    for number in range(count):
        # One sequence after the other where one is taken, as the demonstration weights learnt
        grey = SEQUENCES[number % len(SEQUENCES)]
        case, objects = _make(method, config, seed0 + number, (side,) * 3, grey)
        looks = isinstance(method, SliceMethod) and method.is_automatic
        if names:
            values = {name: objects == value for value, name in enumerate(names, start=1)}
            targets = {name: mask for name, mask in values.items() if mask.any()}
        else:
            targets = {"": objects > 0 if looks else _largest(objects)}
        yield _thick(replace(case, targets=targets)) if looks else replace(case, targets=targets)


def cost_case(method: Method, config: Any, shape: Index) -> Case:
    """Return a phantom of that many voxels with its largest object, of a method of slices in one slice; no clicks yet.

    Raises InputRefused for a sequence that phantoms do not have.
    """
    case, objects = _make(method, config, COST_SEED, shape, "flair")
    target = _largest(objects)
    if case.across is not None:
        target &= _only(int(np.moveaxis(target, case.across, 0).sum(axis=(1, 2)).argmax()), case.across, shape)
    return replace(case, targets={next(iter(_structures(method, config)), ""): target})


def with_clicks(case: Case, session: Any, method: Method, clicks: int) -> Case:
    """Return a cost case with at most so many clicks, each in the middle of the worst error that `session` has left.

    They are all in the target's slice where the method is one of slices, and none where it takes no points. The session
    holds the case afterwards. Raises SamkitError where there is no error to click on.
    """
    session.set_image(case.image)
    if isinstance(method, SliceMethod) and "point" not in method.prompts:
        return case
    ((structure, target),) = case.targets.items()
    seen = np.ones(case.shape, bool) if case.across is None else _only(_slice(case), case.across, case.shape)
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
    mask: np.ndarray = session.click(point.index, point.label == FOREGROUND, structure=point.structure).mask
    return mask


# --- What a phantom is made of ---


def _make(method: Method, config: Any, seed: int, shape: Index, grey: str) -> tuple[Case, np.ndarray]:
    """Return a phantom without targets, and its objects: structures where the method names any.

    Objects are a volume of 0 and of each one's number. A method of one grey volume gets the sequence `grey`.
    """
    plane = method.plane if isinstance(method, SliceMethod) else ""
    if _structures(method, config):
        volume, objects = make_structures(seed, shape)
        return Case(f"phantom {seed}", {"": volume}, {}, plane), objects
    sequences = method.sequences(config) if isinstance(method, SliceMethod) else ()
    needed = {name: _shown(name, method) for name in sequences} or {"": grey}
    phantom = make_phantom(seed, shape, sequences=tuple(needed.values()))
    volumes = {name: phantom.sequences[own] for name, own in needed.items()}
    return Case(f"phantom {seed}", volumes, {}, plane), phantom.lesions


def _structures(method: Method, config: Any) -> tuple[str, ...]:
    return method.structures(config) if isinstance(method, SliceMethod) else ()


def _shown(name: str, method: Method) -> str:
    """Return what a phantom calls a sequence; raises InputRefused for one that it does not have."""
    if name not in _SHOWN:
        raise InputRefused(
            "unknown-sequence", f"phantoms have {', '.join(_SHOWN)}, and these weights of {method.name} take {name}",
            "measure them on scans with sam-bench accuracy --data",
        )  # fmt: skip
    return _SHOWN[name]


def _largest(objects: np.ndarray) -> np.ndarray:
    """Return the mask of the object with the most voxels."""
    found: np.ndarray = objects == 1 + int(np.bincount(objects.ravel())[1:].argmax())
    return found


def _only(number: int, across: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask of one slice."""
    found = np.zeros(shape, bool)
    np.moveaxis(found, across, 0)[number] = True
    return found


def _slice(case: Case) -> int:
    """Return the place of the only slice that holds some of a cost case's target, along the array axis `across`."""
    return int(np.argwhere(case.target)[0][case.across])


# --- Cases made of others ---


def brighter(case: Case, number: int) -> Case:
    """Return the case with scans that no cache has seen, as `numbered` makes them."""
    return replace(case, volumes={name: numbered(volume, number) for name, volume in case.volumes.items()})


def numbered(volume: Volume, number: int) -> Volume:
    """Return a scan that no cache has seen: every voxel of the object is brighter by `number`, in the same dtype."""
    array = volume.array
    return Volume(np.where(array > 0, array + number, array).astype(array.dtype), volume.affine)


def padded(case: Case, shape: Index) -> Case:
    """Return the case in as much air as makes its scans `shape` voxels large; the patient stays where they were."""
    before = [(wanted - there) // 2 for wanted, there in zip(shape, case.shape, strict=True)]
    after = [wanted - there - b for wanted, there, b in zip(shape, case.shape, before, strict=True)]

    moved = np.eye(4)
    moved[:3, 3] = np.negative(before)
    i, j, k = before
    clicks = (replace(p, index=(p.index[0] + i, p.index[1] + j, p.index[2] + k)) for p in case.clicks)
    pad = list(zip(before, after, strict=True))
    larger = _changed(case, lambda array: np.pad(array, pad), lambda affine: affine @ moved)
    return replace(larger, clicks=tuple(clicks))


def repeated(case: Case, slices: int) -> Case:
    """Return the case with its target's slice `slices` times over and nothing else; clicks lie in the middle one."""
    if case.across is None:
        raise SamkitError("a case of volumes has no slices to repeat; this is a bug, report it")
    across, one = case.across, _slice(case)
    stacked = _changed(case, lambda array: np.repeat(np.take(array, [one], across), slices, across), np.copy)
    clicks = (replace(point, index=_with(point.index, across, float(slices // 2))) for point in case.clicks)
    return replace(stacked, clicks=tuple(clicks))


def _thick(case: Case) -> Case:
    """Return every _THICK-th slice of a case; the first stays where it is, and so does the affine's origin."""
    chosen = [slice(None)] * 3
    chosen[case.view().axes[0]] = slice(None, None, _THICK)
    steps = np.diag([float(part.step or 1) for part in chosen] + [1.0])
    return _changed(case, lambda array: np.ascontiguousarray(array[tuple(chosen)]), lambda affine: affine @ steps)


def _changed(
    case: Case, arrays: Callable[[np.ndarray], np.ndarray], affines: Callable[[np.ndarray], np.ndarray]
) -> Case:
    """Return the case with other arrays, targets too, and other affines; clicks are left alone."""
    volumes = {name: Volume(arrays(one.array), affines(one.affine)) for name, one in case.volumes.items()}
    return replace(case, volumes=volumes, targets={name: arrays(mask) for name, mask in case.targets.items()})


def _with(index: Triple, axis: int, value: float) -> Triple:
    i, j, k = (value if number == axis else place for number, place in enumerate(index))
    return i, j, k
