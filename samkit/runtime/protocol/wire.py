"""What client and server agree on besides records: names of tensors, how a scan travels, how JSON does. Needs numpy.

A session's `request` and `answer` are JSON objects, each the one element of a BYTES tensor: requests.py and answers.py
have their records. With an answer comes `changed`, the labels in the box that it tells of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from samkit.errors import InputRefused, TensorMismatchError
from samkit.json_files import parse_json

VOLUMES = {"volume_uint8": "uint8", "volume_int16": "int16", "volume": "float32"}
"""Inputs that a scan may come in, (sequence, I, J, K), and their dtypes; exactly one of them is given."""
AFFINE = "affine"
"""(4, 4) float64: voxel index to world RAS+ [mm]."""
REQUEST, TOKEN, ANSWER, CHANGED = "request", "token", "answer", "changed"
"""Tensors of the session."""
MOST_JSON = 2**20
"""Bytes of JSON in one tensor that a server reads."""
PROMPTS, OPTIONS, MASK, REPORT = "prompts", "options", "mask", "report"
"""Tensors of the ensemble."""
PREPARED, TASK, FOUND, LOGITS, LABELS = "prepared", "task", "found", "logits", "labels"
"""Tensors between the ensemble's steps."""


# --- Scans ---


def pack_volumes(arrays: Sequence[np.ndarray]) -> tuple[str, np.ndarray]:
    """Return name and value (sequence, I, J, K) of the input that holds `arrays`, all of one shape, exactly.

    Bytes and 16-bit integers travel as they are. All else becomes float32, which is what every computation begins with.
    """
    for name, dtype in VOLUMES.items():
        if all(array.dtype == dtype for array in arrays):
            return name, np.stack(arrays)
    return "volume", np.stack([np.asarray(array, np.float32) for array in arrays])


def check_size(shape: Sequence[int], max_voxels: int) -> None:
    """Raise InputRefused for a volume tensor (sequence, I, J, K) that is no scan or has more than `max_voxels`."""
    text = " x ".join(str(side) for side in shape)
    if len(shape) != 4 or min(shape) < 1:
        raise InputRefused(
            "not-3d", f"the volume tensor is {text}, needed are sequence, I, J and K", "send one scan or its sequences"
        )
    if math.prod(shape) > max_voxels:
        raise InputRefused(
            "too-large", f"the volume tensor has {text} voxels, this server's limit is {max_voxels}",
            "crop or resample the scan first",
        )  # fmt: skip


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise InputRefused where a float tensor holds NaN or infinity."""
    if array.dtype.kind == "f" and not all(np.isfinite(part).all() for part in array):
        raise InputRefused(
            "not-finite", f"tensor '{name}' holds values that are NaN or infinite", "replace them first, e.g. by air"
        )


# --- JSON ---


def encode(data: object) -> np.ndarray:
    """Return `data` as the BYTES tensor (1,) that holds its JSON."""
    return np.array([json.dumps(data).encode()], object)


def decode(tensor: np.ndarray, name: str, *, most: float = math.inf) -> Any:
    """Return what `encode` encoded; raises TensorMismatchError for anything else, and for more than `most` bytes."""
    values = tensor.ravel().tolist()
    try:
        (value,) = values
        if len(value) > most:
            raise TensorMismatchError(
                f"tensor '{name}' holds {len(value)} bytes of JSON, and a server reads {most}; send no more"
            )
        return parse_json(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise TensorMismatchError(
            f"tensor '{name}' holds {len(values)} element(s) and not one text of JSON; send it as BYTES [1]"
        ) from error


def text(tensor: np.ndarray) -> str:
    """Return the text that the one element of a BYTES tensor is, whatever its bytes."""
    return b"".join(tensor.ravel().tolist()).decode(errors="replace")
