"""Guards the stack of slices: any orientation gives the same picture, and its inverse is exact."""

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from samkit.geometry import voxel_to_world, world_to_voxel
from samkit.planes import PLANES, PlaneView, Window

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def as_oriented(array, affine, codes):
    """Return the same volume in another axis order."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return nibabel.orientations.apply_orientation(array, change), affine @ inv_ornt_aff(change, array.shape)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "LIA", "PIR", "SAL"])
def test_every_orientation_gives_the_same_slices(plane, codes):
    array = np.random.default_rng(0).integers(0, 99, (4, 5, 6))
    other, affine = as_oriented(array, AFFINE, codes)
    view, expected = PlaneView.of(other.shape, affine, plane), PlaneView.of(array.shape, AFFINE, plane)
    np.testing.assert_array_equal(view.slices(other), expected.slices(array))
    np.testing.assert_array_equal(view.volume(view.slices(other)), other)
    assert (view.count, view.shape, view.pixel_mm, view.slice_mm) == (
        expected.count, expected.shape, expected.pixel_mm, expected.slice_mm,
    )  # fmt: skip
    corner = world_to_voxel(affine, voxel_to_world(AFFINE, np.array([[1.0, 2.0, 3.5]])))
    np.testing.assert_allclose(view.to_slices(corner), expected.to_slices(np.array([[1.0, 2.0, 3.5]])), atol=1e-9)
    np.testing.assert_allclose(view.to_voxel(*view.to_slices(corner)[0]), corner[0], atol=1e-9)


def test_axial_slice_is_seen_from_below_with_anterior_on_top():
    array = np.zeros((4, 5, 6))
    array[3, 4, 2] = 1  # right, anterior
    slices = PlaneView.of(array.shape, AFFINE, "axial").slices(array)
    assert slices[2, 0, 0] == 1
    assert slices.shape == (6, 5, 4)


@pytest.mark.parametrize("plane", PLANES)
def test_voxel_lands_on_its_pixel(plane):
    array = np.zeros((4, 5, 6))
    array[1, 3, 4] = 1
    view = PlaneView.of(array.shape, AFFINE, plane)
    number, x, y = view.to_slices(np.array([[1, 3, 4]]))[0].astype(int)
    assert view.slices(array)[number, y, x] == 1


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "LIA"])
def test_file_index_is_the_one_across_the_plane(plane, codes):
    array, affine = as_oriented(np.zeros((4, 5, 6)), AFFINE, codes)
    view = PlaneView.of(array.shape, affine, plane)
    for number in range(view.count):
        index = [0.0, 0.0, 0.0]
        index[view.axes[0]] = view.file_index(number)
        assert view.to_slices(np.array([index]))[0, 0] == number


def test_window_lies_around_what_is_not_zero():
    slices = np.zeros((3, 10, 12))
    slices[0, 2, 3] = slices[2, 7, 8] = 1
    window = Window.around(slices, (4, 6))
    assert window.origin == (3, 3)
    image = np.arange(120.0).reshape(10, 12)
    np.testing.assert_array_equal(window.cut(image), image[3:7, 3:9])
    np.testing.assert_array_equal(window.cut(image[..., None])[..., 0], image[3:7, 3:9])
    back = window.paste(window.cut(image), -1)
    np.testing.assert_array_equal(back[3:7, 3:9], image[3:7, 3:9])
    assert (np.delete(back, np.s_[3:7], axis=0) == -1).all()


@pytest.mark.parametrize("shape", [(14, 16), (14, 5), (3, 16)])
def test_window_larger_than_the_slice_holds_zeros_around_it(shape):
    slices = np.zeros((1, 10, 12))
    slices[0, 0, 0] = slices[0, 9, 11] = 1
    window = Window.around(slices, shape)
    image = np.arange(1.0, 121).reshape(10, 12)
    cut = window.cut(image)
    assert cut.shape == shape
    assert (cut > 0).sum() == min(shape[0], 10) * min(shape[1], 12)
    back = window.paste(cut, 0)
    np.testing.assert_array_equal(back[back > 0], image[back > 0])


def test_window_of_an_empty_volume_is_in_the_middle_and_the_whole_one_changes_nothing():
    assert Window.around(np.zeros((2, 10, 12)), (4, 6)).origin == (3, 3)
    image = np.random.default_rng(0).normal(size=(10, 12))
    whole = Window.whole((10, 12))
    np.testing.assert_array_equal(whole.paste(whole.cut(image), 0), image)
