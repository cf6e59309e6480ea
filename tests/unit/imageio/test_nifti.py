"""What passes the gate is what the file holds; what is written has the input's geometry bit for bit and no names."""

from __future__ import annotations

import errno
import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samkit.errors import InputRefused, SamkitError
from samkit.files import replacing
from samkit.imageio.reading import files_of, read_scan
from samkit.imageio.writing import check_output, write_logits, write_mask

# A rotation of 20 and 30 degrees, voxels of 0.9 x 1.1 x 1.9 mm.
(A, B), (C, D) = np.array([[np.cos(t), np.sin(t)] for t in np.radians([20, 30])])
TURN = np.array([[A, -B, 0], [B, A, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, C, -D], [0, D, C]])
OBLIQUE = np.eye(4)
OBLIQUE[:3] = np.column_stack([TURN * [0.9, 1.1, 1.9], [-30.3, 12.7, 5.1]])
GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def values(shape=(7, 6, 5), dtype=np.int16):
    return (np.arange(np.prod(shape)).reshape(shape) % 90 + 1).astype(dtype)


def image(kind=nibabel.Nifti1Image, array=None, affine=OBLIQUE):
    made = kind(values() if array is None else array, affine)
    made.header["descrip"] = b"Jane Doe"
    made.header["aux_file"] = b"jane.doe"
    made.header["intent_name"] = b"Doe"
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Jane Doe 1970"))
    return made


def big_endian(made, path):
    swapped = made.header.as_byteswapped(">")
    nibabel.save(type(made)(np.asarray(made.dataobj).astype(">i2"), None, swapped), path)


@pytest.fixture(params=["nifti-1", "nifti-2", "big-endian", "pair", "pair.gz", "gz", "header half", "trailing axes"])
def stored(request, tmp_path):
    """The same scan in every form that NIfTI has."""
    name = {"pair": "a.img", "pair.gz": "a.img.gz", "gz": "a.nii.gz", "header half": "a.hdr"}.get(
        request.param, "a.nii"
    )
    path = tmp_path / name
    if request.param == "big-endian":
        big_endian(image(), path)
    elif request.param in ("pair", "pair.gz", "header half"):
        nibabel.save(image(nibabel.Nifti1Pair), path)
    elif request.param == "trailing axes":
        nibabel.save(image(array=values()[..., None, None]), path)
    else:
        nibabel.save(image(nibabel.Nifti2Image if request.param == "nifti-2" else nibabel.Nifti1Image), path)
    return path


def test_every_form_is_read_and_answered_in_its_geometry(stored, tmp_path):
    scan = read_scan(stored)
    before = nibabel.load(stored)
    assert np.array_equal(scan.volume.array, values())
    assert scan.volume.array.dtype == np.dtype("i2")
    assert np.array_equal(scan.volume.affine, before.affine)

    output = tmp_path / "mask.nii.gz"
    mask = values() > 40
    write_mask(output, mask, scan)
    after = nibabel.load(output)
    assert np.array_equal(after.affine, before.affine)
    assert after.affine.tobytes() == before.affine.tobytes()
    for name in GEOMETRY:
        assert np.array_equal(after.header[name], before.header[name]), name
    assert np.array_equal(after.header["pixdim"][:4], before.header["pixdim"][:4])
    assert after.shape == (7, 6, 5)
    assert after.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(after.dataobj), mask)


def test_no_text_of_the_scan_reaches_the_mask(stored, tmp_path):
    output = tmp_path / "mask.nii"
    write_mask(output, values() > 40, read_scan(stored))

    content = output.read_bytes()
    assert b"Doe" not in content.replace(b"\0", b"")
    assert b"jane" not in content
    assert not nibabel.load(output).header.extensions


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (4, 2), (2, 3)])
def test_form_codes_are_kept(codes, tmp_path):
    made = image(affine=np.diag([-0.9, 1.1, 1.9, 1.0]))
    made.set_sform(made.affine, codes[0])
    made.set_qform(made.affine, codes[1])
    nibabel.save(made, tmp_path / "a.nii")
    write_mask(tmp_path / "m.nii", values() > 40, read_scan(tmp_path / "a.nii"))
    before, after = nibabel.load(tmp_path / "a.nii"), nibabel.load(tmp_path / "m.nii")

    assert (int(after.header["sform_code"]), int(after.header["qform_code"])) == codes
    assert after.affine.tobytes() == before.affine.tobytes()
    assert after.header["xyzt_units"] == before.header["xyzt_units"]


def test_scaling_is_applied_and_the_mask_has_none(tmp_path):
    path = tmp_path / "a.nii"
    made = image()
    made.header.set_slope_inter(0.5, -3)
    nibabel.save(made, path)
    block = bytearray(path.read_bytes())
    stored_as = nibabel.load(path)
    expected = stored_as.get_fdata()
    scan = read_scan(path)
    assert scan.volume.array.dtype == np.float32
    np.testing.assert_allclose(scan.volume.array, expected, atol=1e-4)
    assert bytes(block[112:120]) != bytes(8)

    write_mask(tmp_path / "m.nii", values() > 40, scan)
    raw = np.frombuffer((tmp_path / "m.nii").read_bytes()[112:120], "<f4")
    assert raw.tolist() == [1, 0]


def test_simpleitk_sees_mask_and_scan_in_one_place(stored, tmp_path):
    same_place_in_simpleitk(stored, tmp_path)


def same_place_in_simpleitk(path, folder):
    sitk = pytest.importorskip("SimpleITK")
    try:
        scan_image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        pytest.skip(f"SimpleITK does not read this scan: {str(error).splitlines()[-1]}")
    scan = read_scan(path)
    mask = scan.volume.array > np.median(scan.volume.array)
    write_mask(folder / "m.nii.gz", mask, scan)
    written = sitk.ReadImage(str(folder / "m.nii.gz"))
    assert written.GetSpacing() == scan_image.GetSpacing()[:3]
    assert written.GetOrigin() == scan_image.GetOrigin()[:3]
    if scan_image.GetDimension() == 3:
        assert written.GetDirection() == scan_image.GetDirection()
    assert np.array_equal(sitk.GetArrayFromImage(written).transpose(2, 1, 0), mask)


def test_simpleitk_agrees_on_real_scans(shared, tmp_path):
    paths = sorted((shared / "data" / "orientations").glob("*.nii.gz"))[::5]
    for path in [*paths, shared / "data" / "ms-lesions" / "patient19" / "FLAIR.nii.gz"]:
        same_place_in_simpleitk(path, tmp_path)


def test_edge_cases_are_read_or_refused(shared):
    folder = shared / "data" / "nifti-edge-cases"
    refused = {}
    for path in sorted(folder.iterdir()):
        try:
            assert read_scan(path).volume.array.ndim == 3
        except InputRefused as error:
            refused[path.name] = error.code

    assert refused == {"5D_small.nii": "not-3d", "5D_zeros.nii.gz": "not-3d", "not-nifti.nii": "not-nifti"}


# --- Headers from hell ---


def header(**fields):
    made = nibabel.Nifti1Header()
    made.set_data_shape((7, 6, 5))
    made.set_data_dtype(np.int16)
    made.set_sform(np.eye(4), 1)
    made["magic"], made["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        made[name] = value
    return made.binaryblock + bytes(4) + values().tobytes(order="F")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "too-large"),
        ({"dim": [0, 1, 1, 1, 1, 1, 1, 1]}, "bad-header"),
        ({"dim": [3, -7, 6, 5, 1, 1, 1, 1]}, "bad-header"),
        ({"dim": [9, 7, 6, 5, 1, 1, 1, 1]}, "bad-header"),
        ({"dim": [3, 7, 6, 1, 1, 1, 1, 1]}, "not-3d"),
        ({"dim": [3, 7, 6, 500, 1, 1, 1, 1]}, "truncated"),
        ({"datatype": 128, "bitpix": 24}, "bad-datatype"),
        ({"datatype": 32, "bitpix": 64}, "bad-datatype"),
        ({"datatype": 999}, "bad-datatype"),
        ({"vox_offset": 1e30}, "bad-header"),
        ({"vox_offset": np.nan}, "bad-header"),
        ({"vox_offset": -352}, "bad-header"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "singular-affine"),
        ({"srow_x": [0, 0, 0, 0]}, "singular-affine"),
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, 0, 0, 1, 1, 1, 1]}, "singular-affine"),
        ({"sform_code": 99, "qform_code": 0, "pixdim": [1, 0, 0, 0, 1, 1, 1, 1]}, "singular-affine"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 0.9, "quatern_c": 0.9}, "bad-quaternion"),
        ({"xyzt_units": 1}, "bad-units"),
        ({"xyzt_units": 3 + 8}, "bad-units"),
        ({"xyzt_units": 7}, "bad-units"),
    ],
)
def test_hostile_header_is_refused_before_the_voxels(fields, code, tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(header(**fields))
    with pytest.raises(InputRefused) as refused:
        read_scan(path)

    assert refused.value.code == code


@pytest.mark.parametrize("units", [0, 2, 2 + 8, 2 + 56, 255 - 7])
def test_unit_of_space_is_mm_and_any_unit_of_time_is_kept(units, tmp_path):
    path, output = tmp_path / "a.nii", tmp_path / "m.nii"
    path.write_bytes(header(xyzt_units=units))
    write_mask(output, values() > 40, read_scan(path))

    assert output.read_bytes()[123] == units


def test_quaternion_that_is_not_used_does_not_matter(tmp_path):
    path, output = tmp_path / "a.nii", tmp_path / "m.nii"
    path.write_bytes(header(qform_code=1, quatern_b=0.9, quatern_c=0.9))
    write_mask(output, values() > 40, read_scan(path))

    assert nibabel.load(output).affine.tolist() == np.eye(4).tolist()


def test_form_code_that_nifti_does_not_know_is_a_warning_of_ours(tmp_path, capfd):
    path = tmp_path / "a.nii"
    path.write_bytes(header(sform_code=99))
    for _ in range(2):  # a second scan is as quiet as the first
        scan = read_scan(path)
        write_mask(tmp_path / "m.nii", values() > 40, scan)
        assert scan.warnings == (
            "sform_code 99 is not one of NIfTI's: the file's sform is not used",
            "the file does not say where its voxels lie in a patient; its axes are taken to run towards left, front "
            "and head, and left and right are unknown",
        )

    assert capfd.readouterr() == ("", "")


def test_gzip_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(header(dim=[3, 2048, 2048, 2048, 1, 1, 1, 1]) + bytes(10**6)))

    with pytest.raises(InputRefused, match="the limit is"):
        read_scan(path)


def test_limit_can_be_set(tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(header())

    with pytest.raises(InputRefused, match="the limit is 100"):
        read_scan(path, max_voxels=100)


@pytest.mark.parametrize("size", [0, 4, 100, 347, 351, 353])
def test_file_cut_anywhere_is_refused(size, tmp_path):
    path = tmp_path / "a.nii"
    path.write_bytes(header()[:size])

    with pytest.raises(InputRefused):
        read_scan(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=5))
def test_damaged_header_is_read_or_refused_and_nothing_else(changes, tmp_path):
    content = bytearray(header())
    for at, byte in changes:
        content[at] = byte
    path = tmp_path / "a.nii"
    path.write_bytes(bytes(content))

    sentence = ""
    try:
        assert read_scan(path).volume.array.ndim == 3
    except InputRefused as refused:
        sentence = str(refused)
    assert str(tmp_path) not in sentence


@pytest.mark.parametrize("half", ["a.hdr", "a.img"])
def test_half_a_pair_is_refused(half, tmp_path):
    nibabel.save(image(nibabel.Nifti1Pair), tmp_path / "a.img")
    (tmp_path / ({"a.hdr": "a.img", "a.img": "a.hdr"}[half])).unlink()

    with pytest.raises(InputRefused, match="the other half"):
        read_scan(tmp_path / half)


def test_infinite_values_are_counted(tmp_path):
    array = values(dtype=np.float32)
    array[0, 0, :2] = np.inf
    nibabel.save(image(array=array), tmp_path / "a.nii")

    with pytest.raises(InputRefused, match="2 of 210 voxels"):
        read_scan(tmp_path / "a.nii")


def test_unusual_voxel_size_is_a_warning(tmp_path):
    nibabel.save(image(affine=np.diag([1, 1, 40.0, 1])), tmp_path / "a.nii")

    assert "unusual voxel size" in read_scan(tmp_path / "a.nii").warnings[0]


# --- Writing ---


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "m.nii"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half" + bytes(1 // 0))

    assert [p.name for p in tmp_path.iterdir()] == ["m.nii"]
    assert path.read_bytes() == b"old"


def test_unwritable_place_is_one_sentence(tmp_path):
    with pytest.raises(SamkitError, match=r"m\.nii can't be written"), replacing(tmp_path / "gone" / "m.nii"):
        pass


def test_equal_masks_are_equal_files(tmp_path):
    nibabel.save(image(), tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    for name in ("one.nii.gz", "two.nii.gz"):
        write_mask(tmp_path / name, values() > 40, scan)

    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_logits_are_written_as_they_are(tmp_path):
    nibabel.save(image(), tmp_path / "a.nii")
    logits = np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)
    write_logits(tmp_path / "l.nii.gz", logits, read_scan(tmp_path / "a.nii"))

    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "l.nii.gz").dataobj), logits)


def test_output_with_the_same_file_by_another_name_is_refused(tmp_path):
    nibabel.save(image(nibabel.Nifti1Pair), tmp_path / "a.img")
    with pytest.raises(InputRefused, match=r"a\.hdr is one of the inputs"):
        check_output(tmp_path / "a.hdr", files_of(tmp_path / "a.img"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("loop.nii", r"loop\.nii can't be written \(Too many levels of symbolic links\); give another output"),
        ("x" * 300 + ".nii", r"x\.nii can't be written \(File name too long\)"),
        ("loop.nii/m.nii", r"m\.nii can't be written \(Too many levels"),
        ("a.nii/m.nii", r"the folder of m\.nii, "),
        ("none/m.nii", r"the folder of m\.nii, "),
    ],
)
def test_an_output_that_can_be_nowhere_is_refused_before_any_work(name, says, tmp_path):
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    (tmp_path / "a.nii").write_text("")
    with pytest.raises(InputRefused, match=says):
        check_output(tmp_path / name, [tmp_path / "a.nii"])


# --- Sentences that say what is wrong, and not what might be ---


def test_a_file_that_may_not_be_read_is_not_called_something_else(tmp_path, monkeypatch):
    def forbidden(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    for name in ("a.nii", "a.nii.gz", "a.mgz"):
        nibabel.save(nibabel.MGHImage(values(), OBLIQUE) if name == "a.mgz" else image(), tmp_path / name)
    monkeypatch.setattr(Path, "open", forbidden)
    for name in ("a.nii", "a.nii.gz", "a.mgz"):
        with pytest.raises(
            InputRefused, match=rf"^{name} can't be read \(Permission denied\); check its path, and who"
        ):
            read_scan(tmp_path / name)


@pytest.mark.parametrize(
    ("end", "other"), [(".nii.gz", ".nii"), (".mgz", ".mgh"), (".nii", ".nii.gz"), (".mgh", ".mgz")]
)
def test_a_name_that_says_packed_where_it_is_not_or_the_other_way_round_is_told(end, other, tmp_path):
    made = nibabel.MGHImage(values(), OBLIQUE) if end.startswith(".mg") else image()
    nibabel.save(made, tmp_path / f"a{other}")
    (tmp_path / f"a{other}").rename(tmp_path / f"b{end}")
    with pytest.raises(InputRefused, match=rf"give it a name that ends in \{other}$"):
        read_scan(tmp_path / f"b{end}")


@pytest.mark.parametrize("intercept", [np.nan, np.inf])
def test_an_intercept_that_is_no_number_is_not_called_truncated(intercept, tmp_path):
    nibabel.save(image(), tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([1, intercept], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(
        InputRefused, match=rf"adds {intercept:g} to all its voxels \(scl_inter\); write the file again"
    ):
        read_scan(tmp_path / "a.nii")
