"""What a session is given in memory passes the gate of files, and is what a file of it would be."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from PIL import Image

from samkit.errors import InputRefused, OptionError, PromptError, SamkitError
from samkit.geometry import Volume
from samkit.imageio.in_memory import study_of
from samkit.imageio.reading import read_scan
from samkit.imageio.writing import write_mask

SHAPE = (9, 8, 7)
OBLIQUE = np.array([[0.9, -0.2, 0.1, -30.0], [0.25, 1.1, -0.1, 12.0], [-0.1, 0.2, 1.9, 5.0], [0, 0, 0, 1]])


def values(dtype=np.int16, shape=SHAPE):
    return np.random.default_rng(0).integers(1, 99, shape).astype(dtype)


def same(scan, other):
    assert scan.volume.array.dtype == other.volume.array.dtype
    assert np.array_equal(scan.volume.array, other.volume.array)
    assert np.array_equal(scan.volume.affine, other.volume.affine)


# --- nibabel ---


def stored(path, array, affine=OBLIQUE, slope=None, image=nibabel.Nifti1Image):
    made = image(array, affine)
    if slope:
        made.header.set_slope_inter(*slope)
        made.header.set_data_dtype(np.int16)
    made.to_filename(path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("image", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_nibabel_image_is_its_file(tmp_path, dtype, image):
    path = stored(tmp_path / "a.nii.gz", values(dtype), image=image)
    same(study_of(nibabel.load(path)).scan, read_scan(path))


def test_a_scaled_nibabel_image_is_its_file(tmp_path):
    path = stored(tmp_path / "a.nii", values(np.float64) / 3, slope=(0.37, 1.5))
    assert nibabel.load(path).dataobj.slope == pytest.approx(0.37)
    same(study_of(nibabel.load(path)).scan, read_scan(path))


def test_a_freesurfer_image_is_its_file(tmp_path):
    path = tmp_path / "a.mgz"
    nibabel.save(nibabel.MGHImage(values(np.uint8), OBLIQUE.astype(np.float32)), path)
    ours, files = study_of(nibabel.load(path)).scan, read_scan(path)
    assert np.array_equal(ours.volume.array, files.volume.array)
    assert np.allclose(ours.volume.affine, files.volume.affine, atol=1e-4)


def test_an_image_made_in_memory_is_what_its_file_would_be(tmp_path):
    made = nibabel.Nifti1Image(values(np.float32), OBLIQUE)
    ours = study_of(made).scan
    same(ours, read_scan(stored(tmp_path / "a.nii", values(np.float32))))
    assert made.header["sform_code"] == 2  # it is as it was


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (4, 2)])
def test_a_mask_takes_over_the_forms_of_a_nibabel_image(tmp_path, sform, qform):
    rigid = np.diag([-1.5, 0.75, 2.0, 1.0])
    made = nibabel.Nifti1Image(values(), rigid)
    made.set_sform(rigid, sform)
    made.set_qform(rigid, qform)
    write_mask(tmp_path / "m.nii.gz", values() > 40, study_of(made).scan)
    header = nibabel.load(tmp_path / "m.nii.gz").header

    assert (int(header["sform_code"]), int(header["qform_code"])) == (sform, qform)
    assert np.array_equal(header.get_best_affine(), made.header.get_best_affine())


def test_the_affine_counts_where_the_header_has_another():
    header = nibabel.Nifti1Image(values(), np.eye(4)).header
    assert np.allclose(study_of(nibabel.Nifti1Image(values(), OBLIQUE, header)).scan.volume.affine, OBLIQUE)


def test_the_file_of_an_image_is_known_as_its_source(tmp_path):
    path = stored(tmp_path / "a.nii", values())
    assert study_of(nibabel.load(path)).sources == (path,)
    assert study_of(nibabel.Nifti1Image(values(), OBLIQUE)).sources == ()


# --- SimpleITK ---


@pytest.fixture
def sitk():
    return pytest.importorskip("SimpleITK", reason="pip install 'samkit[formats]'")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize(
    "affine",
    [
        np.eye(4),
        np.diag([-2.0, 0.5, 3.0, 1.0]),
        np.array([[0, -1, 0, 7], [0, 0, 2.5, -3], [1, 0, 0, 9], [0, 0, 0, 1.0]]),
    ],
)
def test_a_simpleitk_image_is_what_nibabel_reads_bit_for_bit(tmp_path, sitk, dtype, affine):
    path = stored(tmp_path / "a.nii.gz", values(dtype), affine)
    same(study_of(sitk.ReadImage(str(path))).scan, read_scan(path))


def test_an_oblique_simpleitk_image_lies_where_nibabel_sees_it(tmp_path, sitk):
    rotated = np.array([[0.8, -0.6, 0, -30], [0.6, 0.8, 0, 12], [0, 0, 1.9, 5], [0, 0, 0, 1.0]])
    path = stored(tmp_path / "a.nii.gz", values(), rotated)
    ours, files = study_of(sitk.ReadImage(str(path))).scan, read_scan(path)
    assert np.array_equal(ours.volume.array, files.volume.array)
    assert np.allclose(ours.volume.affine, files.volume.affine, atol=1e-5)


def test_a_simpleitk_image_is_its_own_file(tmp_path, sitk):
    image = sitk.GetImageFromArray(values().transpose())
    image.SetSpacing((0.5, 1.5, 3.0))
    image.SetOrigin((10, -20, 30))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    same(study_of(image).scan, read_scan(tmp_path / "a.nrrd"))


def test_several_values_in_a_voxel_are_refused(sitk):
    image = sitk.GetImageFromArray(values(shape=(7, 8, 9, 3)), isVector=True)
    with pytest.raises(InputRefused, match="the image given holds 3 values in each voxel"):
        study_of(image)


# --- Arrays ---


def test_an_array_keeps_its_memory_and_its_affine():
    array = values()
    scan = study_of(array, affine=OBLIQUE.tolist()).scan
    assert np.shares_memory(scan.volume.array, array)
    assert np.array_equal(scan.volume.affine, OBLIQUE)
    same(study_of(Volume(array, OBLIQUE)).scan, scan)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">i2"])
def test_what_no_scan_holds_becomes_what_one_does(dtype):
    array = study_of(values(dtype), affine=OBLIQUE).scan.volume.array
    assert array.dtype == (np.int16 if dtype == ">i2" else np.float32)
    assert np.array_equal(array, values())


def broken(kind):
    array, affine = values(np.float32), np.eye(4)
    if kind == "NaN":
        array[1, 2, 3] = np.nan
    if kind == "constant":
        array[:] = 3
    if kind == "dark":
        array = -array
    if kind == "singular":
        affine[0] = 0
    if kind == "series":
        array = np.stack([array, array], -1)
    if kind == "flat":
        array = array[:, :, :1]
    return array, affine


SENTENCES = {
    "NaN": "1 of 504 voxels of {} are NaN or infinite, or too large for float32; replace them first",
    "constant": "all voxels of {} have the value 3; give a scan with contrast",
    "dark": "{} has no voxel above zero (largest -1), so its z-score is undefined",
    "singular": "{}: the affine is singular",
    "series": "{} is 9 x 8 x 7 x 2: more than one volume; give one volume",
    "flat": "{} is 9 x 8 x 1: a slice, not a volume; give a 3D scan of several slices",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_memory_and_file_meet_the_same_sentence(tmp_path, kind):
    array, affine = broken(kind)
    given = {
        "the array": lambda: study_of(array, affine=affine),
        "the volume given": lambda: study_of(Volume(array, affine)),
        "the image given": lambda: study_of(nibabel.Spm99AnalyzeImage(array, affine)),
        "the array for t1c": lambda: study_of({"t1c": array, "t2w": values()}, affine=affine),
    }
    for name, give in given.items():
        with pytest.raises(InputRefused) as refused:
            give()
        assert str(refused.value).startswith(SENTENCES[kind].format(name))
    if kind != "singular":  # nibabel writes no such header
        path = stored(tmp_path / "a.nii", array, affine)
        with pytest.raises(InputRefused) as refused:
            study_of(path)
        assert str(refused.value).startswith(SENTENCES[kind].format("a.nii"))


def test_units_are_judged_where_an_image_states_them():
    made = nibabel.Nifti1Image(values(), np.eye(4))
    made.header.set_xyzt_units("micron")
    with pytest.raises(InputRefused, match="the image given states its geometry in micrometres, needed is mm"):
        study_of(made)


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.eye(3), r"the affine has the shape \(3, 3\), needed is \(4, 4\); give the affine, \(4, 4\)"),
        ("eye", "the affine of the array is no array of numbers"),
        (np.full((4, 4), np.nan), "the affine holds NaN or Inf"),
        (OBLIQUE.T, "the affine's last row is -30, 12, 5, 1 and not 0, 0, 0, 1, as if it were transposed; give"),
        (np.diag([1.0, 1, 1, 0]), "the affine's last row is 0, 0, 0, 0 and not 0, 0, 0, 1; give the affine"),
    ],
)
def test_what_is_no_affine_is_refused(affine, words):
    with pytest.raises(InputRefused, match=words):
        study_of(values(), affine=affine)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: study_of(OBLIQUE, affine=values()), "the array and the affine have changed places"),
        (
            lambda: study_of(values()[0], affine=OBLIQUE),
            r"a picture, and an affine is for scans .*; leave the ",
        ),
        (
            lambda: study_of(values()[None], affine=OBLIQUE),
            r"an axis of length one in front of .*; give array",
        ),
        (lambda: study_of(values()[None, None], affine=OBLIQUE), r"with 2 axes of length one .*; give array\[0, 0\]$"),
        (lambda: study_of(values() * 1e300, affine=OBLIQUE), "voxels of the array are .* too large for float32"),
        (lambda: study_of(values()[0] * 1e300), "values of the picture given are .* too large for float32"),
        (
            lambda: study_of(values()[0], affine=OBLIQUE),
            r"give array\[:, :, None\] for a scan of one slice, which methods of slices take",
        ),
        (lambda: study_of("nowhere/a.nii"), "there is no file a.nii, for there is no folder nowhere; check the path"),
        (lambda: study_of("a.nii"), "there is no file a.nii; check the path"),
        (lambda: study_of(np.ma.masked_less(values(), 9), affine=OBLIQUE), "is a masked array, .*; give array.filled"),
        (lambda: study_of(values(), affine=OBLIQUE, volume="0"), "volume is '0', needed is a whole number, .*volume=0"),
        (lambda: study_of(values(), affine=OBLIQUE, volume=True), "volume is True, needed is a whole number"),
    ],
)
def test_what_people_mix_up_is_told(call, words):
    with pytest.raises(SamkitError, match=words):
        call()


def test_an_array_without_its_affine_is_told_how_to_give_it():
    with pytest.raises(
        InputRefused, match=r"the array is 9 x 8 x 7 and does not say where .* set_image\(array, affine=affine\)"
    ):
        study_of(values())
    with pytest.raises(InputRefused, match="the array for t2w is 9 x 8 x 7 and does not say"):
        study_of({"t1c": Volume(values(), OBLIQUE), "t2w": values()})


def test_an_affine_for_what_has_its_own_is_refused(tmp_path):
    for image in ("a.nii", nibabel.Nifti1Image(values(), OBLIQUE), {"t1c": values(), "t2w": tmp_path / "b.nii"}):
        with pytest.raises(OptionError, match="is no array but has its own; leave it out"):
            study_of(image, affine=OBLIQUE)


@pytest.mark.parametrize("image", [[[1, 2], [3, 4]], 7, None, b"a.nii", {"t1c": object(), "t2w": "b.nii"}])
def test_anything_else_is_told_by_its_type(image):
    kind = type(image["t1c"] if isinstance(image, dict) else image).__name__
    with pytest.raises(
        PromptError, match=f"is of the type {kind}; give a file's path, a nibabel or SimpleITK image, a numpy"
    ):
        study_of(image)


class Tensor:
    """What numpy makes an array of, without being one."""

    def __array__(self, dtype=None, copy=None):
        return values()


@pytest.mark.parametrize("image", [[[1, 2], [3, 4]], (1, 2), Image.new("L", (3, 4)), Tensor()])
def test_what_numpy_makes_an_array_of_is_told_so(image):
    with pytest.raises(PromptError, match=r"is of the type \w+; .*; numpy\.asarray\(image\) makes an array of it$"):
        study_of(image)


@pytest.mark.parametrize("image", [7, None, b"a.nii"])
def test_what_numpy_makes_no_image_of_is_not(image):
    with pytest.raises(PromptError, match=r"by sequence$"):
        study_of(image)


@pytest.mark.parametrize("shape", [(0, 5, 5), (5, 0, 5, 2), (0, 5), (0,), (5, 5, 5, 0)])
def test_an_array_without_voxels_is_told_so(shape):
    sides = " x ".join(map(str, shape))
    for affine in (None, np.eye(4)):
        with pytest.raises(InputRefused, match=f"the array is {sides}: it has no voxels; give one") as refused:
            study_of(np.zeros(shape), affine=affine)
        assert refused.value.code == "empty"
    if len(shape) > 2:
        with pytest.raises(InputRefused, match=f"is {sides}: it has no voxels"):
            study_of(nibabel.Nifti1Image(np.zeros(shape), np.eye(4)))


def test_a_list_is_no_array_even_with_an_affine():
    with pytest.raises(PromptError, match="is of the type list"):
        study_of(values().tolist(), affine=OBLIQUE)


def test_a_sequence_has_a_name():
    with pytest.raises(PromptError, match="1 is no name of a sequence"):
        study_of({1: values()}, affine=OBLIQUE)


def test_sequences_may_come_from_anywhere(tmp_path):
    path = stored(tmp_path / "a.nii", values())
    study = study_of({"t1c": path, "t2w": nibabel.load(path), "t2f": Volume(values(), OBLIQUE)})
    assert list(study.scans) == ["t1c", "t2w", "t2f"]
    assert study.sources == (path, path)


# --- Several volumes ---


def series(shape=(*SHAPE, 4)):
    return values(np.int16, shape)


def forms_of_a_series(tmp_path, sitk=None):
    """The same four volumes in every form: nibabel's own, packed, scaled, .mgz, .nrrd, in memory."""
    array = series()
    plain = stored(tmp_path / "plain.nii", array)
    packed = stored(tmp_path / "packed.nii.gz", array)
    nibabel.save(nibabel.MGHImage(array, OBLIQUE.astype(np.float32)), tmp_path / "a.mgz")
    given = {"plain": plain, "packed": packed, "mgz": tmp_path / "a.mgz", "proxy": nibabel.load(packed)}
    given |= {"image": nibabel.Nifti1Image(array, OBLIQUE), "volume": Volume(array, OBLIQUE)}
    if sitk is not None:
        image = sitk.GetImageFromArray(array.transpose(), isVector=False)
        for end in ("nrrd", "mha"):
            sitk.WriteImage(image, str(tmp_path / f"a.{end}"), useCompression=end == "mha")
            given[end] = tmp_path / f"a.{end}"
        given["SimpleITK"] = image
    return given


@pytest.mark.parametrize("number", [0, 1, 3])
def test_one_volume_of_several_is_read_alone(tmp_path, sitk, number):
    for form, given in forms_of_a_series(tmp_path, sitk).items():
        assert np.array_equal(study_of(given, volume=number).scan.volume.array, series()[..., number]), form


def test_a_scaled_volume_of_several_is_read_with_its_scale(tmp_path):
    path = stored(tmp_path / "a.nii.gz", series().astype(np.float64) / 3, slope=(0.25, 2.0))
    found = study_of(path, volume=2).scan.volume.array
    assert np.array_equal(found, np.asarray(nibabel.load(path).dataobj)[..., 2].astype(np.float32))


def test_a_volume_that_is_not_there_is_refused(tmp_path):
    for form, given in forms_of_a_series(tmp_path).items():
        with pytest.raises(InputRefused, match=r"holds 4 volume\(s\), and number 4 is .*; give volume from 0 to 3"):
            study_of(given, volume=4)
        with pytest.raises(InputRefused, match="more than one volume"):
            study_of(given)
        assert form
    with pytest.raises(InputRefused, match=r"holds 1 volume\(s\), and number 1 is asked for.*; leave volume out"):
        study_of(values(), affine=OBLIQUE, volume=1)
    assert study_of(values(), affine=OBLIQUE, volume=0).scan.volume.array.shape == SHAPE


# --- Pictures ---


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 3), (8, 9, 4)])
def test_an_array_of_few_channels_is_a_picture(shape):
    study = study_of(values(np.uint8, shape))
    assert study.picture.dtype == np.float32
    assert np.array_equal(study.picture, values(np.uint8, shape))
    assert not study.scans


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((8, 9, 3), np.uint8, True),
        ((8, 9, 4), np.uint8, True),
        ((8, 9, 3), np.int16, False),
        ((3, 8, 9), np.uint8, False),
    ],
)
def test_colours_with_an_affine_are_told_to_be_slices(shape, dtype, told):
    warnings = study_of(values(dtype, shape), affine=np.eye(4)).warnings
    assert [f"is taken for a scan of {shape[2]} slices: if it is a picture in colour" in one for one in warnings] == (
        [True] * told
    )


def test_a_method_of_more_sequences_takes_more_channels():
    assert study_of(values(shape=(8, 9, 6)), channels=6).picture.shape == (8, 9, 6)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.full((8, 9), np.nan), "72 of 72 values of the picture given are NaN"),
        (np.full((8, 9), 256.0), "has values up to 256, and black to white is 0 to 255; scale it first"),
        (np.linspace(-3, 9, 72).reshape(8, 9), "up to 9 and down to -3, and black"),
        (np.linspace(0, 1, 72).reshape(8, 9), "has values up to 1, and black"),
        (np.zeros((8, 9), bool), "the picture given holds bool pixels"),
        (np.zeros((8, 9), object), "the picture given holds object pixels"),
    ],
)
def test_what_is_no_picture_is_refused(picture, words):
    with pytest.raises(InputRefused, match=words):
        study_of(picture)


def test_a_picture_has_one_volume(tmp_path):
    Image.fromarray(values(np.uint8, (8, 9))).save(tmp_path / "a.png")
    for picture in (values(np.uint8, (8, 9)), tmp_path / "a.png"):
        with pytest.raises(OptionError, match="volume is for scans, and a picture is given; leave it out"):
            study_of(picture, volume=0)


# --- What is told of it ---


def test_nothing_that_is_shown_names_a_file(tmp_path):
    path = stored(tmp_path / "jane-doe.nii", values())
    study = study_of({"t1c": path, "t2w": nibabel.load(path)})
    for thing in (study, study.scan, study.scan.volume):
        assert "jane" not in repr(thing)
        assert "9 x 8 x 7 voxels of 0.93" in repr(thing)
    assert str(study_of(values(np.uint8, (8, 9)))) == "the picture given: 9 x 8 pixels"
    assert str(study_of(values(), affine=np.eye(4))) == "the array: 9 x 8 x 7 voxels of 1 x 1 x 1 mm"
