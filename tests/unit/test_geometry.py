"""Grid and file are two views of one space: no orientation, spacing or crop moves a voxel or a click."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy import ndimage

from samkit.errors import GeometryError
from samkit.geometry import (
    Grid,
    Volume,
    check_affine,
    crop,
    crop_origin,
    resample_linear,
    upsample,
    voxel_to_world,
    world_to_voxel,
)

OBLIQUE = np.array([[0.9, -0.2, 0.1, -30.0], [0.25, 1.1, -0.1, 12.0], [-0.1, 0.2, 1.9, 5.0], [0, 0, 0, 1]])
ORIENTATIONS = [
    "".join(signs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for signs in itertools.product("RL", "AP", "SI")
]


def in_orientation(array, affine, codes):
    """The same scan, stored with its axes along `codes`."""
    change = ornt_transform(nibabel.io_orientation(affine), axcodes2ornt(codes))
    return apply_orientation(array, change), affine @ inv_ornt_aff(change, array.shape)


def scan(shape=(9, 12, 7), affine=OBLIQUE):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32), affine


def to_file(grid, box, origin, *, fill):
    """A box of the grid on the file's whole array."""
    out = np.full(grid.file_shape, fill, np.float32)
    region, values = grid.region_to_file(box, origin)
    out[region] = values
    return out


def points_to_file(grid, points):
    """What `points_from_file` takes to these indices of the grid: it is affine, so three steps of one voxel tell it."""
    start, *ends = grid.points_from_file(np.vstack([np.zeros(3), np.eye(3)]))
    return np.linalg.solve((np.array(ends) - start).T, (points - start).T).T


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_has_one_grid(codes):
    array, affine = scan()
    stored, stored_affine = in_orientation(array, affine, codes)
    reference = Grid.over(array.shape, affine, (1.5, 1.5, 1.5))
    grid = Grid.over(stored.shape, stored_affine, (1.5, 1.5, 1.5))
    point = np.array([[3.25, 5.5, 2.75]])
    stored_point = world_to_voxel(stored_affine, voxel_to_world(affine, point))

    assert len(set(ORIENTATIONS)) == 48
    assert grid.shape == reference.shape
    np.testing.assert_allclose(grid.from_file(stored), reference.from_file(array), atol=1e-5)
    np.testing.assert_allclose(grid.points_from_file(stored_point), reference.points_from_file(point), atol=1e-9)
    np.testing.assert_allclose(points_to_file(grid, grid.points_from_file(stored_point)), stored_point, atol=1e-9)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_to_file_undoes_from_file_at_the_files_spacing(codes):
    array, affine = scan(affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    stored, stored_affine = in_orientation(array, affine, codes)
    grid = Grid.over(stored.shape, stored_affine, (1.0, 2.0, 3.0))

    assert np.array_equal(to_file(grid, grid.from_file(stored), (0, 0, 0), fill=-9), stored)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR", "ILP", "PIR"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.9, 2.6)])
def test_positions_survive_the_way_to_the_grid_and_back(codes, spacing):
    """An array that holds its own world x, y and z: linear interpolation must return them."""
    _, affine = in_orientation(np.zeros((18, 21, 15)), OBLIQUE, codes)
    shape = in_orientation(np.zeros((18, 21, 15)), OBLIQUE, codes)[0].shape
    grid = Grid.over(shape, affine, spacing)
    index = np.indices(shape).reshape(3, -1).T
    world = voxel_to_world(affine, index).reshape(*shape, 3)
    for axis in range(3):
        on_grid = grid.from_file(world[..., axis])
        cells = np.indices(grid.shape).reshape(3, -1).T
        expected = voxel_to_world(affine, points_to_file(grid, cells))[:, axis].reshape(grid.shape)
        inner = (slice(3, -3),) * 3
        np.testing.assert_allclose(on_grid[inner], expected[inner], atol=1e-3)
        back = to_file(grid, on_grid, (0, 0, 0), fill=0)
        inner = (slice(5, -5),) * 3
        np.testing.assert_allclose(back[inner], world[..., axis][inner], atol=1e-3)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR", "ILP"])
def test_points_agree_with_world_coordinates(codes):
    """The grid's own affine, built from first principles, gives the same index."""
    array, affine = in_orientation(np.zeros((18, 21, 15)), np.diag([1.2, 0.8, 2.5, 1.0]), codes)
    grid = Grid.over(array.shape, affine, (1.0, 1.0, 1.0))
    corners = voxel_to_world(affine, np.array([[-0.5] * 3, [n - 0.5 for n in array.shape]]))
    corner = corners.min(axis=0)
    for world in ([3.0, 4.0, 9.0], [10.3, 7.7, 20.1]):
        (index,) = grid.points_from_file(world_to_voxel(affine, np.array([world])))
        np.testing.assert_allclose(index, np.array(world) - corner - 0.5, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    origin=st.tuples(*[st.integers(-20, 30)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4)] * 3),
    codes=st.sampled_from(ORIENTATIONS),
)
def test_box_from_file_is_a_crop_of_the_grid(origin, spacing, codes):
    array, affine = in_orientation(*scan((14, 11, 9)), codes)
    grid = Grid.over(array.shape, affine, spacing)

    np.testing.assert_allclose(
        grid.box_from_file(array, origin, (16, 16, 16)), crop(grid.from_file(array), origin, 16), atol=2e-5
    )


@settings(max_examples=60, deadline=None)
@given(origin=st.tuples(*[st.integers(-12, 25)] * 3), codes=st.sampled_from(ORIENTATIONS))
def test_a_box_lands_on_the_file_where_the_grid_says(origin, codes):
    """Boxes that tile the grid cover every file voxel once, and each voxel gets the value of its own cell."""
    array, affine = in_orientation(*scan((24, 20, 18), np.diag([0.8, 0.8, 1.1, 1.0])), codes)
    grid = Grid.over(array.shape, affine, (1.6, 1.6, 2.2))
    inside = to_file(grid, np.ones((8, 8, 8), np.float32), origin, fill=0) == 1
    cells = np.rint(grid.points_from_file(np.indices(array.shape).reshape(3, -1).T)).astype(int)
    expected = ((cells >= origin) & (cells < np.add(origin, 8))).all(axis=1).reshape(array.shape)

    assert np.array_equal(inside, expected)


@settings(max_examples=40, deadline=None)
@given(point=st.tuples(*[st.floats(-0.5, 8.5)] * 3), codes=st.sampled_from(ORIENTATIONS))
def test_points_go_to_the_grid_and_back(point, codes):
    array, affine = in_orientation(*scan((9, 9, 9)), codes)
    grid = Grid.over(array.shape, affine, (1.5, 0.7, 3.0))

    np.testing.assert_allclose(points_to_file(grid, grid.points_from_file(np.array([point])))[0], point, atol=1e-9)


def test_round_off_adds_no_plane_and_moves_no_crop():
    for noise in (-3e-6, 0.0, 3e-6):
        grid = Grid.over((10, 10, 10), np.diag([1 + noise, 1.0, 1.0, 1.0]), (1.0, 1.0, 1.0))
        assert grid.shape == (10, 10, 10)
        assert crop_origin(np.array([20.5 + noise, 7.0, 9.49]), 16) == (13, -1, 1)


def test_crop_puts_the_click_in_the_middle_and_zeros_outside():
    array = np.arange(1, 1001, dtype=np.float32).reshape(10, 10, 10)
    origin = crop_origin(np.array([1.2, 5.0, 9.4]), 8)
    box = crop(array, origin, 8)

    assert box[4, 4, 4] == array[1, 5, 9]
    assert not box[:3].any()
    assert not box[:, :, 5:].any()
    assert not crop(array, (50, 0, 0), 8).any()


@pytest.mark.parametrize("step", [(1.5, 0.7, 1.0), (0.25, 0.25, 0.25), (3.0, 2.0, 1.3)])
@pytest.mark.parametrize("fill", [None, -9.0])
def test_resampling_agrees_with_scipy(step, fill):
    array, _ = scan()
    start = (0.25, -0.4, 0.1)
    expected = ndimage.affine_transform(
        array, step, offset=start, output_shape=(8, 9, 10), order=1,
        mode="nearest" if fill is None else "constant", cval=fill or 0,
    )  # fmt: skip

    np.testing.assert_allclose(resample_linear(array, step, start, (8, 9, 10), fill=fill), expected, atol=1e-5)


def test_resampling_agrees_with_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    array, affine = scan((20, 22, 18), np.diag([1.0, 0.8, 2.0, 1.0]))
    grid = Grid.over(array.shape, affine, (1.5, 1.5, 1.5))
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((1.0, 0.8, 2.0))
    target = sitk.Image(*[int(n) for n in grid.shape], sitk.sitkFloat32)
    target.SetSpacing((1.5, 1.5, 1.5))
    # the first voxels' corners coincide
    target.SetOrigin([0.5 * (1.5 - s) for s in (1.0, 0.8, 2.0)])
    expected = sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(), sitk.sitkLinear, 0.0))
    inner = tuple(slice(1, n - 1) for n in grid.shape)

    np.testing.assert_allclose(grid.from_file(array)[inner], expected.transpose(2, 1, 0)[inner], atol=1e-4)


def test_upsampling_agrees_with_torch():
    torch = pytest.importorskip("torch")
    logits = scan((8, 8, 8))[0]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None], scale_factor=4, mode="trilinear", align_corners=False
    )[0, 0]

    np.testing.assert_allclose(upsample(logits, 4), expected.numpy(), atol=1e-5)


def test_volume_knows_its_voxels():
    volume = Volume(np.zeros((2, 2, 2)), OBLIQUE)

    assert volume.spacing == pytest.approx([np.linalg.norm(OBLIQUE[:3, axis]) for axis in range(3)])
    assert volume.voxel_ml == pytest.approx(abs(np.linalg.det(OBLIQUE[:3, :3])) / 1000)


@pytest.mark.parametrize("breaks", ["nan", "zero column", "flat"])
def test_unusable_affine_is_refused(breaks):
    affine = np.eye(4)
    if breaks == "nan":
        affine[0, 0] = np.nan
    elif breaks == "zero column":
        affine[:3, 1] = 0
    else:
        affine[:3, 1] = affine[:3, 0]
    with pytest.raises(GeometryError, match="repair the file's sform or qform"):
        check_affine(affine)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan")), (1, 1)])
def test_unusable_spacing_is_refused(spacing):
    with pytest.raises(GeometryError, match="three positive numbers"):
        Grid.over((4, 4, 4), np.eye(4), spacing)


@pytest.mark.parametrize("edge", [1e-30, 1e-7, 1e5, 1e30])
def test_voxels_that_no_scanner_makes_are_refused(edge):
    with pytest.raises(GeometryError, match=r"voxel edges of 1 x 1 x (1e.*|100000) mm are no scan's"):
        check_affine(np.diag([1, 1, edge, 1.0]))


def test_tiny_voxels_are_no_singular_affine():
    check_affine(np.diag([1e-3, 1e-3, 1e-3, 1.0]))
    check_affine(np.diag([0.5, 0.5, 30.0, 1.0]))


def test_an_affine_of_three_rows_is_refused():
    with pytest.raises(GeometryError, match=r"the affine has the shape \(3, 4\), needed is \(4, 4\); write all four"):
        check_affine(np.eye(4)[:3])
