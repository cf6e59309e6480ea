"""PNG and JPEG files as arrays: one reader for training and segmentation, so that both see the same pixels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samkit.errors import InputRefused
from samkit.imageio.reader import Reader

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 2**26
"""Pixels of the largest picture that is read: 8192 x 8192."""

_ROTATION_TAG = 0x0112  # Exif's Orientation; values from 5 on swap rows and columns


def picture_shape(path: Path) -> tuple[int, int]:
    """Return height and width, from the file's header alone; InputRefused where it is no picture."""
    with _open(path) as image:
        width, height = image.size
        swapped = image.getexif().get(_ROTATION_TAG, 1) >= 5
    return (width, height) if swapped else (height, width)


def read_picture(path: Path) -> np.ndarray:
    """Return a picture as (H, W, C) float32, 0..255: C is 3 for colour, and 1 for grey however it is stored.

    Transparency is left out. 16-bit pictures are scaled from their own least and largest value to 0..255, since
    scanners fill 16 bits in part only.
    """
    array = _pixels(path)
    if array.dtype.kind != "u" or array.dtype.itemsize > 1:  # 16 bits: uint16, or int32 in older files
        low, high = int(array.min()), int(array.max())
        array = (array.astype(np.float32) - low) * np.float32(255 / max(1, high - low))
    if array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    return np.ascontiguousarray(array if array.ndim == 3 else array[..., None], np.float32)


def read_picture_mask(path: Path) -> np.ndarray:
    """Return a mask (H, W), boolean: every pixel above zero, or from 128 on in a JPEG, which blurs its edges."""
    array = _pixels(path)
    if array.ndim == 3:
        array = array.max(axis=-1)
    return array >= 128 if path.suffix.lower() != ".png" else array > 0


def _pixels(path: Path) -> np.ndarray:
    """Return (H, W) or (H, W, 3) of 8 or 16 bits, upright."""
    from PIL import ImageOps  # only where there is a picture to read

    with _open(path) as image:
        try:
            if image.format == "PNG":
                with _open(path) as whole:
                    whole.verify()  # every part's sum, of which reading passes over those of the pixels
            upright = ImageOps.exif_transpose(image)
            if upright.mode not in ("1", "L", "RGB", "I", "I;16", "I;16B", "I;16L"):
                upright = upright.convert("L" if upright.mode == "LA" else "RGB")
            array = np.asarray(upright)
        except Exception as error:  # Pillow's plugins raise what they like
            raise _unreadable(path, error) from error
    return array.astype(np.uint8) * 255 if array.dtype == bool else array


def _open(path: Path) -> Image.Image:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            image = Image.open(path, formats=("PNG", "JPEG"))
    except Exception as error:
        raise _unreadable(path, error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise InputRefused(
            "too-large",
            f"{path.name} has {width} x {height} pixels, the limit is {MAX_PIXELS}",
            "make it smaller first",
        )
    return image


def _unreadable(path: Path, error: Exception) -> InputRefused:
    if isinstance(error, FileNotFoundError):
        return InputRefused("missing", f"there is no file {path.name}", "check the path")
    # Pillow's own sentence may hold the whole path
    return InputRefused(
        "unreadable", f"{path.name} can't be read as PNG or JPEG ({type(error).__name__})", "save it again as PNG"
    )


READER = Reader("PNG, JPEG", (".png", ".jpg", ".jpeg"), picture=read_picture, module="PIL", extra="formats")
