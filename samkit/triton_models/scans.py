"""A scan out of the tensors of a request, checked; and prompts in its voxel indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from samkit.errors import GeometryError, InputRefused, PromptError, TensorMismatchError
from samkit.geometry import Volume, check_affine
from samkit.prompts import Prompt
from samkit.runtime.protocol import wire
from samkit.runtime.session.world import to_voxel

Tensors: TypeAlias = Mapping[str, np.ndarray | None]
"""Volume inputs and affine of a request; None for one that it does not have."""


def read_scan(
    tensors: Tensors, sequences: Sequence[str], max_voxels: int, *, is_picture: bool = False
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
    if is_picture:
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
    if not is_picture and len(sequences) not in (len(array), 0 if len(array) == 1 else -1):
        raise PromptError(
            f"{len(array)} volumes are sent and {len(sequences)} sequences named; name each of them, in order"
        )
    return array, np.array(affine, np.float64)


def volumes_of(array: np.ndarray, affine: np.ndarray, names: Sequence[str]) -> dict[str, Volume]:
    """Return voxels (sequence, I, J, K) as volumes by sequence; the name is empty where there is none."""
    return {name: Volume(voxels, affine) for name, voxels in zip(names or ("",), array, strict=True)}


def in_voxels(
    prompts: Sequence[Prompt], affine: np.ndarray | None, shape: Sequence[int], *, world: bool
) -> list[Prompt]:
    """Return prompts in voxel indices; with `world` they are RAS+ millimetres, of a scan of `affine` and `shape`.

    Raises PromptError for millimetres of a picture, which has no affine, and InputRefused for those outside the scan.
    """
    if not world:
        return list(prompts)
    if affine is None:
        raise PromptError('millimetres need a scan, and a picture has none; send pixels without "world"')
    return [to_voxel(prompt, affine, shape) for prompt in prompts]
