"""Scans and labels that are none, or lie."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import nibabel
import numpy as np

from tools.hostile.kind import HTML, OTHERS, Kind, Make, changed, cut, flip, of_bytes
from tools.hostile.no_files import no_files

SIDE = 24


@cache
def array() -> np.ndarray:
    """Return a bright ball in noise, int16."""
    noise = np.random.default_rng(0).normal(100, 10, (SIDE,) * 3)
    grid = np.indices((SIDE,) * 3) - 8
    return (noise + 300 * ((grid**2).sum(axis=0) < 30)).astype(np.int16)


@cache
def label() -> bytes:
    """Return the ball as a packed label."""
    return gzip.compress(nibabel.Nifti1Image((array() > 250).astype(np.uint8), np.eye(4)).to_bytes(), mtime=0)


@cache
def plain() -> bytes:
    """Return a good scan, .nii."""
    return nibabel.Nifti1Image(array(), np.eye(4)).to_bytes()


def packed() -> bytes:
    """Return a good scan, .nii.gz."""
    return gzip.compress(plain(), mtime=0)


def header(**fields: object) -> bytes:
    """Return a NIfTI header, and four bytes that say that no extension follows, with `fields` changed as they are."""
    made = nibabel.Nifti1Header()
    made.set_data_shape((SIDE,) * 3)
    made.set_data_dtype(np.int16)
    made.set_sform(np.eye(4), 1)
    made.set_xyzt_units("mm")
    made["vox_offset"] = 352
    made["magic"] = b"n+1"
    for name, value in fields.items():
        made[name] = value
    return made.binaryblock + bytes(4)


def nifti(values: np.ndarray | None = None, affine: np.ndarray | None = None, **fields: object) -> bytes:
    """Return a NIfTI file of `values`, by default the good ones, with `fields` of its header as they are given."""
    held = array() if values is None else values
    codes = {
        "dim": [held.ndim, *held.shape, *[1] * (7 - held.ndim)],
        "datatype": nibabel.nifti1.data_type_codes.code[held.dtype.type],
        "bitpix": 8 * held.dtype.itemsize,
    }
    if affine is not None:
        codes |= dict(zip(("srow_x", "srow_y", "srow_z"), affine[:3], strict=True))
    return header(**{**codes, **fields}) + held.tobytes(order="F")


def _packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _floats(value: float, share: float = 0.001) -> np.ndarray:
    """Return the good values as float32, some of them `value`."""
    values = array().astype(np.float32)
    values.reshape(-1)[:: int(1 / share)] = value
    return values


def _sparse(name: str, head: bytes, size: int) -> Make:
    """Return what makes a file of zeros behind `head`, which takes no room on the disk."""

    def make(folder: Path, chance: Random) -> Path:
        path = of_bytes(name, head)(folder, chance)
        os.truncate(path, len(head) + size)
        return path

    return make


def _mgh(*changes: tuple[int, str, float]) -> bytes:
    """Return an .mgh file with numbers at places of its header changed: offset, format of struct, value."""
    data = bytearray(nibabel.MGHImage(array(), np.eye(4)).to_bytes())
    for at, form, value in changes:
        struct.pack_into(f">{form}", data, at, value)
    return bytes(data)


def _nrrd(**fields: str) -> bytes:
    """Return an .nrrd file whose fields are changed; a field of the value "" is left out."""
    sizes = " ".join([str(SIDE)] * 3)
    said = {
        "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": sizes,
        "space directions": "(-1,0,0) (0,-1,0) (0,0,1)", "endian": "little", "encoding": "raw",
        "space origin": "(0,0,0)",
    } | {name.replace("_", " "): value for name, value in fields.items()}  # fmt: skip
    lines = [f"{name}: {value}" for name, value in said.items() if value]
    return "\n".join(["NRRD0004", *lines, "", ""]).encode() + array().tobytes("F")


def _mha(**fields: str) -> bytes:
    said = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "-1 0 0 0 -1 0 0 0 1", "Offset": "0 0 0",
        "ElementSpacing": "1 1 1",
        "DimSize": " ".join([str(SIDE)] * 3), "ElementType": "MET_SHORT",
    } | fields  # fmt: skip
    said["ElementDataFile"] = said.pop("ElementDataFile", "LOCAL")  # the last line, always
    lines = [f"{name} = {value}" for name, value in said.items() if value]
    return "\n".join([*lines, ""]).encode() + array().tobytes("F")


def _pair(other: bytes | None, name: str = "scan.hdr", **fields: object) -> Make:
    """Return what makes a .hdr with `other` as its .img, which is not there if None."""

    def make(folder: Path, chance: Random) -> Path:
        if other is not None:
            (folder / "scan.img").write_bytes(other)
        return of_bytes(name, header(magic=b"ni1", vox_offset=0, **fields)[:348])(folder, chance)

    return make


# --- The kinds ---

_ONE_SCAN = ("segment a scan", "set_image of a scan")
"""Doors that are given the scan's path itself, and not a folder."""
_VOXELS = SIDE**3
_BEYOND = "truncated or damaged|start can't be read"

SCANS: tuple[Kind, ...] = (
    *(
        Kind(f"{what} as {end}", of_bytes(f"scan{end}", content), f"scan{end} (is not|ends within)")
        for what, content in OTHERS
        for end in (".nii", ".nii.gz", ".mgz", ".nrrd", ".mha")
    ),
    *no_files("scan.nii.gz", lambda: _packed(plain()), _ONE_SCAN, "there is no file"),
    Kind(
        "name that is not UTF-8",
        of_bytes(os.fsdecode(b"sc\xe4n.nii"), lambda chance: plain()),
        "",
        0,
        grid=_VOXELS,
        doors=_ONE_SCAN,
    ),
    Kind("NIfTI cut", of_bytes("scan.nii", changed(plain, cut)), "can't hold the", count=4),
    Kind("NIfTI cut, packed", of_bytes("scan.nii.gz", lambda chance: _packed(cut(plain(), chance))), _BEYOND, count=4),
    Kind(
        "packed NIfTI cut",
        of_bytes("scan.nii.gz", changed(lambda: _packed(plain()), cut)),
        _BEYOND,
        count=4,
        grid=_VOXELS,
    ),
    Kind(
        "packed NIfTI flipped",
        of_bytes("scan.nii.gz", changed(lambda: _packed(plain()), flip)),
        _BEYOND,
        count=8,
        grid=_VOXELS,
    ),
    Kind("packed without sums", of_bytes("scan.nii.gz", lambda chance: _packed(plain())[:-8]), _BEYOND, grid=_VOXELS),
    Kind("packed twice", of_bytes("scan.nii.gz", lambda chance: _packed(_packed(plain()))), "is not a NIfTI file"),
    Kind("packed by name alone", of_bytes("scan.nii.gz", lambda chance: plain()), "gzip"),
    Kind("plain by name alone", of_bytes("scan.nii", lambda chance: _packed(plain())), "gzip"),
    *(
        Kind(f"NIfTI header: {what}", of_bytes("scan.nii", nifti(**fields)), says)
        for what, fields, says in (
            ("no magic", {"magic": b"abc"}, "is not a NIfTI file"),
            ("magic of a pair", {"magic": b"ni1"}, "is not a NIfTI file"),
            ("sizes of 30000", {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "voxels"),
            ("more than there is", {"dim": [3, 64, 64, 64, 1, 1, 1, 1]}, "can't hold the"),
            ("sizes below zero", {"dim": [3, -24, 24, 24, 1, 1, 1, 1]}, "impossible dimensions"),
            ("a size of zero", {"dim": [3, 24, 0, 24, 1, 1, 1, 1]}, "impossible dimensions"),
            ("nine dimensions", {"dim": [9, 24, 24, 24, 1, 1, 1, 1]}, "impossible dimensions"),
            ("no dimension", {"dim": [0, 24, 24, 24, 1, 1, 1, 1]}, "impossible dimensions"),
            ("two dimensions", {"dim": [2, 24, 24, 1, 1, 1, 1, 1]}, "a slice, not a volume|one slice|24 x 24"),
            ("several volumes", {"dim": [4, 24, 24, 12, 2, 1, 1, 1]}, "more than one volume"),
            ("colours", {"datatype": 128, "bitpix": 24}, "voxels; convert"),
            ("complex numbers", {"datatype": 32, "bitpix": 64}, "complex64 voxels"),
            ("128 bits", {"datatype": 1536, "bitpix": 128}, "truncated or damaged|float128|longdouble"),
            ("unknown type", {"datatype": 4711}, "unknown datatype"),
            ("voxels at 1e30", {"vox_offset": 1e30}, "begin at byte"),
            ("voxels at NaN", {"vox_offset": np.nan}, "begin at byte"),
            ("voxels before the file", {"vox_offset": -16}, "begin at byte"),
            ("voxels behind the end", {"vox_offset": 2**20}, "can't hold the"),
            ("intercept NaN", {"scl_slope": 1, "scl_inter": np.nan}, "scl_inter"),
            ("unit of metres", {"xyzt_units": 1}, "in metres"),
            ("unit of micrometres", {"xyzt_units": 3}, "in micrometres"),
        )
    ),
    *(
        Kind(f"affine: {what}", of_bytes("scan.nii", nifti(affine=np.array(rows))), says)
        for what, rows, says in (
            ("NaN", [[np.nan, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "NaN or Inf"),
            ("infinite", [[1, 0, 0, np.inf], [0, 1, 0, 0], [0, 0, 1, 0]], "NaN or Inf"),
            ("zeros", [[0] * 4] * 3, "singular"),
            ("singular", [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]], "singular"),
            ("1e30", [[1e30, 0, 0, 0], [0, 1e30, 0, 0], [0, 0, 1e30, 0]], "are no scan's"),
            ("1e-30", [[1e-30, 0, 0, 0], [0, 1e-30, 0, 0], [0, 0, 1e-30, 0]], "are no scan's"),
        )
    ),
    Kind(
        "800 cubed, sparse",
        _sparse("scan.nii", header(dim=[3, 800, 800, 800, 1, 1, 1, 1], datatype=64, bitpix=64), 800**3 * 8),
        "4096000000 in all",
    ),
    Kind(
        "800 cubed, packed",
        of_bytes(
            "scan.nii.gz",
            lambda chance: _packed(header(dim=[3, 800, 800, 800, 1, 1, 1, 1], datatype=64, bitpix=64) + bytes(2**20)),
        ),
        "4096000000 in all",
    ),
    Kind(
        "800 cubed, packed in .mgz",
        of_bytes("scan.mgz", lambda chance: _packed(_mgh((4, "i", 800), (8, "i", 800), (12, "i", 800), (20, "i", 3)))),
        "can't hold the",
    ),
    Kind(
        "bomb of zeros",
        of_bytes("scan.nii.gz", lambda chance: _packed(nifti(np.zeros((160,) * 3)))),
        "value 0",
        grid=160**3,
    ),
    Kind(
        "stream that goes on",
        of_bytes("scan.nii.gz", lambda chance: _packed(plain()) + _packed(bytes(70 * 2**20))),
        _BEYOND,
        grid=_VOXELS,
    ),
    Kind(
        "extension of 2 GB",
        of_bytes(
            "scan.nii",
            lambda chance: (
                header(vox_offset=368)[:348]
                + b"\1\0\0\0"
                + struct.pack("<ii", 2**31 - 16, 6)
                + bytes(8)
                + array().tobytes("F")
            ),
        ),
        "",
        0,
        grid=_VOXELS,
        doors=_ONE_SCAN,
    ),
    *(
        Kind(
            f"voxels: {what}",
            of_bytes("scan.nii.gz", _packed(nifti(values()))),
            says,
            grid=_VOXELS,
        )
        for what, values, says in (
            ("NaN", lambda: _floats(np.nan), "NaN or infinite"),
            ("infinite", lambda: _floats(np.inf), "NaN or infinite"),
            ("infinite below", lambda: _floats(-np.inf), "NaN or infinite"),
            ("all NaN", lambda: _floats(np.nan, 1), "NaN or infinite"),
            ("all alike", lambda: np.full_like(array(), 7), "value 7"),
            ("zeros", lambda: np.zeros_like(array()), "value 0"),
            ("none above zero", lambda: -array(), "above zero"),
            ("1e300", lambda: array().astype(np.float64) * 1e300, "NaN or infinite"),
        )
    ),
    *(
        Kind(
            f"MGH: {what}",
            of_bytes("scan.mgh", _mgh(*places)),
            "scan.mgh (is not|states)|scan.mgh: the affine",
        )
        for what, places in (
            ("version 9", [(0, "i", 9)]),
            ("sizes below zero", [(4, "i", -24)]),
            ("sizes of 2^31", [(4, "i", 2**31 - 1), (8, "i", 2**31 - 1)]),
            ("no size", [(12, "i", 0)]),
            ("unknown type", [(20, "i", 77)]),
            ("spacing NaN", [(30, "f", np.nan)]),
            ("spacing infinite", [(30, "f", np.inf)]),
            ("spacing zero", [(30, "f", 0)]),
            ("direction NaN", [(42, "f", np.nan)]),
            ("centre infinite", [(78, "f", np.inf)]),
            ("many frames", [(16, "i", 2**31 - 1)]),
        )
    ),
    Kind("MGH cut", of_bytes("scan.mgh", changed(_mgh, cut)), "can't hold the", count=2),
    Kind("MGZ flipped", of_bytes("scan.mgz", changed(lambda: _packed(_mgh()), flip)), _BEYOND, count=3, grid=_VOXELS),
    *(
        Kind(
            f"NRRD: {what}",
            of_bytes("scan.nrrd", _nrrd(**fields)),
            f"{_BEYOND}|scan.nrrd (states|keeps)|scan.nrrd: the affine",
        )
        for what, fields in (
            ("sizes lie", {"sizes": "30000 30000 30000"}),
            ("sizes beyond 64 bits", {"sizes": "99999999999999999999 2 2"}),
            ("no sizes", {"sizes": ""}),
            ("unknown type", {"type": "quaternion"}),
            ("blocks", {"type": "block", "block_size": "1000000000"}),
            ("data in another file", {"data_file": "/etc/passwd"}),
            ("data in a device", {"data_file": "/dev/zero"}),
            ("data in many files", {"data_file": "x%d.raw 1 1000000000 1"}),
            ("unknown encoding", {"encoding": "magic"}),
            ("packed by name alone", {"encoding": "gzip"}),
            ("directions NaN", {"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}),
            ("directions of zeros", {"space_directions": "(0,0,0) (0,0,0) (0,0,0)"}),
            ("16 dimensions", {"dimension": "16", "sizes": " ".join(["2"] * 16), "space_directions": ""}),
            ("skips lines without end", {"line_skip": "1000000000"}),
            ("skips bytes without end", {"byte_skip": "1000000000000"}),
        )
    ),
    Kind("NRRD cut", of_bytes("scan.nrrd", changed(_nrrd, cut)), "can't hold the", count=2),
    *(
        Kind(
            f"MetaImage: {what}",
            of_bytes("scan.mha", _mha(**fields)),
            f"{_BEYOND}|scan.mha (states|keeps|holds)|scan.mha: the affine",
        )
        for what, fields in (
            ("sizes lie", {"DimSize": "30000 30000 30000"}),
            ("sizes below zero", {"DimSize": "-24 24 24"}),
            ("no sizes", {"DimSize": ""}),
            ("unknown type", {"ElementType": "MET_OTHER"}),
            ("many channels", {"ElementNumberOfChannels": "1000000000"}),
            ("data in a device", {"ElementDataFile": "/dev/zero"}),
            ("data in another file", {"ElementDataFile": "/etc/passwd"}),
            ("data in a list", {"ElementDataFile": "LIST"}),
            ("data in a pattern", {"ElementDataFile": "x%99999d.raw 1 1000000000 1"}),
            ("spacing zero", {"ElementSpacing": "0 1 1"}),
            ("spacing NaN", {"ElementSpacing": "nan 1 1"}),
            ("matrix of zeros", {"TransformMatrix": "0 0 0 0 0 0 0 0 0"}),
            ("packed by name alone", {"CompressedData": "True"}),
            ("99 dimensions", {"NDims": "99"}),
        )
    ),
    Kind("MetaImage cut", of_bytes("scan.mha", changed(_mha, cut)), "can't hold the", count=2),
    Kind("half of a pair", _pair(None), "other half"),
    Kind("pair cut", _pair(bytes(100)), "can't hold the"),
    Kind("pair whose half is a page", _pair(HTML), "can't hold the"),
)

_WHOLE = "hold what is no label"


def _labels(values: Callable[[], np.ndarray]) -> Make:
    return of_bytes("scan.nii.gz", lambda chance: _packed(nifti(values())))


def _ball() -> np.ndarray:
    return (array() > 250).astype(np.uint8)


LABELS: tuple[Kind, ...] = (
    *(
        Kind(f"{what} as a label", of_bytes("scan.nii.gz", content), "scan.nii.gz (is not|ends within)")
        for what, content in OTHERS
    ),
    Kind("label cut", of_bytes("scan.nii.gz", changed(label, cut)), _BEYOND, count=2, grid=_VOXELS),
    Kind("label flipped", of_bytes("scan.nii.gz", changed(label, flip)), _BEYOND, count=4, grid=_VOXELS),
    *(
        Kind(f"label: {what}", _labels(values), says, grid=_VOXELS)
        for what, values, says in (
            ("interpolated", lambda: _ball() * np.float32(0.3), _WHOLE),
            ("nearly whole", lambda: _ball() * np.float32(0.99), _WHOLE),
            ("NaN", lambda: np.where(_ball() > 0, np.float32(np.nan), np.float32(1)), _WHOLE),
            ("infinite", lambda: np.where(_ball() > 0, np.float32(np.inf), np.float32(0)), _WHOLE),
            ("below zero", lambda: -_ball().astype(np.int16), _WHOLE),
            ("10^9", lambda: _ball().astype(np.int32) * 10**9, _WHOLE),
            ("the scan itself", lambda: array() + np.float32(0.5), _WHOLE),
            ("nothing", lambda: _ball() * 0, "holds a voxel above 0|has anything labelled|left out"),
        )
    ),
    Kind("label of another shape", _labels(lambda: _ball()[:-2]), "shape|22"),
    Kind(
        "label elsewhere",
        of_bytes("scan.nii.gz", lambda chance: _packed(nifti(_ball(), np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 9))),
        "off|affine",
    ),
    Kind(
        "label mirrored",
        of_bytes("scan.nii.gz", lambda chance: _packed(nifti(_ball(), np.diag([-1.0, 1, 1, 1])))),
        "off|affine",
    ),
    Kind(
        "label of 800 cubed",
        of_bytes(
            "scan.nii.gz",
            lambda chance: _packed(header(dim=[3, 800, 800, 800, 1, 1, 1, 1], datatype=64, bitpix=64) + bytes(2**20)),
        ),
        "in all|shape",
    ),
)
