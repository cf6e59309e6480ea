"""NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd), through SimpleITK.

Both begin with lines of text. They say which files hold the voxels, which SimpleITK keeps to itself, and in which unit
lengths are and where one is missing, which it passes over: these few are read here. Everything else of a header is
SimpleITK's to read. Its world is LPS+ (x to the patient's left, y to the back), ours is RAS+.
"""

from __future__ import annotations

import gzip
import math
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samkit.errors import InputRefused
from samkit.imageio.gate import PLAIN_NUMBERS
from samkit.imageio.reader import GZIP, Reader, Stored, in_three, read_to_end

_TYPES = {
    "UInt8": "u1", "Int8": "i1", "UInt16": "u2", "Int16": "i2", "UInt32": "u4", "Int32": "i4", "UInt64": "u8",
    "Int64": "i8", "Float32": "f4", "Float64": "f8",
}  # fmt: skip
"""numpy's types by SimpleITK's, `sitkUInt8` and so on."""
_MOST_TEXT = 2**20
"""Bytes within which the lines of a header end."""
_LONGEST_NAME = 256
"""Bytes that no name of a file has."""
_LONGEST_WORDS = 250
"""Bytes of a field in _SHORT."""
_LONGEST_FIELD = 512
"""Bytes of a line of NRRD that SimpleITK (2.5.7) reads: where it has something against one of 1000 the process ends."""
_UNITS = {"mm": "mm", "millimeter": "mm", "m": "metres", "cm": "centimetres", "um": "micrometres"}
_SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las")
"""NRRD's spaces of patients; SimpleITK takes any other, and none at all, for LPS."""
_SHORT = frozenset(
    ("name", "comment", "objecttype", "objectsubtype", "acquisitiondate", "anatomicalorientation", "transformtype",
     "modality", "elementtype", "distanceunits")
)  # fmt: skip
"""Fields of MetaImage for whose words SimpleITK keeps room for 255 bytes, and does not look whether they fit."""
_PARSED = re.compile(rb"^(?!#|content:|[^\n]*:=)[^\n]+", re.MULTILINE)
"""Lines of NRRD in which SimpleITK looks for anything but free text."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_AGAIN = "write it again as .nrrd or .mha"


def _open_volume(path: Path) -> Stored:
    """Return what a file states; raises InputRefused, and whatever SimpleITK raises."""
    import SimpleITK as sitk  # noqa: N813 -- 100 MB of library, for these files alone

    said, voxels_at = _read_text(path)
    _check_sizes(path, said)
    sitk.ProcessObject.GlobalWarningDisplayOff()  # what matters in them is a warning or a refusal here
    file = sitk.ImageFileReader()
    file.SetFileName(str(path))
    file.SetImageIO("NrrdImageIO" if _is_nrrd(path) else "MetaImageIO")
    file.ReadImageInformation()
    shape, dtype = file.GetSize(), _dtype(file, file.GetNumberOfComponents(), path.name)
    count = math.prod(shape[:3]) * dtype.itemsize
    holder = _data_file(path, said)
    packed, shrunk = _packed(path, said, count)

    def check() -> None:
        _check_stream(path, holder, said, voxels_at, math.prod(shape) * dtype.itemsize)

    return Stored(
        path,
        in_three(shape),
        dtype,
        _affine(file),
        lambda: _read_one(file, shape, 0, check),
        voxels_of=lambda number: _read_one(file, shape, number, check),
        unit=_unit(said),
        holder=holder,
        bytes=packed and packed + (voxels_at if holder == path else 0),
        shrunk=shrunk,
        is_placed=_is_placed(path, said),
        axes=min(len(shape), 3),
        modality=_modality(file, said),
    )


def is_image(image: object) -> bool:
    """Return whether this is SimpleITK's image; only who has imported SimpleITK can have one."""
    library = sys.modules.get("SimpleITK")
    return library is not None and isinstance(image, library.Image)


def stored_image(image: Any, called: str) -> Stored:
    """Return what SimpleITK's image states, as a file of it would; raises InputRefused for voxels of no plain type."""
    import SimpleITK as sitk  # noqa: N813 -- the caller has it: this is its image

    shape, dtype = image.GetSize(), _dtype(image, image.GetNumberOfComponentsPerPixel(), called)

    def read(number: int) -> np.ndarray:
        voxels = sitk.GetArrayViewFromImage(image).transpose()  # SimpleITK's arrays are (..., K, J, I)
        return np.array(voxels.reshape(*shape[:3], -1, order="F")[..., number], order="F")

    return Stored(
        called, in_three(shape), dtype, _affine(image), lambda: read(0), axes=min(len(shape), 3),
        modality=_modality(image), voxels_of=read,
    )  # fmt: skip


def _read_one(file: Any, shape: tuple[int, ...], number: int, check: Callable[[], None]) -> np.ndarray:
    """Return one volume (I, J, K) of a file that passes `check`."""
    import SimpleITK as sitk  # noqa: N813 -- as above

    check()
    if shape[3:]:
        file.SetExtractSize((*shape[:3], *(0 for _ in shape[3:])))
        file.SetExtractIndex((0, 0, 0, *(int(n) for n in np.unravel_index(number, shape[3:], order="F"))))
    image = file.Execute()
    voxels = sitk.GetArrayViewFromImage(image)  # which does not keep the image
    kept = voxels.dtype if voxels.dtype.kind in "iu" else np.dtype(np.float32)
    return np.array(voxels, kept).transpose()  # one copy; SimpleITK's arrays are (K, J, I)


def _dtype(image: Any, parts: int, name: str) -> np.dtype:
    """Return the voxels' type of an image or of a file of `parts` values in each; raises InputRefused."""
    import SimpleITK as sitk  # noqa: N813 -- as above

    code = image.GetPixelID()
    dtype = next((np.dtype(own) for own_name, own in _TYPES.items() if getattr(sitk, f"sitk{own_name}") == code), None)
    if dtype is None:
        kind = f"{parts} values in each voxel" if parts > 1 else "voxels of no plain type"
        raise InputRefused("bad-datatype", f"{name} holds {kind}", PLAIN_NUMBERS)
    return dtype


def _affine(file: Any) -> np.ndarray:
    """Return the affine (4, 4) of an image of any number of axes, RAS+."""
    axes = file.GetDimension()
    own = min(axes, 3)
    affine = np.eye(4)
    direction = np.reshape(file.GetDirection(), (axes, axes))
    affine[:own, :own] = direction[:own, :own] * file.GetSpacing()[:own]
    affine[:own, 3] = file.GetOrigin()[:own]
    return _LPS_TO_RAS @ affine


def _modality(image: Any, said: Mapping[str, str] | None = None) -> str:
    """Return what an image or file says of its modality, in DICOM's words: under DICOM's tag, or MetaImage's key."""
    values = {key.lower(): image.GetMetaData(key) for key in image.GetMetaDataKeys()} | dict(said or {})
    found = values.get("0008|0060") or values.get("modality", "")
    found = found.strip().upper().removeprefix("MET_MOD_")
    return found if found.isalpha() and found not in ("UNKNOWN", "OTHER") else ""


def _read_text(path: Path) -> tuple[dict[str, str], int]:
    """Return what the lines at the start of a file say, by keys in lower case, and the byte after them."""
    with path.open("rb") as file:
        block = file.read(_MOST_TEXT)
    if _is_nrrd(path):
        found = re.match(rb"NRRD\d{4}\r?\n(.*?)(?:^\r?\n|\Z)", block, re.DOTALL | re.MULTILINE)
        line = re.compile(r"^([^#:\n][^:\n]*):[ \t]*([^=\s].*?)[ \t\r]*$", re.MULTILINE)
    else:
        found = re.match(rb"((?:\s*[\w|]+\s*=[^\n]*\n)*?\s*ElementDataFile\s*=[^\n]*(?:\n|\Z))", block)
        line = re.compile(r"^\s*([\w|]+)\s*=[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
    if not found or found.end() == _MOST_TEXT:
        name = "an NRRD" if _is_nrrd(path) else "a MetaImage"
        raise InputRefused("not-itk", f"{path.name} is not {name} file: no header at its start", _AGAIN)
    said = [(key.lower(), value) for key, value in line.findall(found.group(1).decode("utf-8", "replace"))]
    if broken := _unsafe_nrrd(found.group(1)) if _is_nrrd(path) else _unsafe_metaimage(said):
        raise InputRefused("bad-header", f"{path.name} {broken}", _AGAIN)
    return dict(said), found.end()


def _unsafe_nrrd(header: bytes) -> str:
    """Return what in a header of NRRD would end SimpleITK's process; empty where nothing would."""
    if re.search(rb"\r(?!\n)", header):  # a line's end to SimpleITK, so that no line below has the length it has there
        return "has a carriage return inside of a line of its header"
    longest = max(map(len, _PARSED.findall(header)), default=0)
    if longest <= _LONGEST_FIELD:
        return ""
    return f"has a line of {longest} bytes in its header, the limit is {_LONGEST_FIELD}"


def _unsafe_metaimage(said: Sequence[tuple[str, str]]) -> str:
    """Return what in the lines of a MetaImage would end SimpleITK's process; empty where nothing would."""
    for key, value in said:
        if key == "ndims" and not re.fullmatch(r"[1-9]|10", value.strip()):
            return f"states impossible dimensions, NDims {value:.20}"
        if key in _SHORT and len(value.encode("utf-8", "replace")) > _LONGEST_WORDS:
            return f"has more than {_LONGEST_WORDS} bytes in the field {key}"
    return ""


def _data_file(path: Path, said: Mapping[str, str]) -> Path:
    """Return the file with the voxels; raises InputRefused where there are several, or where it lies elsewhere."""
    name = said.get("data file", said.get("datafile", said.get("elementdatafile", "LOCAL")))
    if name == "LOCAL":
        return path
    if name.startswith("LIST") or "%" in name:
        raise InputRefused("several-files", f"{path.name} keeps its voxels in several files", _AGAIN)
    if not name.isprintable() or not 0 < len(name.encode("utf-8", "replace")) < _LONGEST_NAME:
        raise InputRefused("bad-header", f"{path.name} names no file that could hold its voxels", _AGAIN)
    if Path(name).name != name:
        raise InputRefused(
            "other-folder", f"{path.name} keeps its voxels in another folder", "put both files into one, and name it so"
        )
    return path.with_name(name)


def _packed(path: Path, said: Mapping[str, str], count: int) -> tuple[int, int]:
    """Return how many bytes the voxels, `count` bytes, take in the file at least, and GZIP where they are packed."""
    if _is_nrrd(path):
        encoding = said.get("encoding", "").lower()
        return (count, GZIP) if encoding in ("gz", "gzip") else (count if encoding == "raw" else 0, 1)
    if said.get("compresseddata", "").lower() == "true":
        size = said.get("compresseddatasize", "")
        return (int(size), 1) if size.isdecimal() else (count, GZIP)
    return 0 if said.get("binarydata", "").lower() == "false" else count, 1


def _check_stream(path: Path, holder: Path, said: Mapping[str, str], voxels_at: int, size: int) -> None:
    """Unpack compressed voxels, `size` bytes, to the end: SimpleITK stops before the sums that tell damage.

    Raises what the stream raises where they differ, and EOFError where it ends before them.
    """
    with holder.open("rb") as file:
        file.seek(voxels_at if holder == path else 0)
        if _is_nrrd(path) and said.get("encoding", "").lower() in ("gz", "gzip"):
            for _ in range(int(said.get("line skip", "0"))):
                file.readline()
            with gzip.GzipFile(fileobj=file) as stream:
                read_to_end(stream, size)
        elif not _is_nrrd(path) and said.get("compresseddata", "").lower() == "true":
            file.seek(max(0, int(said.get("headersize", "0"))), 1)
            unpacker = zlib.decompressobj()
            while not unpacker.eof:
                if not (block := file.read(2**14)):
                    raise EOFError("the compressed voxels have no end")
                unpacker.decompress(block)


def _unit(said: Mapping[str, str]) -> str:
    """Return the unit of lengths, of which NRRD may state one for each axis of the space."""
    stated = {word.strip().lower() for word in re.findall(r'"([^"]*)"', said.get("space units", ""))} - {""}
    return " and ".join(sorted({_UNITS.get(word, f"'{word}'") for word in stated})) or "mm"


def _check_sizes(path: Path, said: Mapping[str, str]) -> None:
    """Raise InputRefused for voxel sizes that SimpleITK would replace, and for what it would talk of, or overlook."""
    if not _is_nrrd(path) and "dimsize" not in said:
        raise InputRefused("bad-header", f"{path.name} states no sizes (DimSize)", _AGAIN)
    if not _is_nrrd(path) and (parts := said.get("elementnumberofchannels", "1")) != "1":
        raise InputRefused("bad-datatype", f"{path.name} holds {parts:.20} values in each voxel", PLAIN_NUMBERS)
    sizes = said.get("elementspacing", said.get("elementsize", "1")).split()
    if any(re.fullmatch(r"[-+]?0*\.?0*(?:e.*)?", size, re.IGNORECASE) for size in sizes):
        raise InputRefused("singular-affine", f"{path.name} states voxels of no size", _AGAIN)


def _is_placed(path: Path, said: Mapping[str, str]) -> bool:
    """Return whether a file says where its voxels lie in a patient; SimpleITK takes it for granted."""
    if _is_nrrd(path):
        return said.get("space", "").lower() in _SPACES and "space directions" in said
    return any(key in said for key in ("transformmatrix", "rotation", "orientation"))


def _is_nrrd(path: Path) -> bool:
    return path.name.lower().endswith((".nrrd", ".nhdr"))


def _files(path: Path) -> tuple[Path, ...]:
    return tuple(dict.fromkeys((path, _data_file(path, _read_text(path)[0]))))


READER = Reader(
    "NRRD, MetaImage",
    (".nrrd", ".nhdr", ".mha", ".mhd"),
    volume=_open_volume,
    files=_files,
    module="SimpleITK",
    extra="formats",
    repair=_AGAIN,
)
