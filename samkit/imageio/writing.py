"""Files out, complete or not at all: masks where their scans lie, volumes, pictures.

A written file names no patient: it has the geometry of its scan and no text, no extension, no time.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image

from samkit.errors import InputRefused, MissingDependencyError
from samkit.extras import how_to_install
from samkit.files import reason_of, replacing, write_whole
from samkit.geometry import Volume
from samkit.imageio.scan import Scan

MASK_SUFFIXES = (".nii", ".nii.gz")
PICTURE_SUFFIX = ".png"


def write_mask(path: Path, mask: np.ndarray, scan: Scan) -> None:
    """Write a mask or label map (I, J, K) as uint8 with the geometry of `scan`."""
    _write_beside(path, mask.astype(np.uint8), scan)


def write_logits(path: Path, logits: np.ndarray, scan: Scan) -> None:
    """Write logits (I, J, K) as float32 with the geometry of `scan`."""
    _write_beside(path, logits.astype(np.float32), scan)


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume that no file is behind, in its own type: an sform of code 2, no qform, no unit, as nibabel's."""
    _write_image(path, Nifti1Image(volume.array, volume.affine))


def write_picture(path: Path, labels: np.ndarray, *, is_mask: bool) -> None:
    """Write labels (H, W) as an 8-bit grey PNG; a mask becomes 0 and 255."""
    write_png(path, np.where(labels > 0, np.uint8(255), np.uint8(0)) if is_mask else labels)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W) or (H, W, 3), uint8; raises MissingDependencyError without Pillow."""
    write_whole(path, png_of(pixels))


def png_of(pixels: np.ndarray) -> bytes:
    """Return pixels (H, W) or (H, W, 3), uint8, as a PNG; raises MissingDependencyError without Pillow."""
    check_pillow()
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def check_pillow() -> None:
    """Raise MissingDependencyError where no picture can be written."""
    try:
        import PIL.Image  # noqa: F401 -- only where there is a picture to write; a client of a server has none
    except ImportError as error:
        raise MissingDependencyError(
            f"pictures need Pillow, which is not installed; {how_to_install('formats')}"
        ) from error


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise InputRefused unless a file can be written to `path` without touching one of `inputs`."""
    try:
        path.stat()  # not `exists`, which knows no links that go in circles, and no name that is too long
        there = True
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError as error:
        raise InputRefused(
            "output-place", f"{path.name} can't be written ({reason_of(error)})", "give another output"
        ) from error
    if not path.parent.is_dir():
        raise InputRefused(
            "output-folder", f"the folder of {path.name}, {path.parent}, does not exist", "make it first"
        )
    # `samefile` knows links and names that differ in case only.
    if there and any(p.exists() and path.samefile(p) for p in inputs):
        raise InputRefused(
            "output-is-input", f"{path.name} is one of the inputs and would be overwritten", "give another output name"
        )


def _write_beside(path: Path, array: np.ndarray, scan: Scan) -> None:
    array = array.reshape(array.shape[: scan.axes])
    header = scan.forms.header(array.shape, array.dtype)
    # With the header's own affine nibabel leaves the forms as they are.
    image = (Nifti2Image if scan.forms.version == 2 else Nifti1Image)(array, header.get_best_affine(), header)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    _write_image(path, image)


def _write_image(path: Path, image: Nifti1Image) -> None:
    with replacing(path) as file:
        if path.name.lower().endswith(".gz"):
            # No name and no time inside, so that equal masks are equal files.
            with gzip.GzipFile("", "wb", 3, file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)
