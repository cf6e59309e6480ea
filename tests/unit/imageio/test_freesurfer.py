"""FreeSurfer's files pass the same gate as NIfTI, and their masks lie where they do."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
from nibabel.freesurfer.mghformat import MGHImage

from samkit.errors import InputRefused
from samkit.imageio.in_memory import study_of
from samkit.imageio.reading import read_scan
from samkit.imageio.writing import write_mask

AFFINE = np.array([[-0.9, 0.1, 0.0, 12], [0.0, 0.2, 1.1, -20], [0.1, -1.0, 0.2, 30], [0, 0, 0, 1]])


def values(shape=(7, 6, 5), dtype=np.uint8):
    return (np.arange(np.prod(shape)).reshape(shape) % 90 + 1).astype(dtype)


def save(path, array=None, affine=AFFINE):
    nibabel.save(MGHImage(values() if array is None else array, affine), path)
    return path


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_file_is_read_and_answered_in_its_place(name, dtype, tmp_path):
    path = save(tmp_path / name, values(dtype=dtype))
    scan = read_scan(path)
    assert np.array_equal(scan.volume.array, values())
    assert scan.volume.array.dtype == dtype
    np.testing.assert_allclose(scan.volume.affine, AFFINE, atol=1e-5)

    write_mask(tmp_path / "m.nii.gz", values() > 40, scan)
    after = nibabel.load(tmp_path / "m.nii.gz")
    assert np.array_equal(after.affine, scan.volume.affine)
    assert after.header.get_xyzt_units()[0] == "mm"
    assert np.array_equal(np.asarray(after.dataobj), values() > 40)


def test_simpleitk_sees_a_label_map_where_nibabel_sees_the_scan(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    affine = np.array([[-1.0, 0, 0, 12], [0, 0, 1.1, -20], [0, -1.2, 0, 30], [0, 0, 0, 1]])
    scan = read_scan(save(tmp_path / "a.mgz", affine=affine))
    labels = (values() % 13).astype(np.uint8)
    write_mask(tmp_path / "m.nii.gz", labels, scan)
    written = sitk.ReadImage(str(tmp_path / "m.nii.gz"))

    assert np.array_equal(sitk.GetArrayFromImage(written).transpose(2, 1, 0), labels)
    for index in ((0, 0, 0), (6, 0, 0), (1, 5, 4)):
        lps = np.array(written.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(lps * [-1, -1, 1], (affine @ [*index, 1])[:3], atol=1e-4)


def hostile(path, at, content):
    block = bytearray(gzip.decompress(path.read_bytes()))
    block[at : at + len(content)] = content
    path.write_bytes(gzip.compress(bytes(block)))


@pytest.mark.parametrize(
    ("at", "content", "code"),
    [
        (0, b"\0\0\0\2", "not-mgh"),
        (4, b"\xff\xff\xff\xff", "bad-header"),
        (4, b"\x00\x01\x00\x00", "bad-header"),
        (4, b"\x00\x00\x00\x01", "not-3d"),
        (4, b"\x00\x00\x7f\xff" * 3, "too-large"),
        (12, b"\x00\x00\x01\x00", "truncated"),
        (16, b"\0\0\0\2", "not-3d"),
        (20, b"\0\0\0\5", "bad-datatype"),
        (28, b"\0\0", "no-geometry"),
        (30, b"\0" * 12, "singular-affine"),
        (30, b"\x7f\xc0\0\0", "singular-affine"),
        (30, b"\x7f\x80\0\0", "singular-affine"),
    ],
)
def test_hostile_header_is_refused(at, content, code, tmp_path):
    path = save(tmp_path / "a.mgz")
    hostile(path, at, content)
    with pytest.raises(InputRefused) as refused:
        read_scan(path)

    assert refused.value.code == code
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_file_cut_off_is_refused(kept, tmp_path):
    path = save(tmp_path / "a.mgz", np.random.default_rng(0).integers(1, 255, (40, 40, 40)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(InputRefused, match="truncated or damaged"):
        read_scan(path)


@pytest.mark.parametrize("content", [b"", b"no gzip at all", gzip.compress(b"short", mtime=0)])
def test_what_is_no_such_file_is_refused(content, tmp_path):
    (tmp_path / "a.mgz").write_bytes(content)
    with pytest.raises(InputRefused, match=r"a\.mgz"):
        read_scan(tmp_path / "a.mgz")


def test_real_scan_is_read(shared):
    scan = read_scan(shared / "data" / "subcortical" / "norm.mgz")

    assert scan.volume.array.shape == (256, 256, 256)
    assert scan.warnings == ()


@pytest.mark.parametrize(
    ("size", "cosine", "says"),
    [
        (1e25, 1e25, "the affine holds NaN or Inf"),  # finite as they stand, but no affine of a mask's header
        (np.inf, 0.0, "the affine holds NaN or Inf"),
        (np.nan, 1.0, "the affine holds NaN or Inf"),
        (1e-25, 1e-25, "the affine is singular"),
    ],
)
def test_a_place_that_no_mask_could_have_is_refused(size, cosine, says, tmp_path):
    path = save(tmp_path / "a.mgz")
    hostile(path, 30, np.array([size] * 3 + [cosine] * 9 + [0] * 3, ">f4").tobytes())
    with pytest.raises(InputRefused, match=f"a.mgz: {says}"):
        read_scan(path)


def test_nor_is_one_in_memory():
    for scale, says in ((1e39, "NaN or Inf"), (1e-60, "singular")):
        with pytest.raises(InputRefused, match=says):
            study_of(values(), affine=np.diag([scale, scale, scale, 1]))
