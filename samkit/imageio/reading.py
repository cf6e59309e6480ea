"""Files in: which reader a name means, and a scan, a label or a picture from it, through the gate that all share."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from samkit.errors import InputRefused, MissingDependencyError
from samkit.extras import how_to_install
from samkit.files import reason_of
from samkit.geometry import Index, Volume
from samkit.imageio import READERS
from samkit.imageio.gate import (
    MAX_BYTES,
    MAX_VOXELS,
    admit_header,
    admit_label,
    admit_scan,
    damage_refused,
    pick_volume,
)
from samkit.imageio.pictures import Picture, PictureMask, StoredPicture, mask_of, picture_of
from samkit.imageio.reader import Reader, Stored
from samkit.imageio.scan import Scan
from samkit.json_files import read_json


def read_scan(
    path: Path,
    *,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
    max_bytes: int = MAX_BYTES,
    one_slice: bool = False,
) -> Scan:
    """Return the scan in a file of any reader; raises InputRefused, MissingDependencyError.

    The array keeps the file's integer type, or is float32 where the file scales its values or holds floats. Trailing
    axes of length one are dropped; of a file of several volumes `volume` is which one is read, from 0 on, and without
    it such a file is refused. More than `max_voxels`, or than `max_bytes` of them as they are stored, are refused by
    the header; so is one slice, unless `one_slice` takes it: any axis may be one voxel long then.
    """
    reader, stored, files = _open(path)
    stored = stored if volume is None else pick_volume(stored, volume)
    scan = admit_scan(stored, reader, max_voxels=max_voxels, max_bytes=max_bytes, one_slice=one_slice)
    return replace(scan, modality=scan.modality or _modality_beside(path), files=files)


def read_label(path: Path, *, max_voxels: int = MAX_VOXELS, one_slice: bool = False) -> Volume:
    """Return the label in a file of any reader, whole numbers from 0 on, of an integer type; raises as `read_scan`."""
    reader, stored, _ = _open(path)
    return admit_label(stored, reader, max_voxels=max_voxels, one_slice=one_slice)


def read_geometry(path: Path, *, max_voxels: int = MAX_VOXELS, one_slice: bool = False) -> tuple[Index, np.ndarray]:
    """Return shape (I, J, K) and affine (4, 4) of a scan or label by its header alone; raises as `read_scan`."""
    reader, stored, _ = _open(path)
    shape = admit_header(stored, reader, max_voxels=max_voxels, one_slice=one_slice)
    return shape, np.array(stored.affine, np.float64)


def read_picture(path: Path) -> Picture:
    """Return the picture in a file of any reader; raises as `read_scan`."""
    return picture_of(_open_picture(path))


def read_picture_mask(path: Path) -> PictureMask:
    """Return the mask in a picture of any reader; raises as `read_scan`."""
    return mask_of(_open_picture(path))


def picture_shape(path: Path) -> tuple[int, int]:
    """Return height and width of a picture by its header alone; raises as `read_scan`."""
    return _open_picture(path).shape


def files_of(path: Path) -> tuple[Path, ...]:
    """Return all files that reading `path` touches; raises InputRefused where one is missing or none can be read."""
    return _present_files(path, _reader_of(path))


_MOST_JSON = 2**20
"""Bytes of the JSON beside a scan; dcm2niix writes a few thousand."""

# --- By name ---

SCAN_SUFFIXES = tuple(end for reader in READERS if reader.volume for end in reader.suffixes)
"""Ends of names of volumes."""
PICTURE_SUFFIXES = tuple(end for reader in READERS if reader.picture for end in reader.suffixes)
"""Ends of names of pictures."""


def named(*, pictures: bool) -> str:
    """Return how the formats of pictures, or of volumes, are called, for help.

    >>> named(pictures=True)
    'PNG, JPEG'
    """
    return ", ".join(reader.name for reader in READERS if bool(reader.picture) == pictures)


def is_scan(path: Path) -> bool:
    """Return whether the name is that of a volume."""
    return path.name.lower().endswith(SCAN_SUFFIXES)


def is_picture(path: Path) -> bool:
    """Return whether the name is that of a picture, and not of a hidden file."""
    return path.name.lower().endswith(PICTURE_SUFFIXES) and not path.name.startswith(".")


def stem_of(path: Path) -> str:
    """Return the file's name without its reader's suffix.

    >>> stem_of(Path("head_T1.nii.gz"))
    'head_T1'
    """
    ends = [end for reader in READERS for end in reader.suffixes if path.name.lower().endswith(end)]
    return path.name[: -max(map(len, ends))] if ends else path.name


def list_scans(paths: Iterable[Path]) -> list[Path]:
    """Return the volumes among `paths`, sorted, each one once however many files it has; hidden files are left out."""
    found: list[Path] = []
    parts: set[Path] = set()
    for path in sorted(paths):
        if path in parts or path.name.startswith(".") or not is_scan(path) or not path.is_file():
            continue
        found.append(path)
        with suppress(InputRefused):  # reading it will say what is wrong
            parts.update(files_of(path))
    return found


def _find_reader(path: Path) -> Reader | None:
    return next((reader for reader in READERS if path.name.lower().endswith(reader.suffixes)), None)


def _reader_of(path: Path) -> Reader:
    """Return the reader that the name means, ready to read; raises InputRefused and MissingDependencyError."""
    reader = _find_reader(path)
    if reader is None:
        dicom = path.is_dir() or path.suffix.lower() in (".dcm", ".ima", "")
        raise InputRefused(
            "unknown-format", f"{path.name} is of no format that is known, by its name",
            f"needed is one of {', '.join(SCAN_SUFFIXES + PICTURE_SUFFIXES)}"
            + "; convert DICOM first, for example with dcm2niix" * dicom,
        )  # fmt: skip
    if reader.module and find_spec(reader.module) is None:
        raise MissingDependencyError(
            f"{path.name} is read with {reader.module}, which is not installed; {how_to_install(reader.extra)}"
        )
    return reader


def _open(path: Path) -> tuple[Reader, Stored, tuple[Path, ...]]:
    """Return the reader of a volume, what its file states, and all its files; raises as `read_scan`."""
    reader = _reader_of(path)
    if reader.volume is None:
        raise InputRefused("picture", f"{path.name} is a picture", f"needed is one of {', '.join(SCAN_SUFFIXES)}")
    files = _present_files(path, reader)
    with damage_refused(path.name):
        return reader, reader.volume(path), files


def _modality_beside(path: Path) -> str:
    """Return the modality that dcm2niix's JSON beside a scan states; empty where there is none."""
    try:
        said = read_json(path.with_name(f"{stem_of(path)}.json"), _MOST_JSON)
    except ValueError:
        return ""  # nobody asked for this file, and it may be anything
    found = said.get("Modality") if isinstance(said, dict) else None
    return found.upper() if isinstance(found, str) and found.isalpha() and len(found) < 8 else ""


def _open_picture(path: Path) -> StoredPicture:
    reader = _reader_of(path)
    if reader.picture is None:
        raise InputRefused(
            "no-picture", f"{path.name} is no picture", f"needed is one of {', '.join(PICTURE_SUFFIXES)}"
        )
    _present_files(path, reader)
    return reader.picture(path)


def _present_files(path: Path, reader: Reader) -> tuple[Path, ...]:
    """Return the files of `path`; raises InputRefused where one is missing, can't be read, or is packed otherwise."""
    is_there = os.path.isdir(path.parent)  # noqa: PTH112 - Path.is_dir raises where nobody may look
    nowhere = "" if is_there else f", for there is no folder {path.parent}"
    _check_present(path, InputRefused("missing", f"there is no file {path.name}{nowhere}", "check the path"))
    with damage_refused(path.name):
        files = reader.files(path)
    for part in files:
        half = f"{part.name}, the other half of {path.name}, is missing"
        _check_present(part, InputRefused("missing", half, "give both files"))
    return files


def _check_present(path: Path, missing: InputRefused) -> None:
    try:
        # Opening a pipe would wait for whoever writes into it
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputRefused("not-a-file", f"{path.name} is no regular file", "copy what it holds to a file")
        with path.open("rb") as file:
            start = file.read(348)
    except (FileNotFoundError, NotADirectoryError):
        raise missing from None
    except OSError as error:
        reason = f"{path.name} can't be read ({reason_of(error)})"
        raise InputRefused("unreadable-file", reason, "check its path, and who may read it") from error
    name = path.name.lower()
    packed = next((plain for end, plain in _PACKED.items() if name.endswith(end)), None)
    if packed is not None and _is_plain(start):
        raise InputRefused(
            "not-packed", f"{path.name} is named as if gzip had packed it, and it did not",
            f"copy the file again, or give it a name that ends in {packed}",
        )  # fmt: skip
    plain = next((end for end, other in _PACKED.items() if name.endswith(other)), None)
    if plain is not None and start.startswith(_GZIP):
        raise InputRefused(
            "packed",
            f"{path.name} is packed by gzip, and its name does not say so",
            f"give it a name that ends in {plain}",
        )


def _is_plain(start: bytes) -> bool:
    """Return whether a file begins as a NIfTI or MGH file does that nobody packed; another name is all it needs."""
    return start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2") or start[:4] == b"\0\0\0\1"


_GZIP = b"\x1f\x8b"
_PACKED = {".nii.gz": ".nii", ".img.gz": ".img", ".hdr.gz": ".hdr", ".mgz": ".mgh"}
"""Ends of names of what gzip packed, and of the same unpacked."""
