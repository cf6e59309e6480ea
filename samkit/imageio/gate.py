"""What every scan and every label has to be, whatever its format.

A header is judged before the voxels are read, and they are read only when their number is known to be acceptable:
files promise terabytes, affines of NaN, structured voxels. Messages name files and not the
folders that hold them, which may be patients'. What is given in memory is judged as a file is, header first.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from samkit.errors import GeometryError, InputRefused, SamkitError
from samkit.geometry import Index, Volume, check_affine, spacing_of
from samkit.imageio.forms import Forms
from samkit.imageio.frames import judge_frames
from samkit.imageio.reader import Reader, Stored
from samkit.imageio.scan import Scan

MAX_VOXELS = 2**29
"""Voxels of the largest scan that is read: about 812 x 812 x 812; a whole-body CT has a third of it."""
MAX_BYTES = 2**31
"""Bytes of its voxels, unpacked and as the file stores them: MAX_VOXELS of 32 bits. A small file may state more."""
MAX_LABEL = 2**20
"""The largest value of a label; FreeSurfer's own end at 14175."""

_LONGEST = 2**15 - 1
"""Voxels along an axis that the header of a mask, NIfTI-1, can state."""
_DTYPES = frozenset(np.dtype(t) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"))
_ROUND_OFF = 1e-3
"""How far a label's value may lie from a whole number: scaled integers do not come back exactly."""


def admit_scan(
    stored: Stored,
    reader: Reader,
    *,
    max_voxels: int = MAX_VOXELS,
    max_bytes: int = MAX_BYTES,
    one_slice: bool = False,
) -> Scan:
    """Return the scan in an open file; raises InputRefused."""
    shape = admit_header(stored, reader, max_voxels=max_voxels, max_bytes=max_bytes, one_slice=one_slice)
    name, array = stored.name, _voxels(stored)
    _check_finite(array, name)
    low, high = array.min(), array.max()
    if low == high:
        raise InputRefused("constant", f"all voxels of {name} have the value {low:g}", "give a scan with contrast")
    if high <= 0:
        raise InputRefused(
            "no-positive-voxel",
            f"{name} has no voxel above zero (largest {high:g}), so its z-score is undefined",
            "shift the intensities so that tissue is positive",
        )
    affine = _affine(stored)
    forms = stored.forms or Forms.of_affine(affine)
    told, doubt = judge_frames(name, shape, affine, stored.forms, is_placed=stored.is_placed)
    return Scan(
        Volume(array, affine),
        forms,
        reader.name,
        name,
        stored.holder or _path(stored),
        (*stored.warnings, *told, *_unusual(affine)),
        axes=stored.axes,
        doubt=doubt,
        modality=stored.modality,
    )


def admit_label(stored: Stored, reader: Reader, *, max_voxels: int = MAX_VOXELS, one_slice: bool = False) -> Volume:
    """Return the label in an open file, integers from 0 on; raises InputRefused."""
    admit_header(stored, reader, max_voxels=max_voxels, one_slice=one_slice)
    return Volume(labels_of(_voxels(stored), stored.name), _affine(stored))


def labels_of(array: np.ndarray, name: str) -> np.ndarray:
    """Return values as labels, of an integer type: whole numbers from 0 on, and what lies within 1e-3 of them.

    Anything else is an interpolated label, or an image. Raises InputRefused that names some of the values found.
    """
    whole = array if array.dtype.kind in "iu" else np.rint(array)
    with np.errstate(invalid="ignore"):  # infinite less infinite
        is_label = (whole >= 0) & (whole <= MAX_LABEL)
        if array.dtype.kind == "f":
            is_label &= np.abs(array - whole) <= _ROUND_OFF
    if not is_label.all():
        values = np.unique(array[~is_label])
        some = ", ".join(f"{value:.6g}" for value in values[:_NAMED])
        more = f" and {values.size - _NAMED} more" if values.size > _NAMED else ""
        count = array.size - np.count_nonzero(is_label)
        raise InputRefused(
            "label-values", f"{count} of {array.size} voxels of {name} hold what is no label: {some}{more}", _LABEL
        )
    # MAX_LABEL fits into int32, and as an index any integer will do
    return whole.astype(np.int32, copy=False) if whole.dtype.itemsize > 2 else whole


_LABEL = (
    "give the label and not an image, whole numbers from 0 on, one for each structure; if it was resampled, do it "
    "again by the nearest neighbour"
)
_NAMED = 5
"""Values of a label that are named where they are refused."""


def pick_volume(stored: Stored, number: int) -> Stored:
    """Return the volume of a number, 0 the first, as if it were alone; raises InputRefused where there is none."""
    count, read = math.prod(stored.shape[3:]), stored.voxels_of
    if not 0 <= number < count or (count > 1 and read is None):
        held = "volumes that can't be read one by one" if 0 <= number < count else f"{count} volume(s)"
        raise InputRefused(
            "no-such-volume",
            f"{stored.name} holds {held}, and number {number} is asked for, counted from 0",
            "leave {volume} out" if count == 1 else f"give {{volume}} from 0 to {count - 1}",
            options=("volume",),
        )
    if count == 1 or read is None:
        return stored
    return replace(stored, shape=stored.shape[:3], voxels=lambda: read(number))


@contextmanager
def options_offered() -> Iterator[None]:
    """Let the refusals of several volumes and of many bytes say which option helps, where there are these options."""
    try:
        yield
    except InputRefused as refused:
        if refused.remedy not in _OFFERS:
            raise
        option, remedy = _OFFERS[refused.remedy]
        raise InputRefused(refused.code, refused.reason, remedy, options=(option,)) from refused


ONE_VOLUME = "give one volume, for example one sequence or time"
FEWER_BYTES = "store it with fewer bits, or crop it first"
_OFFERS = {
    ONE_VOLUME: ("volume N", "say which one by {volume N}, 0 is the first"),
    FEWER_BYTES: ("max_bytes N", f"{FEWER_BYTES}, or raise the limit by {{max_bytes N}}"),
}
"""For a remedy the option that helps, too, and a remedy that says so."""


def admit_header(
    stored: Stored,
    reader: Reader,
    *,
    max_voxels: int = MAX_VOXELS,
    max_bytes: int = MAX_BYTES,
    one_slice: bool = False,
) -> Index:
    """Return the shape (I, J, K) of an open file; raises InputRefused for what its header states.

    `one_slice` is whether an axis may be one voxel long, whichever it is: for methods of slices.
    """
    name, shape = stored.name, stored.shape
    text = " x ".join(str(n) for n in shape)
    check_not_empty(name, shape)
    if any(n > 1 for n in shape[3:]):
        raise InputRefused("not-3d", f"{name} is {text}: more than one volume", ONE_VOLUME)
    if len(shape) < 2 or shape[:3].count(1) > 1:
        raise InputRefused("not-3d", f"{name} is {text}: a line of voxels, not an image", "give a 3D scan")
    if len(shape) < 3:
        raise InputRefused("not-3d", f"{name} is {text}: a slice, not a volume", "give it a third axis, of length one")
    i, j, k = shape[:3]
    if not one_slice:
        check_several_slices(name, shape)
    longest = math.inf if stored.forms else _LONGEST  # a NIfTI file's own header did state it
    if i * j * k > max_voxels or max(i, j, k) > longest:
        raise InputRefused(
            "too-large", f"{name} states {text} voxels, the limit is {max_voxels}", "crop or resample the scan first"
        )
    if stored.dtype.newbyteorder("=") not in _DTYPES:
        raise InputRefused("bad-datatype", f"{name} holds {stored.dtype.name} voxels", PLAIN_NUMBERS)
    if (size := i * j * k * stored.dtype.itemsize) > max_bytes:
        raise InputRefused(
            "too-large",
            f"{name} states {text} voxels of {stored.dtype.itemsize} bytes, {size} in all, the limit is {max_bytes}",
            FEWER_BYTES,
        )
    if stored.unit not in ("mm", ""):
        remedy = "write it again in mm, units code 2" if stored.forms else "write it again in mm"
        raise InputRefused("bad-units", f"{name} states its geometry in {stored.unit}, needed is mm", remedy)
    holder = stored.holder or _path(stored)
    if stored.bytes and holder is not None and (size := holder.stat().st_size) * stored.shrunk < stored.bytes:
        raise InputRefused(
            "truncated",
            f"{holder.name} is truncated: {size} bytes can't hold the {stored.bytes} its header states",
            "copy the file again",
        )
    try:
        # Without forms they are made from it: what is finite in a file of other types may not be in a mask's header
        check_affine(stored.affine if stored.forms else _in_header(stored.affine))
    except GeometryError as error:
        raise InputRefused("singular-affine", f"{name}: {str(error).partition('; ')[0]}", reader.repair) from error
    return i, j, k


def check_several_slices(name: str, shape: Sequence[int]) -> None:
    """Raise InputRefused for one slice, (I, J, K) or with further axes, whichever axis is one voxel long."""
    if 1 in shape[:3]:
        raise InputRefused(
            "not-3d",
            f"{name} is {' x '.join(str(n) for n in shape)}: a slice, not a volume",
            "give a 3D scan of several slices, or use a 2D method, such as medsam",
        )


def check_not_empty(name: str, shape: Sequence[int]) -> None:
    """Raise InputRefused where an axis has no length."""
    if 0 in shape:
        raise InputRefused(
            "empty", f"{name} is {' x '.join(str(n) for n in shape)}: it has no voxels", "give one that holds an image"
        )


NOT_FINITE = "are NaN or infinite, or too large for float32"
PLAIN_NUMBERS = "convert it to integers or floats of up to 64 bits, one number per voxel"


@contextmanager
def damage_refused(name: str) -> Iterator[None]:
    """Turn whatever reading a broken file raises into InputRefused."""
    try:
        yield
    except SamkitError:
        raise
    # Broken files raise five families of exceptions, ill-typed ones as well: all of them mean this.
    except Exception as error:
        raise InputRefused(
            "truncated" if isinstance(error, (EOFError, OSError, zlib.error)) else "not-readable",
            f"the voxels of {name} can't be read: the file is truncated or damaged",
            "copy or convert the file again",
        ) from error


def _path(stored: Stored) -> Path | None:
    return None if isinstance(stored.path, str) else stored.path


def _affine(stored: Stored) -> np.ndarray:
    """Return the affine (4, 4): of a file as a mask's header holds it, so that the mask lies where the scan does, bit
    for bit; of what is in memory the caller's own.
    """
    affine = np.array(stored.affine, np.float64)
    return affine if stored.forms or _path(stored) is None else _in_header(affine)


def _in_header(affine: np.ndarray) -> np.ndarray:
    """Return the affine (4, 4) as a mask's header, float32, holds it; what overflows is Inf."""
    with np.errstate(over="ignore"):
        return np.asarray(affine, np.float64).astype(np.float32).astype(np.float64)


def _voxels(stored: Stored) -> np.ndarray:
    """Return the values (I, J, K): integers as they are, anything else float32."""
    with damage_refused(stored.name), np.errstate(over="ignore"):  # what overflows is reported as Inf
        array = np.asarray(stored.voxels())
        array = array[..., None] if array.ndim == 2 else array
        if (array := array.reshape(array.shape[:3])).shape != stored.shape[:3]:
            raise EOFError("other voxels than the header states")
        dtype = array.dtype.newbyteorder("=") if array.dtype.kind in "iu" else np.dtype(np.float32)
        return array.astype(dtype, copy=False)


def _check_finite(array: np.ndarray, name: str) -> None:
    if array.dtype.kind != "f":
        return
    parts = array if array.flags.c_contiguous else np.moveaxis(array, 2, 0)  # as they lie in memory
    broken = sum(int((~np.isfinite(part)).sum()) for part in parts)
    if broken:
        raise InputRefused(
            "not-finite",
            f"{broken} of {array.size} voxels of {name} {NOT_FINITE}",
            "replace them first, for example by the value of air, or scale them",
        )


def _unusual(affine: np.ndarray) -> list[str]:
    """Return what is unusual about an affine, in sentences."""
    warnings = []
    sizes = spacing_of(affine)
    if min(sizes) < 0.05 or max(sizes) > 20:
        warnings.append(f"unusual voxel size {' x '.join(f'{s:g}' for s in sizes)} mm: is the header right?")
    unit = affine[:3, :3] / sizes
    skew = float(np.abs(unit.T @ unit - np.eye(3)).max())
    if skew > 1e-3:
        warnings.append(f"the axes are not at right angles (cosine {skew:.3g}): gantry tilt? The grid follows them")
    return warnings
