"""A scan of one slice, along any axis, is segmented by methods of slices, and its mask lies where the scan does."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nibabel.freesurfer.mghformat import MGHImage

from samkit.errors import InputRefused
from samkit.geometry import Volume
from samkit.planes import PLANES, PlaneView
from samkit.prompts import Box, Point
from samkit.runtime import open_session

TURNED = np.linalg.qr([[0.9, -0.2, 0.1], [0.2, 1.1, -0.1], [-0.1, 0.2, 1.9]])[0] * (-1, -1, 1)
AFFINES = {
    "oblique": nibabel.affines.from_matvec(TURNED * (0.9, 1.1, 1.9), (-30, 12, 5)),
    # The first axis runs to the head
    "lying": nibabel.affines.from_matvec(TURNED[:, [2, 0, 1]] * (1.9, 0.9, 1.1), (-30, 12, 5)),
}
PLANE = {"oblique": ("sagittal", "coronal", "axial"), "lying": ("axial", "sagittal", "coronal")}
"""Across each axis."""
SHAPE = (32, 32, 32)


def one_slice(across):
    """A bright block in uneven tissue, one voxel thin."""
    i, j, k = np.indices(SHAPE)
    array = (20 + (i + 2 * j + 3 * k) % 7).astype(np.int16)
    array[8:20, 10:22, 9:19] = 200
    return array.take([14], across)


def box(across):
    first, last = [4.0, 4.0, 4.0], [26.0, 28.0, 26.0]
    first[across] = last[across] = 0.0
    return Box(tuple(first), tuple(last))


@pytest.fixture
def session(bright_slices):
    with open_session(bright_slices, intensities=(0, 255)) as opened:
        yield opened


def in_simpleitk(array, affine):
    """SimpleITK's image of the first axes of an array."""
    sitk = pytest.importorskip("SimpleITK")
    axes = array.ndim
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array.transpose())
    image.SetSpacing(spacing[:axes].tolist())
    if axes == 3:
        image.SetDirection((np.diag([-1, -1, 1]) @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin([3.0, -4.0, 5.0][:axes])
    return image


def save(path, array, affine):
    if path.suffix in (".nrrd", ".mha"):
        pytest.importorskip("SimpleITK").WriteImage(in_simpleitk(array, affine), str(path))
    else:
        nibabel.save((MGHImage if path.suffix == ".mgz" else nibabel.Nifti1Image)(array, affine), path)
    return path


def check_same_place(mask, scan):
    """SimpleITK finds a mask where the bright part of its scan is."""
    sitk = pytest.importorskip("SimpleITK")
    mask, scan = sitk.ReadImage(str(mask)), sitk.ReadImage(str(scan))
    assert mask.GetSize() == scan.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(mask, get)(), getattr(scan, get)(), atol=1e-5)
    assert np.array_equal(sitk.GetArrayFromImage(mask) > 0, sitk.GetArrayFromImage(scan) == 200)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("across", range(3))
@pytest.mark.parametrize("lies", AFFINES)
def test_a_file_of_one_slice_is_segmented_where_it_lies(session, name, across, lies, tmp_path):
    array = one_slice(across)
    path = save(tmp_path / name, array, AFFINES[lies])
    session.set_image(path)
    assert session.plane == PLANE[lies][across]
    session.add(box(across))
    assert np.array_equal(session.mask(), array == 200)

    session.save(tmp_path / "m.nii.gz")
    written = nibabel.load(tmp_path / "m.nii.gz")
    assert written.shape == array.shape
    if name == "a.mgz":  # which SimpleITK does not read
        assert np.allclose(written.affine, nibabel.load(path).affine, atol=1e-5)
    else:
        check_same_place(tmp_path / "m.nii.gz", path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_a_file_of_two_axes_is_one_slice_and_so_is_its_mask(session, name, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    array = one_slice(2)[:, :, 0]
    sitk.WriteImage(in_simpleitk(array, AFFINES["oblique"]), str(tmp_path / name))
    session.set_image(tmp_path / name)
    session.add(box(2))

    assert np.array_equal(session.mask(), array[:, :, None] == 200)
    session.save(tmp_path / "m.nii")
    check_same_place(tmp_path / "m.nii", tmp_path / name)
    session.set_image(sitk.ReadImage(str(tmp_path / name)))
    session.add(box(2))
    assert session.mask().any()


@pytest.mark.parametrize("across", range(3))
def test_in_memory_as_in_a_file(session, across, tmp_path):
    array, affine = one_slice(across), AFFINES["oblique"]
    for image in (nibabel.Nifti1Image(array, affine), in_simpleitk(array, affine), Volume(array, affine)):
        session.set_image(image)
        session.add(box(across))
        assert np.array_equal(session.mask(), array == 200)
    session.set_image(one_slice(2)[:, :, 0][:, :, None], affine=affine)
    assert session.plane == "axial"


@pytest.mark.parametrize("across", range(3))
def test_one_slice_is_segmented_as_in_a_volume(session, bright_slices, across):
    array, affine = one_slice(across), AFFINES["lying"]
    session.set_image(Volume(array, affine))
    session.add(box(across))
    alone, logits = session.mask(), session.logits()
    assert np.array_equal(session.propagate().mask, alone)  # there is nowhere to go

    with open_session(bright_slices, plane=session.plane, intensities=(0, 255)) as other:
        other.set_image(Volume(np.repeat(array, 3, across), affine))
        other.add(box(across))
        assert np.array_equal(other.mask().take([0], across), alone)
        assert np.array_equal(other.logits().take([0], across), logits)


@pytest.mark.parametrize("across", range(3))
def test_another_plane_is_refused_and_what_was_set_stays(bright_slices, across):
    array, affine = one_slice(across), AFFINES["oblique"]
    own = PLANE["oblique"][across]
    for plane in PLANES:
        with open_session(bright_slices, plane=plane) as session:
            if plane == own:
                session.set_image(Volume(array, affine))
                assert session.overlay().any()
                continue
            session.set_image(Volume(np.repeat(array, 3, across), affine))
            sides = " x ".join(map(str, array.shape))
            with pytest.raises(
                InputRefused,
                match=f"the scan is {sides}, one {own} slice, and {plane} slices are asked for; leave plane out, or "
                f"give plane='{own}'",
            ):
                session.set_image(Volume(array, affine))
            assert session.plane == plane
            assert session.mask().shape == np.repeat(array, 3, across).shape


def test_a_method_that_looks_by_itself_takes_one_slice_of_any_plane(bright_structures):
    with open_session(bright_structures, intensities=(0, 255)) as session:
        for across in range(3):
            array = one_slice(across)
            session.set_image(Volume(array, AFFINES["oblique"]))
            assert session.plane == PLANE["oblique"][across]
            assert session.labels().shape == array.shape
            assert session.mask().any()


@pytest.mark.parametrize("across", range(3))
def test_methods_of_volumes_say_what_to_do(bright_export, across, tmp_path):
    array, affine = one_slice(across), AFFINES["oblique"]
    path = save(tmp_path / "a.nii", array, affine)
    with open_session(bright_export) as session:
        for image in (path, nibabel.load(path), Volume(array, affine)):
            with pytest.raises(
                InputRefused, match="a slice, not a volume; give a 3D scan of several slices, or use a 2D"
            ):
                session.set_image(image)
        with pytest.raises(InputRefused, match="a slice, not a volume"):  # as a server takes it
            session.take({"": Volume(array, affine)})


def test_a_line_is_no_slice(session):
    for shape in ((1, 1, 9), (9, 1, 1)):
        with pytest.raises(InputRefused, match="a line of voxels, not an image"):
            session.set_image(Volume(np.arange(9).reshape(shape), np.eye(4)))


def test_a_view_of_one_slice_is_the_slice():
    view = PlaneView.chosen((5, 1, 6), np.eye(4), None, "axial")
    assert (view.plane, view.count, view.shape) == ("coronal", 1, (6, 5))
    assert PlaneView.chosen((5, 4, 6), np.eye(4), None, "axial").plane == "axial"
    assert PlaneView.chosen((5, 4, 6), np.eye(4), "sagittal", "axial").plane == "sagittal"


def test_a_click_in_millimetres_finds_the_slice(session):
    array, affine = one_slice(1), AFFINES["lying"]
    session.set_image(array, affine=affine)
    place = (affine @ (14, 0, 14, 1))[:3]
    session.click(place, world=True)
    expected = session.mask()
    session.reset()
    session.add(Point((14.0, 0.0, 14.0), 1))
    assert np.array_equal(session.mask(), expected)
