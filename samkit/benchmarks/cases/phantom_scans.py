"""What is clicked on when a session's cost is measured: a phantom, and a careful reader's clicks on it.

Clicks are simulated once, on a session, and given again to every session that is measured: then no time of a simulation
lies between them, and every run has the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from samkit.clicks import central_click
from samkit.errors import InputRefused, SamkitError
from samkit.geometry import Index, Triple, Volume
from samkit.manifest import ExportPlan
from samkit.methods import Method, SliceMethod, get_method
from samkit.phantoms import SEQUENCES, make_phantom, make_structures
from samkit.planes import PlaneView
from samkit.prompts import FOREGROUND, Point
from samkit.sequences import sequence_of

if TYPE_CHECKING:
    from samkit.runtime import Session

SEED = 7
SHAPES: Mapping[str | None, Index] = {
    None: (176, 208, 176),
    "full": (96, 96, 96),
    "small": (176, 208, 176),
    "tiny": (48, 48, 48),
}
"""Voxels of the phantom, of 1 mm, by the size of the network, None for a checkpoint's. That of `small` is as large as a
clinical head scan. That of `full` fits into half a patch: masks of random weights reach everywhere, and on a larger
scan would lead every click to many crops."""
_GREY = "flair"
"""What a method of one grey volume gets."""
_SHOWN: Mapping[str, str] = {str(sequence_of(name)): name for name in SEQUENCES}
"""What a phantom calls each sequence."""


@dataclass(frozen=True)
class Study:
    """Scans of one patient and what is clicked on them."""

    name: str
    volumes: Mapping[str, Volume]
    """By the method's sequences; the name is empty where it takes one grey volume."""
    target: np.ndarray
    """(I, J, K) bool: what the reader wants; of methods of slices, in one slice."""
    points: tuple[Point, ...] = ()
    """None where the method takes no prompt."""
    across: int | None = None
    """The array axis along which slices are counted; None for methods of volumes."""

    @property
    def shape(self) -> Index:
        """Return the voxels of each volume along its axes."""
        i, j, k = self.target.shape
        return i, j, k


def make_study(plan: ExportPlan, shape: Index) -> Study:
    """Return a phantom as the method of an export takes it, with its largest object; no clicks yet."""
    method = get_method(plan.method)
    volumes, objects = phantom_scans(method, plan.config, SEED, shape, _GREY)
    target = largest_object(objects)
    study = Study(f"phantom {SEED}", volumes, target)
    if not isinstance(method, SliceMethod):
        return study
    across = slice_axis(method, volumes)
    fullest = int(np.moveaxis(target, across, 0).sum(axis=(1, 2)).argmax())
    return replace(study, target=target & _only(fullest, across, shape), across=across)


def phantom_scans(
    method: Method, config: Any, seed: int, shape: Index, grey: str
) -> tuple[dict[str, Volume], np.ndarray]:
    """Return the scans of a phantom by the method's sequences, and its objects: structures where it names any.

    Objects are a volume of 0 and of each one's number. A method of one grey volume gets the sequence `grey`, by the
    empty name. Raises InputRefused for a sequence that phantoms do not have.
    """
    if isinstance(method, SliceMethod) and method.structures(config):
        volume, structures = make_structures(seed, shape)
        return {"": volume}, structures
    sequences = method.sequences(config) if isinstance(method, SliceMethod) else ()
    needed = {name: _shown(name, method) for name in sequences} or {"": grey}
    phantom = make_phantom(seed, shape, sequences=tuple(needed.values()))
    return {name: phantom.sequences[own] for name, own in needed.items()}, phantom.lesions


def _shown(name: str, method: Method) -> str:
    """Return what a phantom calls a sequence; raises InputRefused for one that it does not have."""
    if name not in _SHOWN:
        raise InputRefused(
            "unknown-sequence", f"phantoms have {', '.join(_SHOWN)}, and these weights of {method.name} take {name}",
            "measure them on scans with sam-bench accuracy --data",
        )  # fmt: skip
    return _SHOWN[name]


def largest_object(objects: np.ndarray) -> np.ndarray:
    """Return the mask of the object with the most voxels."""
    found: np.ndarray = objects == 1 + int(np.bincount(objects.ravel())[1:].argmax())
    return found


def slice_axis(method: SliceMethod, volumes: Mapping[str, Volume]) -> int:
    """Return the array axis along which a method counts slices."""
    first = next(iter(volumes.values()))
    i, j, k = first.array.shape
    return PlaneView.of((i, j, k), first.affine, method.plane).axes[0]


def with_clicks(study: Study, session: Session, plan: ExportPlan, clicks: int) -> Study:
    """Return the study with at most so many clicks, each in the middle of the worst error that `session` has left.

    They are all in the target's slice where the method is one of slices, and none where it takes no points. The session
    holds the study afterwards.
    """
    method = get_method(plan.method)
    open_study(session, study)
    if isinstance(method, SliceMethod) and "point" not in method.prompts:
        return study
    structure = next(iter(method.structures(plan.config)), "") if isinstance(method, SliceMethod) else ""
    seen = np.ones(study.shape, bool)
    if study.across is not None:
        seen = _only(int(np.argwhere(study.target)[0][study.across]), study.across, study.shape)
    points: list[Point] = []
    mask, target = session.mask(), study.target & seen
    while len(points) < clicks and (point := central_click(mask & seen, target)) is not None:
        points.append(replace(point, structure=structure))
        mask = click_on(session, points[-1])
    if not points:
        raise SamkitError(f"{plan.method} has no error on the {study.name} to click on; use another phantom")
    return replace(study, points=tuple(points))


def _only(number: int, across: int, shape: Index) -> np.ndarray:
    """Return the mask of one slice."""
    found = np.zeros(shape, bool)
    np.moveaxis(found, across, 0)[number] = True
    return found


# --- Studies made of it ---


def brighter(study: Study, number: int) -> Study:
    """Return the study with scans that no cache has seen, as `numbered` makes them."""
    return replace(study, volumes={name: numbered(volume, number) for name, volume in study.volumes.items()})


def numbered(volume: Volume, number: int) -> Volume:
    """Return a scan that no cache has seen: every voxel of the object is brighter by `number`, in the same dtype."""
    array = volume.array
    return Volume(np.where(array > 0, array + number, array).astype(array.dtype), volume.affine)


def padded(study: Study, shape: Index) -> Study:
    """Return the study in as much air as makes its scans `shape` voxels large; the patient stays where they were."""
    before = [(wanted - there) // 2 for wanted, there in zip(shape, study.shape, strict=True)]
    after = [wanted - there - b for wanted, there, b in zip(shape, study.shape, before, strict=True)]
    pad = list(zip(before, after, strict=True))

    def larger(volume: Volume) -> Volume:
        affine = volume.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ before
        return Volume(np.pad(volume.array, pad), affine)

    i, j, k = before
    moved = (replace(p, index=(p.index[0] + i, p.index[1] + j, p.index[2] + k)) for p in study.points)
    volumes = {name: larger(volume) for name, volume in study.volumes.items()}
    return replace(study, volumes=volumes, target=np.pad(study.target, pad), points=tuple(moved))


def repeated(study: Study, slices: int) -> Study:
    """Return the study with its target's slice `slices` times over and nothing else; points lie in the middle one."""
    if study.across is None:
        raise SamkitError("a study of volumes has no slices to repeat; this is a bug, report it")
    across = study.across
    one = int(np.argwhere(study.target)[0][across])

    def stack(array: np.ndarray) -> np.ndarray:
        return np.repeat(np.take(array, [one], across), slices, across)

    points = (replace(p, index=_with(p.index, across, float(slices // 2))) for p in study.points)
    volumes = {name: Volume(stack(volume.array), volume.affine) for name, volume in study.volumes.items()}
    return replace(study, volumes=volumes, target=stack(study.target), points=tuple(points))


def _with(index: Triple, axis: int, value: float) -> Triple:
    i, j, k = (value if number == axis else place for number, place in enumerate(index))
    return i, j, k


# --- What a reader does ---


def open_study(session: Session, study: Study) -> None:
    """Set the study's scans; a method that needs no prompt decides at once."""
    session.set_image(dict(study.volumes))


def click_on(session: Session, point: Point) -> np.ndarray:
    """Return the whole mask after a click."""
    return session.click(point.index, point.label == FOREGROUND, structure=point.structure).mask
