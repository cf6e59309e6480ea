"""Which reader a folder of the 2D methods needs, told by looking at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from samkit.errors import InputRefused
from samkit.imageio.reading import is_picture
from samkit.training.box_labels import IMAGES, LABELS, find_boxes
from samkit.training.image_folders import find_images
from samkit.training.slice_cases import FoundCases
from samkit.training.volume_slices import FREESURFER, VOLUMES, find_freesurfer, find_volumes

LAYOUTS: Mapping[str, str] = {
    "volumes": "one folder per case of co-registered scans",
    "freesurfer": "folders with an .mgz image and its labels",
    "images": "pictures with masks beside them, or images/ and masks/",
    "boxes": "images/ and labels/ with YOLO's text files",
}
"""What can be read, by the name that chooses it."""


def find_slice_cases(
    folder: Path,
    layout: str | None = None,
    *,
    sequences: Sequence[str] = (),
    patterns: Mapping[str, str] | None = None,
    plane: str | None = None,
) -> FoundCases:
    """Return the cases of `folder`, from names and headers alone; InputRefused where there is none.

    `layout` is one of LAYOUTS, None looks. `sequences` are the channels of `volumes`, in order, and `patterns` say
    which files they are (see `samkit.sequences`); `plane` is where volumes are cut, None for the layout's own: axial,
    or coronal for `freesurfer`.
    """
    if not folder.is_dir():
        raise InputRefused("no-data", f"there is no folder {folder}", _CHOICES)
    layout = layout or _look(folder)
    if layout == "volumes":
        return find_volumes(folder, sequences, patterns, plane or "axial")
    if layout == "freesurfer":
        return find_freesurfer(folder, plane or "coronal")
    if layout == "images":
        return find_images(folder)
    if layout == "boxes":
        return find_boxes(folder)
    raise InputRefused("unknown-layout", f"there is no layout '{layout}'", _CHOICES)


_CHOICES = "give " + "; or ".join(f"{words} ({name})" for name, words in LAYOUTS.items())


def _look(folder: Path) -> str:
    """Return the one layout whose files the folder holds."""
    files = [path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file()]
    boxed = {path.parent.parent for path in files if path.suffix == ".txt" and path.parent.name == LABELS}
    boxed = {own for own in boxed if (own / IMAGES).is_dir()}
    looks = {
        "volumes": any(path.name.lower().endswith(VOLUMES) for path in files),
        "freesurfer": any(path.name.lower().endswith(FREESURFER) for path in files),
        "images": any(is_picture(path) and path.parent.parent not in boxed for path in files),
        "boxes": bool(boxed),
    }
    found = [name for name, looks_so in looks.items() if looks_so]
    if not found:
        raise InputRefused("no-data", f"{folder} holds nothing to train on", _CHOICES)
    if len(found) > 1:
        raise InputRefused(
            "two-layouts", f"{folder} looks like {' and '.join(found)} at once",
            "keep one kind of data in it, or name the layout that is meant",
        )  # fmt: skip
    return found[0]
