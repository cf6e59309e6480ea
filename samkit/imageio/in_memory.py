"""What a session is given instead of a file: nibabel's and SimpleITK's images, arrays with an affine, pictures.

All of it passes the gate that files pass, and is refused in the same sentences. SimpleITK is never imported for that:
who has an image of it has imported it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.analyze import AnalyzeImage
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Header, Nifti1Pair
from nibabel.spatialimages import SpatialImage

from samkit.errors import InputRefused, OptionError, PromptError
from samkit.files import given_path
from samkit.geometry import Volume, by
from samkit.imageio.forms import Forms
from samkit.imageio.gate import (
    MAX_BYTES,
    MAX_VOXELS,
    NOT_FINITE,
    PLAIN_NUMBERS,
    admit_scan,
    check_not_empty,
    pick_volume,
)
from samkit.imageio.itk import is_image, stored_image
from samkit.imageio.nifti import is_placed, read_voxels, unit_of
from samkit.imageio.pictures import check_picture_size
from samkit.imageio.reader import Reader, Stored, in_three
from samkit.imageio.reading import read_scan
from samkit.imageio.scan import Scan
from samkit.imageio.study import Study, check_max_bytes, check_no_volume, check_volume_number, read_study

COLOURS = 4
"""An array of three axes without an affine is a picture where the last one has so many channels at most."""
_TAKEN = (
    "a file's path, a nibabel or SimpleITK image, a numpy array with its affine=, a picture (H, W) or (H, W, 3), or a "
    "dict of them by sequence"
)
_MATRIX = "the affine, (4, 4), from voxel indices (i, j, k) to RAS+ millimetres"
_NIBABEL = Reader("nibabel", (), repair="repair its affine first")
_SIMPLEITK = Reader("SimpleITK", (), repair="repair its direction and spacing first")
_ARRAY = Reader("numpy", (), repair=f"give {_MATRIX}")


def study_of(
    image: Any,
    *,
    affine: Any = None,
    volume: int | None = None,
    channels: int = COLOURS,
    max_bytes: int = MAX_BYTES,
    assume_ras: bool = False,
    one_slice: bool = False,
) -> Study:
    """Return what is given to a session as a study; one that is a study has passed the gate, and is returned as it is.

    `image` is a path, a nibabel or SimpleITK image, a Volume, a numpy array, or a dict of them by sequence. Arrays
    share `affine` (4, 4), voxel index to RAS+ [mm]; without it an array (H, W), or (H, W, C) of at most `channels`, is
    a picture, 0..255. `volume` is which one, from 0 on, where there are several along a fourth axis. `max_bytes`,
    `assume_ras` and `one_slice` are as `read_study` has them; what is in memory already has no limit of bytes. No
    array is copied where its type may stay. Raises InputRefused at the gate, PromptError for anything else, OptionError
    for an affine that nothing needs.
    """
    if isinstance(image, Study):
        return image
    named: dict[str, Any] = dict(image) if isinstance(image, Mapping) else {"": image}
    if not named:
        raise PromptError("no image is given; give a file, or one for each of the method's sequences")
    if unnamed := [name for name in named if not isinstance(name, str)]:
        raise PromptError(
            f"{unnamed[0]!r:.40} is no name of a sequence; give a dict such as {{'t1c': ..., 't2w': ...}}"
        )
    check_volume_number(volume)
    check_max_bytes(max_bytes)
    for name, one in named.items():
        if not (isinstance(one, (str, os.PathLike, SpatialImage, Volume, np.ndarray)) or is_image(one)):
            made = "; numpy.asarray(image) makes an array of it" if _is_like_an_array(one) else ""
            raise PromptError(f"{_called('image', name)} is of the type {type(one).__name__}; give {_TAKEN}{made}")
        if isinstance(one, np.ndarray):
            _check_array(one, _array_called(name), affine, volume)
        if affine is not None and not isinstance(one, np.ndarray):
            raise OptionError(
                f"affine is given, and {_called('image', name)} is no array but has its own; leave it out"
            )
    files = {
        name: given_path(one, _called("image", name))
        for name, one in named.items()
        if isinstance(one, (str, os.PathLike))
    }
    if len(files) == len(named):
        return read_study(files, volume=volume, max_bytes=max_bytes, assume_ras=assume_ras, one_slice=one_slice)
    if len(named) == 1 and affine is None and is_picture_array(first := next(iter(named.values())), channels):
        check_no_volume(volume)
        return Study({}, {}, _checked_picture(first))
    scans = {name: _read(one, name, affine, volume, max_bytes, one_slice=one_slice) for name, one in named.items()}
    return Study(files, scans, None, volume, assume_ras)


def _read(image: Any, sequence: str, affine: Any, volume: int | None, max_bytes: int, *, one_slice: bool) -> Scan:
    """Return one image as a scan; raises InputRefused."""
    if isinstance(image, (str, os.PathLike)):
        return read_scan(Path(image), volume=volume, max_bytes=max_bytes, one_slice=one_slice)
    files: tuple[Path, ...] = ()
    if isinstance(image, SpatialImage):
        stored, kind = _of_nibabel(image, _called("image", sequence)), _NIBABEL
        files = tuple(Path(held.filename) for held in image.file_map.values() if held.filename)
    elif is_image(image):
        stored, kind = stored_image(image, _called("image", sequence)), _SIMPLEITK
    elif isinstance(image, Volume):
        stored, kind = _of_array(image.array, image.affine, _called("volume", sequence)), _ARRAY
    else:
        called = _array_called(sequence)
        if affine is None:
            raise InputRefused(
                "no-affine",
                f"{called} is {by(image.shape)} and does not say where its voxels lie",
                f"give {_MATRIX}: set_image(array, affine=affine)",
            )
        stored, kind = _of_array(image, affine, called), _ARRAY
    if not isinstance(getattr(image, "dataobj", None), ArrayProxy):
        max_bytes = stored.dtype.itemsize * MAX_VOXELS  # they lie in memory
    stored = stored if volume is None else pick_volume(stored, volume)
    scan = admit_scan(stored, kind, max_bytes=max_bytes, one_slice=one_slice)
    return replace(scan, files=files)


def _check_array(array: np.ndarray, called: str, affine: Any, volume: int | None) -> None:
    """Raise InputRefused or OptionError for what a scan or a picture in memory may not be, whichever it is."""
    check_not_empty(called, array.shape)
    if isinstance(array, np.ma.MaskedArray):
        raise InputRefused(
            "masked", f"{called} is a masked array, and a scan has a value everywhere", "give array.filled(value)"
        )
    if affine is None:
        return
    if array.shape == (4, 4) and np.ndim(affine) > 2:
        raise OptionError(f"{called} and the affine have changed places; call set_image(array, affine=affine)")
    if array.ndim == 2:
        raise OptionError(
            f"{called} is {by(array.shape)}, a picture, and an affine is for scans (I, J, K); "
            "leave the affine out, or give array[:, :, None] for a scan of one slice, which methods of slices take"
        )
    ahead = next((axis for axis, side in enumerate(array.shape) if side > 1), 0)
    if array.ndim >= 4 and 1 <= ahead <= array.ndim - 3 and max(array.shape[3:]) > 1 and volume is None:
        axes = "an axis" if ahead == 1 else f"{ahead} axes"
        raise InputRefused(
            "bad-shape",
            f"{called} is {by(array.shape)}, with {axes} of length one in front of (I, J, K)",
            f"give array[{', '.join('0' * ahead)}]",
        )


def _is_like_an_array(image: Any) -> bool:
    """Return whether numpy makes an array of it: a list, an image of Pillow, a tensor."""
    return isinstance(image, (list, tuple)) or hasattr(image, "__array__") or hasattr(image, "__array_interface__")


def _called(what: str, sequence: str) -> str:
    return f"the {what} for {sequence}" if sequence else f"the {what} given"


def _array_called(sequence: str) -> str:
    return f"the array for {sequence}" if sequence else "the array"


def _of_nibabel(image: SpatialImage, called: str) -> Stored:
    """Return what nibabel's image states: what a file of it would, and the same voxels as from its file."""
    data, shape, affine, forms, unit, placed = image.dataobj, tuple(image.shape), image.affine, None, "mm", True
    if isinstance(image, Nifti1Pair):
        header = _header_when_saved(image)
        affine, forms, unit = header.get_best_affine(), Forms.of_header(header), unit_of(header)
        placed = is_placed(header)
    elif isinstance(image, AnalyzeImage):  # a format that states no frame, unless the caller gave an affine
        placed = image.affine is not None and not np.allclose(image.affine, image.header.get_best_affine())

    def read(number: int) -> np.ndarray:
        if type(data) is ArrayProxy:  # those of other formats scale in their own ways
            return read_voxels(data, number)
        return _one_of(np.asanyarray(data), number)

    dtype = data.dtype if isinstance(data, (ArrayProxy, np.ndarray)) else image.get_data_dtype()
    return Stored(
        called, in_three(shape), _wide(dtype), affine, lambda: read(0), unit=unit, forms=forms, is_placed=placed,
        axes=min(len(shape), 3), voxels_of=read,
    )  # fmt: skip


def _header_when_saved(image: Nifti1Pair) -> Nifti1Header:
    """Return the header that nibabel would write: the image's affine counts where the header has another."""
    header = image.header.copy()
    if image.affine is not None and not np.allclose(image.affine, header.get_best_affine()):
        header.set_sform(image.affine, code="aligned")
        header.set_qform(image.affine, code="unknown")
    return header


def _of_array(array: np.ndarray, affine: Any, called: str) -> Stored:
    try:
        matrix = np.array(affine, np.float64)
    except (TypeError, ValueError) as error:
        raise InputRefused(
            "singular-affine", f"the affine of {called} is no array of numbers", _ARRAY.repair
        ) from error
    array = np.asarray(array)
    told: tuple[str, ...] = ()
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (3, 4):
        told = (
            f"{called}, {by(array.shape)} of 8 bits, is taken for a scan of {array.shape[2]} slices: if it is a "
            "picture in colour, give it without an affine to a method of slices",
        )
    return Stored(
        called, array.shape, _wide(array.dtype), matrix, lambda: _one_of(array, 0), warnings=told,
        voxels_of=lambda number: _one_of(array, number),
    )  # fmt: skip


def _wide(dtype: np.dtype) -> np.dtype:
    """Return the type that is judged: float16 becomes float32 without loss, which no format of scans holds."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def _one_of(array: np.ndarray, number: int) -> np.ndarray:
    """Return a volume (I, J, K) of an array whose further axes count volumes, the fourth fastest."""
    return array if array.ndim <= 3 else array.reshape(*array.shape[:3], -1, order="F")[..., number]


# --- Pictures ---


def is_picture_array(image: Any, channels: int = COLOURS) -> bool:
    """Return whether an image that comes without an affine is a picture of at most `channels`."""
    if not isinstance(image, np.ndarray):
        return False
    return image.ndim == 2 or (image.ndim == 3 and image.shape[2] <= max(channels, COLOURS))


def _checked_picture(array: np.ndarray) -> np.ndarray:
    """Return a picture (H, W) or (H, W, C), float32, 0..255; raises InputRefused."""
    if array.dtype.kind not in "uif":
        raise InputRefused("bad-datatype", f"the picture given holds {array.dtype.name} pixels", PLAIN_NUMBERS)
    height, width = array.shape[:2]
    check_picture_size("the picture given", (width, height))
    with np.errstate(over="ignore"):  # what overflows is told as such
        values = np.asarray(array, np.float32)
    if broken := int((~np.isfinite(values)).sum()):
        raise InputRefused(
            "not-finite", f"{broken} of {values.size} values of the picture given {NOT_FINITE}", "replace or scale them"
        )
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high > 255 or (array.dtype.kind == "f" and 0 < high <= 1):
        raise InputRefused(
            "picture-range",
            f"the picture given has values up to {high:g}{f' and down to {low:g}' if low < 0 else ''}, and black to "
            "white is 0 to 255",
            "scale it first, or give a scan with its affine=",
        )
    return values
