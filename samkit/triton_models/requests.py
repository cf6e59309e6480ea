"""What a request to the server says, checked: prompts and options out of JSON, a scan out of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samkit.errors import GeometryError, InputRefused, PromptError, TensorMismatchError
from samkit.geometry import Triple, Volume, check_affine
from samkit.prompts import Prompt, prompts_from_json
from samkit.runtime.protocol import wire
from samkit.runtime.session.world import to_voxel

_FINEST, _COARSEST = 1e-6, 1e6
"""Spacings that are taken [mm]: beyond them a grid's sides are no numbers to count with."""


_LONGEST = 128
"""Letters of a nonce or a token."""
OPENING = ("sequences", "plane", "intensities", "spacing", "picture")
"""Options of a session."""
ONE_CALL = ("sequences", "plane", "intensities", "spacing", "world", "propagate")
"""Options of the ensemble."""


@dataclass(frozen=True)
class Options:
    """How a scan is to be looked at; each is by default the method's own."""

    spacing: Triple | None = None
    """Of a 3D network's grid [mm]."""
    plane: str | None = None
    intensities: tuple[float, float] | None = None
    """What becomes black and white."""
    sequences: tuple[str, ...] = ()
    """Names of the volume tensor's first axis; none where the method takes one grey volume."""
    world: bool = False
    """Whether prompts are RAS+ millimetres."""
    propagate: bool = False
    """Whether masks of prompted slices lead on to their neighbours."""
    picture: bool = False
    """Whether the volume tensor is a picture, (channel, H, W, 1)."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Options:
        """Return the options among `data`; raises PromptError for one of a wrong kind."""
        spacing = _numbers(data, "spacing", 3)
        limits = _numbers(data, "intensities", 2)
        if spacing is not None and not (min(spacing) >= _FINEST and max(spacing) <= _COARSEST):
            raise PromptError(
                f"spacing is {list(spacing)}, needed are three numbers from {_FINEST:g} to {_COARSEST:g} [mm]; e.g. "
                "[1.5, 1.5, 1.5]"
            )
        if limits is not None and not limits[0] < limits[1]:
            raise PromptError(f"intensities are {list(limits)}, needed is the lower one first; e.g. [-160, 240]")
        plane, names = data.get("plane"), data.get("sequences") or []
        if plane is not None and not isinstance(plane, str):
            raise PromptError(
                f"plane is {plane!r:.100}, needed is a name such as 'axial'; leave it out for the method's own"
            )
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise PromptError(f"sequences are {names!r:.100}, needed is a list of names; e.g. ['t1c', 't2w', 't2f']")
        if len(set(names)) < len(names):
            raise PromptError(f"sequences are {names!r:.100}, where a name stands twice; name each volume differently")
        return cls(
            spacing=None if spacing is None else (spacing[0], spacing[1], spacing[2]),
            plane=plane,
            intensities=None if limits is None else (limits[0], limits[1]),
            sequences=tuple(names),
            world=read_flag(data, "world"),
            propagate=read_flag(data, "propagate"),
            picture=read_flag(data, "picture"),
        )


def check_keys(data: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Raise PromptError for a key that is none of `known`: a word that nobody reads may have said in which frame."""
    if unknown := sorted(set(data) - set(known)):
        raise PromptError(f"{what} does not know '{', '.join(unknown):.100}', it knows {', '.join(known)}; send those")


def read_text(data: Mapping[str, Any], name: str) -> str | None:
    """Return the text called `name`, None where it is not there; raises PromptError for anything but a short text."""
    value = data.get(name)
    if value is not None and not (isinstance(value, str) and len(value) <= _LONGEST):
        raise PromptError(f"{name} is {value!r:.100}, needed is a text of at most {_LONGEST} letters; send one")
    return value


def read_flag(data: Mapping[str, Any], name: str) -> bool:
    """Return whether `name` is true, false where it is not there; raises PromptError for anything but a boolean."""
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise PromptError(f"{name} is {value!r:.100}, needed is true or false; send it as a JSON boolean")
    return value


def _numbers(data: Mapping[str, Any], name: str, count: int) -> tuple[float, ...] | None:
    values = data.get(name)
    if values is None:
        return None
    wrong = PromptError(f"{name} is {values!r:.100}, needed are {count} numbers; send them as a JSON list")
    if not isinstance(values, list) or len(values) != count or any(isinstance(value, bool) for value in values):
        raise wrong
    try:
        numbers = tuple(float(value) for value in values if isinstance(value, (int, float)))
    except OverflowError:  # a whole number of hundreds of digits
        raise wrong from None
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise wrong
    return numbers


def read_prompts(entries: object, affine: np.ndarray | None, *, world: bool) -> list[Prompt]:
    """Return the prompts of a JSON list, as a clicks file has them, in voxel indices.

    With `world` they are RAS+ millimetres, and `affine` says where. Raises PromptError.
    """
    prompts = prompts_from_json(entries, "the request")
    if not world:
        return prompts
    if affine is None:
        raise PromptError('millimetres need a scan, and a picture has none; send pixels without "world"')
    return [to_voxel(prompt, affine) for prompt in prompts]


def read_scan(
    tensors: Mapping[str, np.ndarray | None], options: Options, max_voxels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels (sequence, I, J, K) and affine (4, 4), which is the identity for a picture.

    The voxels are the request's own memory, the affine is a copy. Raises TensorMismatchError unless exactly one volume
    input is given, InputRefused for one that is too large, holds what is no number, or is said to be a picture and is
    none, GeometryError for an affine that can't be used, PromptError for sequences that are not named one by one.
    """
    given = {name: tensor for name in wire.VOLUMES if (tensor := tensors.get(name)) is not None}
    if len(given) != 1:
        raise TensorMismatchError(
            f"{len(given)} of the inputs {', '.join(wire.VOLUMES)} are given, needed is exactly one; send the scan once"
        )
    ((name, array),) = given.items()
    wire.check_size(array.shape, max_voxels)
    wire.check_finite(array, name)
    affine = tensors.get(wire.AFFINE)
    if options.picture:
        if array.shape[3] != 1:
            raise InputRefused(
                "channels",
                f"the picture's tensor is {' x '.join(str(side) for side in array.shape)}, needed are channels, rows, "
                "columns and 1",
                "send a picture, or a scan without picture",
            )
        affine = np.eye(4)
    if affine is None:
        raise GeometryError("no affine is given, and a scan needs one; send voxel index to world RAS+ [mm] as (4, 4)")
    if affine.shape != (4, 4):
        raise GeometryError(f"the affine is {affine.shape}, needed is (4, 4); send voxel index to world RAS+ [mm]")
    check_affine(affine)
    if not options.picture and len(options.sequences) not in (len(array), 0 if len(array) == 1 else -1):
        raise PromptError(
            f"{len(array)} volumes are sent and {len(options.sequences)} sequences named; name each of them, in order"
        )
    return array, np.array(affine, np.float64)


def volumes_of(array: np.ndarray, affine: np.ndarray, names: Sequence[str]) -> dict[str, Volume]:
    """Return voxels (sequence, I, J, K) as volumes by sequence; the name is empty where there is none."""
    return {name: Volume(voxels, affine) for name, voxels in zip(names or ("",), array, strict=True)}
