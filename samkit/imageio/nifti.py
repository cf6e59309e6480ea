"""NIfTI in, through a gate; the mask out, with the input's geometry bit for bit.

nibabel opens almost anything: headers that promise terabytes, affines of NaN, structured voxels. So the header is
read and judged here first, from its own few hundred bytes, and the voxels are read only when their number is known
to be acceptable. Whatever still fails inside nibabel becomes InputRefused too.

Messages and written files name no patient: file names only, no header text, and the mask's free-text fields and
extensions are empty.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nibabel
import numpy as np
from nibabel.imageglobals import logger as nibabel_log
from nibabel.nifti1 import Nifti1Header, Nifti1Image, xform_codes
from nibabel.nifti2 import Nifti2Header, Nifti2Image

from samkit.errors import GeometryError, InputRefused, SamkitError
from samkit.geometry import Index, Volume, check_affine, spacing_of
from samkit.imageio.mgh import MGH_SUFFIXES, read_mgh_header, read_mgh_voxels

MAX_VOXELS = 2**29
"""Voxels of the largest scan that is read: about 812 x 812 x 812; a whole-body CT has a third of it."""

_DTYPES = frozenset(np.dtype(t) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"))
_MAGIC = {b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0"}
_MAX_OFFSET = 2**24
"""Header extensions beyond 16 MiB are no header extensions."""
_GZIP_RATIO = 1100
"""gzip can't shrink anything further than about 1030 times."""
_NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")
SCAN_SUFFIXES = (*_NIFTI_SUFFIXES, *MGH_SUFFIXES)
MASK_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Scan:
    """A scan that passed the gate."""

    volume: Volume
    header: Nifti1Header
    """The file's own header, or that of a NIfTI file in its place: geometry is taken from it when a mask is written."""
    path: Path
    """The file with the voxels."""
    warnings: tuple[str, ...]
    """What looks unusual but does not stop the work."""


def read_scan(path: Path, *, max_voxels: int = MAX_VOXELS) -> Scan:
    """Return the scan in a NIfTI-1 or NIfTI-2 file, single or pair, plain or gz, or in FreeSurfer's .mgz or .mgh.

    The array keeps the file's integer type, or is float32 where the file scales its values or holds floats. Trailing
    axes of length one are dropped. Raises InputRefused.
    """
    name = path.name
    if not path.is_file():
        raise InputRefused("missing", f"there is no file {name}", "check the path given with -i")
    header_path, voxels_path = scan_files(path)
    is_mgh = name.endswith(MGH_SUFFIXES)
    header = read_mgh_header(path) if is_mgh else _read_header(header_path, voxels_path)
    shape = _checked_shape(header, name, max_voxels)
    _check_geometry(header, name)
    _check_size(header, shape, voxels_path)
    as_stated = header.copy()  # nibabel mends some fields of its own
    with _silent_nibabel():
        try:
            if is_mgh:
                array = read_mgh_voxels(path, header)
            else:
                image = nibabel.load(path)
                array, header = _read_voxels(image, shape), image.header
            affine = np.array(header.get_best_affine(), np.float64)
        except InputRefused:
            raise
        # Broken files raise five families of exceptions, ill-typed ones as well: all of them mean this.
        except Exception as error:
            raise InputRefused(
                "truncated" if isinstance(error, (EOFError, OSError, zlib.error)) else "not-readable",
                f"the voxels of {name} can't be read: the file is truncated or damaged",
                "copy or convert the file again",
            ) from error
    try:
        check_affine(affine)
    except GeometryError as error:
        raise InputRefused("singular-affine", f"{name}: {_before_remedy(error)}", _after_remedy(error)) from error
    _check_values(array, name)
    return Scan(Volume(array, affine), header, voxels_path, _warnings(as_stated, affine))


def write_mask(path: Path, mask: np.ndarray, scan: Scan) -> None:
    """Write a mask or label map (I, J, K) as uint8 with the geometry of `scan`, complete or not at all."""
    _write(path, mask.astype(np.uint8), scan)


def write_logits(path: Path, logits: np.ndarray, scan: Scan) -> None:
    """Write logits (I, J, K) as float32 with the geometry of `scan`, complete or not at all."""
    _write(path, logits.astype(np.float32), scan)


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise InputRefused unless a file can be written to `path` without touching one of `inputs`."""
    if not path.parent.is_dir():
        raise InputRefused("output-folder", f"the folder of {path.name} does not exist", "make it first")
    # `samefile` knows links and names that differ in case only.
    if path.exists() and any(p.exists() and path.samefile(p) for p in inputs):
        raise InputRefused(
            "output-is-input", f"{path.name} is one of the inputs and would be overwritten", "give another output name"
        )


# --- The gate ---


def scan_files(path: Path) -> tuple[Path, Path]:
    """Return the files that hold header and voxels: the same one, or the two of a pair."""
    name = path.name
    compressed = ".gz" if name.endswith(".gz") else ""
    stem = name.removesuffix(".gz")
    if not name.endswith(SCAN_SUFFIXES):
        raise InputRefused(
            "not-nifti", f"{name} is not a NIfTI file by its name", f"needed is one of {', '.join(SCAN_SUFFIXES)}"
        )
    if name.endswith(MGH_SUFFIXES):
        return path, path
    if stem.endswith(".nii"):
        return path, path
    header = path.with_name(f"{stem[:-4]}.hdr{compressed}")
    voxels = path.with_name(f"{stem[:-4]}.img{compressed}")
    for part in (header, voxels):
        if not part.is_file():
            raise InputRefused("missing", f"{part.name}, the other half of {name}, is missing", "give both files")
    return header, voxels


def _read_header(path: Path, voxels_path: Path) -> Nifti1Header:
    """Return the header, read from its first bytes alone and not yet trusted."""
    name = path.name
    try:
        with _open(path) as file:
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


_CONVERT = "convert the scan to NIfTI, for example with dcm2niix"


def _checked_shape(header: Nifti1Header, name: str, max_voxels: int) -> Index:
    """Return the three spatial dimensions; raises InputRefused for what can't be a volume."""
    dim = [int(v) for v in header["dim"]]
    rank = dim[0]
    if not 1 <= rank <= 7 or any(n < 1 for n in dim[1 : rank + 1]):
        raise InputRefused("bad-header", f"{name} states impossible dimensions {dim}", "write the file again")
    shape = tuple(dim[1 : rank + 1])
    text = " x ".join(str(n) for n in shape)
    if any(n > 1 for n in shape[3:]):
        raise InputRefused(
            "not-3d", f"{name} is {text}: more than one volume", "give one volume, for example one sequence or time"
        )
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise InputRefused("not-3d", f"{name} is {text}: a slice, not a volume", "give a 3D scan of several slices")
    i, j, k = shape[:3]
    if i * j * k > max_voxels:
        raise InputRefused(
            "too-large", f"{name} states {text} voxels, the limit is {max_voxels}", "crop or resample the scan first"
        )
    try:
        dtype = header.get_data_dtype().newbyteorder("=")
    except Exception as error:  # nibabel's own for codes it does not know
        raise InputRefused("bad-datatype", f"{name} states an unknown datatype", _PLAIN_NUMBERS) from error
    if dtype not in _DTYPES:
        raise InputRefused("bad-datatype", f"{name} holds {dtype.name} voxels", _PLAIN_NUMBERS)
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _MAX_OFFSET:
        raise InputRefused("bad-header", f"{name} says its voxels begin at byte {offset:g}", "write the file again")
    return i, j, k


def _check_geometry(header: Nifti1Header, name: str) -> None:
    """Raise InputRefused for fields of the geometry that nibabel would mend or read as something else."""
    units = int(header["xyzt_units"]) % 8  # the other bits are the unit of time
    if units not in (0, 2):
        found = {1: "metres", 3: "micrometres"}.get(units, f"an unknown unit (code {units})")
        raise InputRefused(
            "bad-units", f"{name} states its geometry in {found}, needed is mm", "write it again in mm, units code 2"
        )
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


_FORM_CODES = frozenset(int(code) for code in xform_codes.value_set()) - {0}
"""What sform_code and qform_code may be where there is such a form; nibabel takes any other for 0."""
_REPAIR = "repair the file's sform or qform first"
_PLAIN_NUMBERS = "convert it to integers or floats of up to 64 bits, one number per voxel"


def _check_size(header: Nifti1Header, shape: Index, voxels_path: Path) -> None:
    """Raise InputRefused where the file can't hold the voxels it states, before any of them is read."""
    needed = int(np.prod(shape, dtype=np.int64)) * header.get_data_dtype().itemsize + int(header["vox_offset"])
    size = voxels_path.stat().st_size
    most = size * _GZIP_RATIO if voxels_path.name.endswith((".gz", ".mgz")) else size
    if most < needed:
        raise InputRefused(
            "truncated",
            f"{voxels_path.name} is truncated: {size} bytes can't hold the {needed} its header states",
            "copy the file again",
        )


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


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def _read_voxels(image: object, shape: Index) -> np.ndarray:
    """Return the values (I, J, K): the file's integers as they are, anything else float32."""
    proxy = image.dataobj  # type: ignore[attr-defined]
    raw = np.asarray(proxy.get_unscaled()).reshape(shape, order="F")
    slope, inter = proxy.slope, proxy.inter
    if raw.dtype.kind in "iu" and (slope, inter) == (1.0, 0.0):
        return raw.astype(raw.dtype.newbyteorder("="))  # a copy in memory, not a map of the file
    out = np.empty(shape, np.float32, order="F")
    for k in range(shape[2]):  # one slice at a time: float64 for a whole CT would take gigabytes
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as Inf
            out[:, :, k] = raw[:, :, k].astype(np.float64) * slope + inter
    return out


def _check_values(array: np.ndarray, name: str) -> None:
    """Raise InputRefused for values that no z-score can be taken of."""
    if array.dtype.kind == "f":
        broken = sum(int((~np.isfinite(array[:, :, k])).sum()) for k in range(array.shape[2]))
        if broken:
            raise InputRefused(
                "not-finite",
                f"{broken} of {array.size} voxels of {name} are NaN or infinite",
                "replace them first, for example by the value of air",
            )
    low, high = array.min(), array.max()
    if low == high:
        raise InputRefused("constant", f"all voxels of {name} have the value {low:g}", "give a scan with contrast")
    if high <= 0:
        raise InputRefused(
            "no-positive-voxel",
            f"{name} has no voxel above zero (largest {high:g}), so its z-score is undefined",
            "shift the intensities so that tissue is positive",
        )


def _warnings(header: Nifti1Header, affine: np.ndarray) -> tuple[str, ...]:
    warnings = [
        f"{field} {int(header[field])} is not one of NIfTI's: the file's {field[:5]} is not used"
        for field in ("sform_code", "qform_code")
        if int(header[field]) not in _FORM_CODES | {0}
    ]
    sizes = spacing_of(affine)
    if min(sizes) < 0.05 or max(sizes) > 20:
        warnings.append(f"unusual voxel size {' x '.join(f'{s:g}' for s in sizes)} mm: is the header right?")
    unit = affine[:3, :3] / sizes
    skew = float(np.abs(unit.T @ unit - np.eye(3)).max())
    if skew > 1e-3:
        warnings.append(f"the axes are not at right angles (cosine {skew:.3g}): gantry tilt? The grid follows them")
    return tuple(warnings)


def _before_remedy(error: GeometryError) -> str:
    return str(error).partition("; ")[0]


def _after_remedy(error: GeometryError) -> str:
    return str(error).partition("; ")[2]


# --- Writing ---

_GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def _write(path: Path, array: np.ndarray, scan: Scan) -> None:
    # A fresh header gets the geometry and nothing else, so that no text of the scan's can leak into it.
    is_2 = isinstance(scan.header, Nifti2Header)
    header = (Nifti2Header if is_2 else Nifti1Header)()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    for name in _GEOMETRY:
        header[name] = scan.header[name]
    header["pixdim"][:4] = scan.header["pixdim"][:4]
    header["scl_slope"], header["scl_inter"] = 1, 0
    # With the header's own affine nibabel leaves these fields as they are.
    image = (Nifti2Image if is_2 else Nifti1Image)(array, header.get_best_affine(), header)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    with replacing(path) as file:
        if path.name.endswith(".gz"):
            # No name and no time inside, so that equal masks are equal files.
            with gzip.GzipFile("", "wb", 3, file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when all of it is written; until then `path` stays as it was."""
    try:
        handle, name = tempfile.mkstemp(prefix=".samkit-", suffix=".part", dir=path.parent)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.chmod(0o666 & ~_umask())
            part.replace(path)
        except BaseException:
            part.unlink()
            raise
    except OSError as error:
        raise SamkitError(f"{path.name} can't be written ({error.strerror}); make room, or write elsewhere") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
