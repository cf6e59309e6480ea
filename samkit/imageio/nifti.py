"""NIfTI-1 and NIfTI-2: single files and pairs, plain or gz.

nibabel opens almost anything and mends some of it silently. So the header is judged here first, from its own few
hundred bytes: what no NIfTI file may state is refused before nibabel sees it. What no scan may be is the gate's.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.imageglobals import logger as nibabel_log
from nibabel.nifti1 import Nifti1Header, xform_codes
from nibabel.nifti2 import Nifti2Header
from nibabel.openers import ImageOpener

from samkit.errors import InputRefused
from samkit.imageio.forms import Forms
from samkit.imageio.gate import PLAIN_NUMBERS
from samkit.imageio.reader import GZIP, Reader, Stored, in_three, read_array, read_to_end

_MAGIC = {b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0"}
_MAX_OFFSET = 2**24
"""Header extensions beyond 16 MiB are no header extensions."""
_UNITS = {0: "", 1: "metres", 2: "mm", 3: "micrometres"}
_FORM_CODES = frozenset(int(code) for code in xform_codes.value_set()) - {0}
"""What sform_code and qform_code may be where there is such a form; nibabel takes any other for 0."""
_CONVERT = "convert the scan to NIfTI, for example with dcm2niix"
_REPAIR = "repair the file's sform or qform first"


def _halves(path: Path) -> tuple[Path, Path]:
    """Return the files that hold header and voxels: the same one, or the two of a pair."""
    compressed = path.name[-3:] if path.name.lower().endswith(".gz") else ""
    stem = path.name.removesuffix(compressed)
    if stem.lower().endswith(".nii"):
        return path, path
    header, voxels = (".HDR", ".IMG") if stem[-4:].isupper() else (".hdr", ".img")
    return path.with_name(f"{stem[:-4]}{header}{compressed}"), path.with_name(f"{stem[:-4]}{voxels}{compressed}")


def _open_volume(path: Path) -> Stored:
    """Return what a file states; raises InputRefused, and whatever nibabel raises."""
    header_path, voxels_path = _halves(path)
    stated = _read_header(header_path, voxels_path)
    _check_fields(stated, path.name)
    if header_path != voxels_path and _is_packed(header_path):
        with ImageOpener(header_path) as file:  # a single file's stream ends behind its voxels
            read_to_end(file)
    with _silent_nibabel():
        # Never the extensions: each states its own length, and nothing in them is used
        header = type(stated)(stated.binaryblock, stated.endianness)
    dtype = header.get_data_dtype()
    shape = tuple(int(n) for n in stated["dim"][1 : int(stated["dim"][0]) + 1])
    proxy = ArrayProxy(voxels_path, header)
    return Stored(
        path,
        in_three(shape),
        dtype,
        np.array(header.get_best_affine(), np.float64),
        lambda: read_voxels(proxy),
        voxels_of=lambda number: read_voxels(proxy, number),
        unit=unit_of(stated),
        forms=Forms.of_header(header),
        is_placed=is_placed(header),
        holder=voxels_path,
        bytes=math.prod(shape[:3]) * dtype.itemsize + int(stated["vox_offset"]),
        shrunk=GZIP if _is_packed(voxels_path) else 1,
        axes=min(len(shape), 3),
        warnings=tuple(
            f"{field} {int(stated[field])} is not one of NIfTI's: the file's {field[:5]} is not used"
            for field in ("sform_code", "qform_code")
            if int(stated[field]) not in _FORM_CODES | {0}
        ),
    )


def _read_header(path: Path, voxels_path: Path) -> Nifti1Header:
    """Return the header, read from its first bytes alone and not yet trusted."""
    name = path.name
    try:
        with gzip.open(path, "rb") if _is_packed(path) else path.open("rb") as file:
            block = file.read(540)
    except (OSError, EOFError, zlib.error) as error:
        raise InputRefused("not-nifti", f"{name} is not a NIfTI file: its start can't be read", _CONVERT) from error
    for kind, size, magic_at in ((Nifti1Header, 348, 344), (Nifti2Header, 540, 4)):
        if len(block) >= size and block[magic_at : magic_at + 4] in _MAGIC:
            little = int.from_bytes(block[:4], "little") == size
            if not little and int.from_bytes(block[:4], "big") != size:
                continue
            header = kind(block[:size], endianness="<" if little else ">", check=False)
            # `ni1` promises a second file, `n+1` does not.
            if (block[magic_at + 1 : magic_at + 2] == b"+") == (path == voxels_path):
                return header
    if len(block) < 348:
        raise InputRefused("truncated", f"{name} ends within its header ({len(block)} bytes)", "copy the file again")
    raise InputRefused("not-nifti", f"{name} is not a NIfTI file: no NIfTI header at its start", _CONVERT)


def _check_fields(header: Nifti1Header, name: str) -> None:
    """Raise InputRefused for fields that no header may hold, and those that nibabel would mend or misread."""
    dim = [int(v) for v in header["dim"]]
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]):
        raise InputRefused("bad-header", f"{name} states impossible dimensions {dim}", "write the file again")
    try:
        header.get_data_dtype()
    except Exception as error:  # nibabel's own for codes it does not know
        raise InputRefused("bad-datatype", f"{name} states an unknown datatype", PLAIN_NUMBERS) from error
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _MAX_OFFSET:
        raise InputRefused("bad-header", f"{name} says its voxels begin at byte {offset:g}", "write the file again")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isfinite(slope) and slope != 0 and not np.isfinite(intercept):  # no finite slope means unscaled
        raise InputRefused(
            "bad-header", f"{name} adds {intercept:g} to all its voxels (scl_inter)",
            "write the file again with scl_inter 0, or with what is to be added",
        )  # fmt: skip
    if int(header["sform_code"]) in _FORM_CODES:
        return
    sizes = np.abs(header["pixdim"][1:4])
    if not (np.isfinite(sizes) & (sizes > 0)).all():  # nibabel would make them 1
        raise InputRefused("singular-affine", f"{name} has no sform and voxels of no size", _REPAIR)
    try:
        if int(header["qform_code"]) in _FORM_CODES:
            header.get_qform_quaternion()
    except ValueError as error:
        raise InputRefused(
            "bad-quaternion", f"{name} has a qform whose quaternion is longer than 1, so it is no rotation", _REPAIR
        ) from error


def unit_of(header: Nifti1Header) -> str:
    """Return the unit of lengths that a header states, empty where it does not."""
    unit = int(header["xyzt_units"]) % 8  # the other bits are the unit of time
    return _UNITS.get(unit, f"an unknown unit (code {unit})")


def is_placed(header: Nifti1Header) -> bool:
    """Return whether a header states a frame; without one nibabel takes the first axis to run to the left."""
    return bool(header["sform_code"] or header["qform_code"])


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() in ImageOpener.compress_ext_map


def read_voxels(proxy: ArrayProxy, number: int = 0) -> np.ndarray:
    """Return the values (I, J, K) behind nibabel's proxy, of several volumes those of `number`, as `read_array` does.

    A compressed file is read to its end, as `read_to_end` says.
    """
    shape, source = proxy.shape[:3], proxy.file_like
    size = math.prod(shape) * proxy.dtype.itemsize
    is_path = isinstance(source, (str, os.PathLike))
    packed = is_path and _is_packed(Path(source))
    with ImageOpener(source) if is_path else nullcontext(source) as file:
        file.seek(proxy.offset + number * size)
        array = read_array(file, shape, proxy.dtype, slope=proxy.slope, inter=proxy.inter)
        if packed:
            read_to_end(file, (math.prod(proxy.shape[3:]) - number - 1) * size)
    return array


@contextmanager
def _silent_nibabel() -> Iterator[None]:
    """Keep nibabel's log off stderr: what matters in it is a warning or a refusal here.

    Its own LoggingOutputSuppressor takes the handlers away, and Python then prints by its handler of last resort.
    """
    before, nibabel_log.disabled = nibabel_log.disabled, True
    try:
        yield
    finally:
        nibabel_log.disabled = before


READER = Reader(
    "NIfTI",
    (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"),
    volume=_open_volume,
    files=lambda path: tuple(dict.fromkeys(_halves(path))),
    repair=_REPAIR,
)
