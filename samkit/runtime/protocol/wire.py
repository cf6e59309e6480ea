"""What client and server agree on: tensor names, how a scan travels, how an error does. Needs numpy alone.

A session's `request` and `answer` are JSON objects, each the one element of a BYTES tensor:

    {"op": "describe"}                                    -> what the server serves under this name
    {"op": "open", "sequences": [""], ...}  + volume      -> {"token": ..., ...}; options: plane, intensities, spacing,
                                                             "picture": true for a volume tensor (channel, H, W, 1),
                                                             "nonce": 16 to 128 random letters, by which the same sent
                                                             again opens no second session, "replaces": the token of a
                                                             session that ends once this one is open
    {"op": "click", "turn": 1, "point": [i, j, k], "label": 1}      one point, as in a clicks file
    {"op": "box", "turn": 2, "box": [i0, j0, k0, i1, j1, k1]}       one box
    {"op": "prompts", "turn": 3, "prompts": [...]}        several at once
    {"op": "check", "prompts": [...]}                     raises what those prompts would, changes nothing
    {"op": "decide" | "propagate" | "undo" | "redo" | "reset", "turn": n}
    {"op": "state"}                                       the whole mask: for a client that missed an answer
    {"op": "close"}

All but the first two carry the `token`. What changes a session has a `turn`, counted from 1: the same request with the
same turn, sent again after a lost connection, gets the same answer and happens once. Places are voxel indices, with
"world": true RAS+ millimetres. The answer tells the box of the mask that changed, and `changed` holds the labels there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from samkit import errors
from samkit.errors import InputRefused, SamkitError, ServingError, TensorMismatchError

VOLUMES = {"volume_uint8": "uint8", "volume_int16": "int16", "volume": "float32"}
"""Inputs that a scan may come in, (sequence, I, J, K), and their dtypes; exactly one of them is given."""
AFFINE = "affine"
"""(4, 4) float64: voxel index to world RAS+ [mm]."""
REQUEST, TOKEN, ANSWER, CHANGED = "request", "token", "answer", "changed"
"""Tensors of the session."""
PROMPTS, OPTIONS, MASK, REPORT = "prompts", "options", "mask", "report"
"""Tensors of the ensemble."""
PREPARED, TASK, FOUND, LOGITS, LABELS = "prepared", "task", "found", "logits", "labels"
"""Tensors between the ensemble's steps."""

_MARK = "samkit-error "


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


def decode(tensor: np.ndarray, name: str) -> Any:
    """Return what `encode` encoded; raises TensorMismatchError for anything else."""
    values = tensor.ravel().tolist()
    try:
        (value,) = values
        return json.loads(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise TensorMismatchError(
            f"tensor '{name}' holds {len(values)} element(s) and not one text of JSON; send it as BYTES [1]"
        ) from error


def text(tensor: np.ndarray) -> str:
    """Return the text that the one element of a BYTES tensor is, whatever its bytes."""
    return b"".join(tensor.ravel().tolist()).decode(errors="replace")


# --- Errors ---


def error_text(error: SamkitError) -> str:
    """Return `error` as the text of a Triton error; `read_error` makes it again."""
    data: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if error.options:  # a command at the other end spells them its way
        data |= {"text": error.text, "options": list(error.options)}
    if isinstance(error, InputRefused):
        data |= {"code": error.code, "reason": error.reason, "remedy": error.remedy, "parts": list(error.parts)}
    return _MARK + json.dumps(data)


def read_error(text: str) -> SamkitError | None:
    """Return the error that a Triton message carries, whatever the server put around it, or None.

    >>> raise read_error("in ensemble: " + error_text(errors.AtCapacity("16 sessions are open; close one")))
    Traceback (most recent call last):
    samkit.errors.AtCapacity: 16 sessions are open; close one
    """
    found = re.search(re.escape(_MARK) + r"(\{.*\})", text, re.DOTALL)
    if found is None:
        return None
    try:
        data = json.JSONDecoder().raw_decode(found[1])[0]
        kind = getattr(errors, data["type"], None)
        if not (isinstance(kind, type) and issubclass(kind, SamkitError)):
            kind = ServingError  # of a newer server
        options = tuple(str(name) for name in data.get("options", ()))
        if kind is InputRefused:
            return InputRefused(data["code"], *data["parts"], options=options)
        error: SamkitError = kind(data.get("text", data["message"]), options=options)
        return error
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
