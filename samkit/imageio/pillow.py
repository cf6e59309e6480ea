"""PNG and JPEG, by Pillow: pixels as they are stored, with all 16 bits, upright, and never from a damaged PNG."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samkit.errors import InputRefused, SamkitError
from samkit.imageio.pictures import Pixels, StoredPicture, check_picture_size
from samkit.imageio.reader import Reader

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

_ROTATION_TAG = 0x0112  # Exif's Orientation; values from 5 on swap rows and columns

_LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Pillow has no mode for colour of 16 bits: it keeps the byte that its raw mode calls the high one. PNG's numbers begin
with the high byte, so that the raw mode for the other order keeps the low one.
"""
_GREY_AND_ALPHA = "LA;16B"  # two numbers of two bytes, which are read as four bytes


def _open_picture(path: Path) -> StoredPicture:
    """Return a picture's size by its header; raises InputRefused where it is no picture."""
    try:
        with _opened(path) as image:
            width, height = image.size
            swapped = image.getexif().get(_ROTATION_TAG, 1) >= 5
            is_lossy = image.format == "JPEG"
    except Exception as error:  # Pillow's plugins raise what they like
        raise _refusal(path, error) from error
    return StoredPicture(
        path, (width, height) if swapped else (height, width), lambda: _read(path), is_lossy=is_lossy
    )  # fmt: skip


def _read(path: Path) -> Pixels:
    try:
        with _opened(path) as image:
            image.verify()  # checksums of a PNG, which decoding does not look at where it has what it needs
        with _opened(path) as image:
            raw = image.tile[0].args if image.format == "PNG" else None
            if raw == _GREY_AND_ALPHA:
                both = _decode(image, "RGBA")
                return Pixels(both[..., 0::2].astype(np.uint16) << 8 | both[..., 1::2])
            values = _decode(image)
            palette = image.getpalette() if image.mode == "P" else None
        if raw in _LOW_BYTES:
            values = values.astype(np.uint16)
            values <<= 8
            with _opened(path) as image:
                values |= _decode(image, _LOW_BYTES[raw])
    except Exception as error:
        raise _refusal(path, error) from error
    return Pixels(values, None if palette is None else np.array(palette, np.uint8).reshape(-1, 3))


def _decode(image: ImageFile, raw: str | None = None) -> np.ndarray:
    """Return (H, W) or (H, W, C), uint8 or uint16, upright; indices of a palette. `raw` is another raw mode of PNG."""
    from PIL import ImageOps  # only where there is a picture to read

    if raw is not None:
        image.tile = [tile._replace(args=raw) for tile in image.tile]
    ImageOps.exif_transpose(image, in_place=True)
    known = image.mode in ("1", "P", "L", "LA", "RGB", "RGBA", "I;16", "I")
    array = np.asarray(image if known else image.convert("RGB"))
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    return array if array.dtype == np.uint8 else array.astype(np.uint16, copy=False)


def _opened(path: Path) -> ImageFile:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
        image = Image.open(path, formats=("PNG", "JPEG"))
    try:
        check_picture_size(path.name, image.size)
    except InputRefused:
        image.close()
        raise
    return image


def _refusal(path: Path, error: Exception) -> SamkitError:
    from PIL import Image

    if isinstance(error, SamkitError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return InputRefused("too-large", f"{path.name} has more pixels than Pillow opens", "make it smaller first")
    # Pillow's own sentence may hold the whole path
    return InputRefused(
        "unreadable", f"{path.name} can't be read as PNG or JPEG ({type(error).__name__})", "save it again as PNG"
    )


READER = Reader("PNG, JPEG", (".png", ".jpg", ".jpeg"), picture=_open_picture, module="PIL", extra="formats")
