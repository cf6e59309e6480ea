"""A scan is taken as it was sent, or refused in one sentence; prompts in millimetres find their voxels."""

from __future__ import annotations

import numpy as np
import pytest

from samkit.errors import GeometryError, InputRefused, PromptError, SamkitError, TensorMismatchError
from samkit.prompts import FOREGROUND, Box, Point, SlicePoint
from samkit.triton_models.scans import in_voxels, read_scan, volumes_of

AFFINE = np.array([[0, -1.2, 0, 20], [-0.9, 0, 0, 30], [0, 0, 1, -5], [0, 0, 0, 1.0]])
BYTES = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)


# --- Prompts ---


def test_prompts_in_millimetres_become_voxels():
    sent = [Point((20, 30, -5), FOREGROUND), Box((20, 30, -5), (18.8, 29.1, -4))]
    point, box = in_voxels(sent, AFFINE, (2, 3, 4), world=True)

    assert np.allclose(point.index, (0, 0, 0))
    assert np.allclose((box.first, box.last), ((0, 0, 0), (1, 1, 1)))


def test_millimetres_outside_the_scan_are_refused_as_they_were_sent():
    with pytest.raises(
        InputRefused, match=r"the click \(99, 30, -5\) mm lies outside the volume, which reaches from 17"
    ):
        in_voxels([Point((99, 30, -5), FOREGROUND)], AFFINE, (2, 3, 4), world=True)


def test_prompts_in_voxels_stay_bit_for_bit():
    sent = [Point((0.1 + 0.2, 1e-300, 3.0), FOREGROUND, "liver"), SlicePoint(4.0, 5.0, FOREGROUND)]

    assert in_voxels(sent, AFFINE, (2, 3, 4), world=False) == sent


def test_picture_has_no_millimetres():
    with pytest.raises(PromptError, match="a picture has none"):
        in_voxels([SlicePoint(4.0, 5.0, FOREGROUND)], None, (2, 3), world=True)


# --- Scans ---


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_scan_keeps_voxels_and_affine(dtype):
    name = {"float32": "volume"}.get(dtype, f"volume_{dtype}")
    array, affine = read_scan({name: BYTES.astype(dtype), "affine": AFFINE, "other": None}, (), 24)

    assert array.dtype == dtype
    assert np.array_equal(array, BYTES)
    assert np.array_equal(affine, AFFINE)


def test_affine_outlives_the_request():
    sent = AFFINE.copy()
    _, affine = read_scan({"volume_uint8": BYTES, "affine": sent}, (), 24)
    sent[:] = 0

    assert np.array_equal(affine, AFFINE)


@pytest.mark.parametrize(
    ("tensors", "options", "error", "words"),
    [
        ({"affine": AFFINE}, {}, TensorMismatchError, "0 of the inputs"),
        ({"volume_uint8": BYTES, "volume": BYTES, "affine": AFFINE}, {}, TensorMismatchError, "2 of the inputs"),
        ({"volume_uint8": BYTES}, {}, GeometryError, "no affine is given"),
        ({"volume_uint8": BYTES, "affine": np.eye(3)}, {}, GeometryError, r"needed is \(4, 4\)"),
        ({"volume_uint8": BYTES, "affine": np.diag([1, 1, 0, 1.0])}, {}, GeometryError, "singular"),
        ({"volume_uint8": BYTES, "affine": np.full((4, 4), np.nan)}, {}, GeometryError, "NaN"),
        ({"volume_uint8": BYTES[0], "affine": AFFINE}, {}, InputRefused, "needed are sequence"),
        ({"volume_uint8": np.zeros((5, 5, 1, 1), np.uint8), "affine": AFFINE}, {}, InputRefused, "limit is 24"),
        ({"volume": np.full((1, 2, 2, 2), np.inf, "f4"), "affine": AFFINE}, {}, InputRefused, "NaN or infinite"),
        ({"volume_uint8": BYTES, "affine": AFFINE}, {"sequences": ["a", "b"]}, PromptError, "1 volumes are sent and 2"),
        ({"volume_uint8": BYTES.reshape(2, 1, 3, 4), "affine": AFFINE}, {}, PromptError, "2 volumes are sent and 0"),
        ({"volume_uint8": BYTES}, {"picture": True}, InputRefused, "channels, rows, columns and 1"),
    ],
)
def test_scan_that_does_not_fit_is_refused(tensors, options, error, words):
    with pytest.raises(error, match=words) as caught:
        read_scan(tensors, options.get("sequences", ()), 24, is_picture=options.get("picture", False))
    assert isinstance(caught.value, SamkitError)


def test_picture_needs_no_affine():
    _, affine = read_scan({"volume_uint8": BYTES.reshape(3, 2, 4, 1)}, (), 24, is_picture=True)

    assert np.array_equal(affine, np.eye(4))


def test_volumes_have_the_names_that_were_given_in_order():
    two = np.concatenate([BYTES, BYTES + 1])
    volumes = volumes_of(two, AFFINE, ("t2w", "t1c"))

    assert list(volumes) == ["t2w", "t1c"]
    assert np.array_equal(volumes["t1c"].array, BYTES[0] + 1)
    assert list(volumes_of(BYTES, AFFINE, ())) == [""]
