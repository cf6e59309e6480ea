"""Guards the pictures of a report: the slice on which two masks differ most, upright, and no differing pixel lost."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from samkit.benchmarks.accuracy.differing_slices import MOST_PIXELS, worst_slice
from samkit.geometry import Volume
from samkit.methods import get_method
from samkit.protocols.case import Case
from samkit.protocols.simulated_user import SimulatedUser

SHAPE = (30, 20, 10)


def user_on(volumes, picture, target, name="m-sam", policy="centre"):
    method = get_method(name)
    case = Case("case 1", volumes, {"": target}, picture=picture)
    return SimulatedUser.of(case, policy, method, method.sizes["small"], "small")


def image(entry, key):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(getattr(entry, key)))))


@pytest.fixture
def volume():
    ramp = np.broadcast_to(np.arange(SHAPE[0], dtype=np.float32)[:, None, None], SHAPE)
    return Volume(np.ascontiguousarray(ramp), np.eye(4))


def test_slice_with_most_differing_voxels_is_shown(volume):
    theirs = np.zeros(SHAPE, np.uint8)
    theirs[5:9, 5:9] = 1
    ours = theirs.copy()
    ours[5, 5, 2] = 0
    ours[20:23, 12, 7] = 1
    found = worst_slice(user_on({"": volume}, None, theirs > 0), 3, ours, theirs)
    assert [found.case, found.click, found.axis, found.index, found.flipped] == ["case 1", 3, "axial", 7, 3]
    shown, reference = image(found, "found"), image(found, "reference")
    assert shown.shape == reference.shape == image(found, "image").shape == (20, 30)
    assert set(np.unique(shown)) == {0, 255}
    assert int((shown != reference).sum()) == 3
    # Right is on the left, anterior on top
    assert shown[20 - 1 - 12, 30 - 1 - 21] == 255
    assert image(found, "image")[0, 0] > image(found, "image")[0, -1]


def test_without_a_difference_the_slice_with_most_of_the_mask_is_shown(volume):
    mask = np.zeros(SHAPE, np.uint8)
    mask[5, 5, 1], mask[5:9, 5, 6] = 1, 1
    found = worst_slice(user_on({"": volume}, None, mask > 0), 1, mask, mask)
    assert (found.index, found.flipped) == (6, 0)


def test_prompted_slice_is_shown_for_a_method_of_slices(volume):
    target = np.zeros(SHAPE, bool)
    target[5:15, 5:15, 4] = True
    user = user_on({"": volume}, None, target, "medsam")
    theirs = user.target.astype(np.uint8)
    found = worst_slice(user, 1, np.zeros_like(theirs), theirs)
    assert (found.axis, found.index, found.flipped) == ("axial", 4, 100)


def test_large_picture_is_cut_around_the_difference_and_stays_in_colour():
    side = 3 * MOST_PIXELS
    theirs = np.zeros((side, side), np.uint8)
    theirs[:200, :200] = 1
    ours = theirs.copy()
    ours[700, 650] = 1
    picture = np.zeros((side, side, 3), np.float32)
    picture[..., 1] = 99
    found = worst_slice(user_on({}, picture, theirs > 0, "medsam"), 1, ours, theirs)
    assert (found.axis, found.flipped) == ("picture", 1)
    assert image(found, "image").shape == (MOST_PIXELS, MOST_PIXELS, 3)
    assert (image(found, "image") == (0, 99, 0)).all()
    assert (image(found, "found") != image(found, "reference")).sum() == 1


def test_scattered_differences_are_cut_where_most_of_them_are():
    side = 3 * MOST_PIXELS
    theirs = np.zeros((side, side), np.uint8)
    theirs[:200, :200] = 1
    ours = theirs.copy()
    ours[0, 0] = 0
    ours[side - 1, side - 1] = ours[side - 9, side - 5] = 1
    picture = np.zeros((side, side, 3), np.float32)
    found = worst_slice(user_on({}, picture, theirs > 0, "medsam"), 1, ours, theirs)
    assert found.flipped == 3
    assert (image(found, "found") != image(found, "reference")).sum() == 2
