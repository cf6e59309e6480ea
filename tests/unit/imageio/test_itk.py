"""NRRD and MetaImage pass the same gate as NIfTI, and their masks lie where SimpleITK sees the scan."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from samkit.errors import InputRefused, MissingDependencyError
from samkit.imageio import reading
from samkit.imageio.reading import files_of, list_scans, read_geometry, read_label, read_scan
from samkit.imageio.writing import write_mask

sitk = pytest.importorskip("SimpleITK")

A, B = np.cos(0.3), np.sin(0.3)
DIRECTION = (A, -B, 0.0, B, A, 0.0, 0.0, 0.0, -1.0)
NAMES = ("a.nrrd", "a.nhdr", "a.mha", "a.mhd")


def values(shape=(7, 6, 5), dtype=np.int16):
    return (np.arange(np.prod(shape)).reshape(shape) % 90 + 1).astype(dtype)


def image(array=None, spacing=(0.9, 1.1, 1.9), origin=(-30.3, 12.7, 5.1), direction=DIRECTION):
    made = sitk.GetImageFromArray((values() if array is None else array).transpose(2, 1, 0))
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    made.SetDirection(direction)
    return made


def save(path, made=None, packed=False):
    sitk.WriteImage(image() if made is None else made, str(path), packed)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_scan_and_mask_lie_where_simpleitk_and_nibabel_see_them(name, packed, tmp_path):
    path = save(tmp_path / name, packed=packed)
    scan = read_scan(path)
    assert np.array_equal(scan.volume.array, values())
    assert scan.volume.array.dtype == np.int16
    # the same volume as NIfTI, which nibabel reads
    nifti = read_scan(save(tmp_path / "same.nii.gz")).volume
    np.testing.assert_allclose(scan.volume.affine, nifti.affine, atol=1e-5)
    assert np.array_equal(scan.volume.array, nifti.array)
    assert scan.warnings == ()

    write_mask(tmp_path / "m.nii.gz", values() > 40, scan)
    written = sitk.ReadImage(str(tmp_path / "m.nii.gz"))
    np.testing.assert_allclose(written.GetOrigin(), image().GetOrigin(), rtol=1e-6)
    np.testing.assert_allclose(written.GetSpacing(), image().GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(written.GetDirection(), DIRECTION, atol=1e-6)
    assert np.array_equal(sitk.GetArrayFromImage(written).transpose(2, 1, 0), values() > 40)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_integers_stay_and_floats_are_float32(dtype, tmp_path):
    scan = read_scan(save(tmp_path / "a.mha", image(values(dtype=dtype))))

    assert scan.volume.array.dtype == (np.float32 if dtype[0] == "f" else np.dtype(dtype))
    assert np.array_equal(scan.volume.array, values())


@pytest.mark.parametrize(("name", "half"), [("a.nhdr", "a.raw"), ("a.mhd", "a.raw")])
def test_file_with_the_voxels_belongs_to_the_one_that_is_named(name, half, tmp_path):
    path = save(tmp_path / name)
    assert files_of(path) == (path, tmp_path / half)
    assert read_scan(path).path == tmp_path / half
    assert list_scans(tmp_path.iterdir()) == [path]

    (tmp_path / half).unlink()
    with pytest.raises(InputRefused, match=r"a\.raw, the other half of a\.(nhdr|mhd), is missing"):
        read_scan(path)
    assert list_scans(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("elsewhere", ["/etc/hostname", "../a.raw", "LIST", "a%03d.raw 1 5 1"])
@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_voxels_in_another_folder_or_in_several_files_are_refused(name, elsewhere, tmp_path):
    path = save(tmp_path / name)
    path.write_text(path.read_text().replace("a.raw", elsewhere))

    with pytest.raises(InputRefused) as refused:
        read_scan(path)
    assert refused.value.code in ("other-folder", "several-files")
    assert "etc" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "before", "after", "code"),
    [
        ("a.nhdr", "(-30.3", "(nan", "not-readable"),
        ("a.nhdr", "space directions: (", "space directions: (0,0,0) (0,1,0) (0,0,1)\n# (", "singular-affine"),
        ("a.nhdr", "space origin", 'space units: "m" "m" "m"\nspace origin', "bad-units"),
        ("a.nhdr", "space origin", 'space units: "inch" "inch" "inch"\nspace origin', "bad-units"),
        ("a.nhdr", "sizes: 7 6 5", "sizes: 7 6 1", "not-3d"),
        ("a.nhdr", "sizes: 7 6 5", "sizes: 70000 60000 50000", "too-large"),
        ("a.nhdr", "sizes: 7 6 5", "sizes: 7 6 500", "truncated"),
        ("a.nhdr", "sizes: 7 6 5", "sizes: 7 6 -5", "not-readable"),
        ("a.nhdr", "NRRD000", "JUNK000", "not-itk"),
        ("a.mhd", "TransformMatrix", "TransformMatrix = 0 0 0 0 1 0 0 0 1\nOther", "singular-affine"),
        ("a.mhd", "ElementSpacing = 0.9", "ElementSpacing = 0", "singular-affine"),
        ("a.mhd", "DimSize = 7 6 5", "DimSize = 7 6 -5", "too-large"),
        ("a.mhd", "DimSize = 7 6 5", "DimSize = 7 6 500", "truncated"),
        ("a.mhd", "MET_SHORT\n", "MET_SHORT_ARRAY\nElementNumberOfChannels = 2\n", "bad-datatype"),
        ("a.mhd", "ElementDataFile", "DataFile", "not-itk"),
        ("a.mhd", "DimSize = 7 6 5", "", "bad-header"),
        ("a.mhd", "NDims = 3", "NDims = 99", "bad-header"),  # ended the process
        ("a.mhd", "NDims = 3", "NDims = -1", "bad-header"),
        ("a.mhd", "MET_SHORT\n", "MET_SHORT\nElementNumberOfChannels = 1000000000\n", "bad-datatype"),
    ],
)
def test_hostile_header_is_refused_before_the_voxels(name, before, after, code, tmp_path, capfd):
    path = save(tmp_path / name)
    text = path.read_text().replace("-30.300000000000001", "-30.3").replace("0.90000000000000002 ", "0.9 ")
    assert before in text
    path.write_text(text.replace(before, after, 1))

    with pytest.raises(InputRefused) as refused:
        read_geometry(path)
    assert refused.value.code == code
    assert str(tmp_path) not in str(refused.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_file_cut_off_is_refused(name, packed, tmp_path, capfd):
    noise = np.random.default_rng(0).integers(1, 255, (20, 21, 22)).astype(np.int16)
    path = save(tmp_path / name, image(noise), packed)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(InputRefused, match="truncated"):
        read_scan(path)
    assert capfd.readouterr() == ("", "")


def test_several_volumes_and_vectors_are_refused(tmp_path):
    vectors = sitk.GetImageFromArray(np.ones((5, 6, 7, 3), np.float32), isVector=True)
    with pytest.raises(InputRefused, match=r"a\.nrrd holds 3 values in each voxel"):
        read_scan(save(tmp_path / "a.nrrd", vectors))
    series = sitk.GetImageFromArray(np.ones((2, 5, 6, 7), np.float32), isVector=False)
    with pytest.raises(InputRefused, match="is 7 x 6 x 5 x 2: more than one volume"):
        read_scan(save(tmp_path / "b.nrrd", series))
    single = sitk.GetImageFromArray(values().transpose(2, 1, 0)[None], isVector=False)
    assert np.array_equal(read_scan(save(tmp_path / "c.nrrd", single)).volume.array, values())


def test_space_that_is_not_said_is_a_warning(tmp_path):
    path = save(tmp_path / "a.nhdr")
    path.write_text(path.read_text().replace("space: left-posterior-superior", "space dimension: 3"))

    assert "does not say where its voxels lie" in read_scan(path).warnings[0]


def test_space_of_nrrd_decides_what_is_left(tmp_path):
    path = save(tmp_path / "a.nhdr")
    lps = read_scan(path).volume.affine
    path.write_text(path.read_text().replace("left-posterior-superior", "right-anterior-superior"))

    np.testing.assert_allclose(read_scan(path).volume.affine, np.diag([-1, -1, 1, 1]) @ lps)


def test_label_needs_no_contrast(tmp_path):
    path = save(tmp_path / "a.nrrd", image(np.zeros((7, 6, 5), np.uint8)))
    assert not read_label(path).array.any()
    with pytest.raises(InputRefused, match=r"all voxels of a\.nrrd have the value 0"):
        read_scan(path)


def test_missing_simpleitk_names_the_extra(tmp_path, monkeypatch):
    path = save(tmp_path / "a.mha")
    found = importlib.util.find_spec
    monkeypatch.setattr(reading, "find_spec", lambda name: None if name == "SimpleITK" else found(name))

    with pytest.raises(MissingDependencyError, match=r"a\.mha is read with SimpleITK.*pip install .*\[formats\]"):
        read_scan(path)


def test_real_scan_and_its_label_lie_where_simpleitk_sees_them(shared, tmp_path):
    folder = shared / "data" / "anisotropic-brain"
    scan, label = read_scan(folder / "brain2_image.nrrd"), read_label(folder / "brain2_label.nrrd")
    assert scan.volume.array.shape == label.array.shape == (256, 256, 23)
    assert np.array_equal(scan.volume.affine, label.affine)

    write_mask(tmp_path / "m.nii.gz", label.array, scan)
    seen, written = sitk.ReadImage(str(folder / "brain2_label.nrrd")), sitk.ReadImage(str(tmp_path / "m.nii.gz"))
    np.testing.assert_allclose(written.GetOrigin(), seen.GetOrigin(), rtol=1e-6)
    np.testing.assert_allclose(written.GetSpacing(), seen.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(written.GetDirection(), seen.GetDirection(), atol=1e-6)
    assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(seen))


@pytest.mark.parametrize("line", ["endian: ", "foo: ", "", "space units: "])
def test_a_line_that_ends_simpleitks_process_is_refused_before(line, tmp_path):
    path = save(tmp_path / "a.nrrd")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\n\n", f"\n{line}{'9' * 2000}\n\n".encode(), 1))
    with pytest.raises(InputRefused, match=rf"a\.nrrd has a line of {2000 + len(line)} bytes in its header"):
        read_scan(path)
    free = f"\n# {line}{'9' * 2000}\ncontent: {'x' * 2000}\nkey:={line * 999}.\n\n"
    path.write_bytes(content.replace(b"\n\n", free.encode(), 1))
    assert read_scan(path).volume.array.any()


def test_a_carriage_return_ends_no_line_by_itself(tmp_path):
    path = save(tmp_path / "a.nrrd")
    content = path.read_bytes()
    # SimpleITK reads on after it as in a new line, whose length ends its process
    path.write_bytes(content.replace(b"\n\n", b"\n# free\r" + b"9" * 2000 + b"\n\n", 1))
    with pytest.raises(InputRefused, match=r"a\.nrrd has a carriage return inside of a line of its header"):
        read_scan(path)
    header, _, voxels = content.partition(b"\n\n")
    path.write_bytes(header.replace(b"\n", b"\r\n") + b"\r\n\r\n" + voxels)
    assert read_scan(path).volume.array.any()


@pytest.mark.parametrize("name", [b"a\0b", b"x" * 300, b""])
def test_a_name_that_no_file_has_is_refused(name, tmp_path):
    path = save(tmp_path / "a.mha")
    path.write_bytes(path.read_bytes().replace(b"ElementDataFile = LOCAL", b"ElementDataFile = " + name))
    with pytest.raises(InputRefused, match=r"a\.mha names no file that could hold its voxels"):
        read_scan(path)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (b"NDims = 3", b"NDims = " + b"3" * 50, "states impossible dimensions, NDims 33333333333333333333;"),
        (b"NDims = 3", b"NDims = -1", "states impossible dimensions, NDims -1;"),
        (b"NDims = 3", b"NDims = 99\nNDims = 3", "states impossible dimensions, NDims 99;"),
        (b"NDims = 3", b"NDims = 3\nName = " + b"x" * 300, "has more than 250 bytes in the field name"),
    ],
)
def test_a_metaimage_that_ends_simpleitks_process_is_refused_before(before, after, says, tmp_path):
    path = save(tmp_path / "a.mha")
    path.write_bytes(path.read_bytes().replace(before, after, 1))
    with pytest.raises(InputRefused, match=rf"a\.mha {says}"):
        read_scan(path)
