"""A request is read as it was meant, or refused in one sentence, whatever a stranger sends."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samkit.errors import GeometryError, InputRefused, PromptError, SamkitError, TensorMismatchError
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, SlicePoint
from samkit.triton_models.requests import Options, read_prompts, read_scan, volumes_of

AFFINE = np.array([[0, -1.2, 0, 20], [-0.9, 0, 0, 30], [0, 0, 1, -5], [0, 0, 0, 1.0]])
BYTES = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)


# --- Options ---


def test_nothing_asked_is_the_methods_own():
    assert Options.from_json({}) == Options()
    assert Options.from_json({"op": "open", "spacing": None, "sequences": []}) == Options()


def test_options_are_read():
    asked = {
        "spacing": [1, 1.5, 2],
        "plane": "coronal",
        "intensities": [-160, 240],
        "sequences": ["t1c", "t2w"],
        "world": True,
        "propagate": True,
        "picture": True,
    }
    assert Options.from_json(asked) == Options(
        (1.0, 1.5, 2.0), "coronal", (-160.0, 240.0), ("t1c", "t2w"), world=True, propagate=True, picture=True
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"spacing": [1, 1]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, "1"]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, True]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, [1]]}, "needed are 3 numbers"),
        ({"spacing": 1.5}, "needed are 3 numbers"),
        ({"spacing": [1, 1, float("nan")]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, float("inf")]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, 10**400]}, "needed are 3 numbers"),
        ({"spacing": [1, 1, 0]}, "three numbers from 1e-06 to 1e"),
        ({"spacing": [1, 1, -1]}, "three numbers from"),
        ({"spacing": [1, 1, 5e-324]}, "three numbers from"),
        ({"spacing": [1, 1, 1e300]}, "three numbers from"),
        ({"intensities": [5, 5]}, "the lower one first"),
        ({"intensities": {"low": 1}}, "needed are 2 numbers"),
        ({"plane": 3}, "needed is a name"),
        ({"sequences": "t1c"}, "needed is a list of names"),
        ({"sequences": [1]}, "needed is a list of names"),
        ({"sequences": ["t1c", "t1c"]}, "a name stands twice"),
        ({"world": 1}, "needed is true or false"),
        ({"propagate": "false"}, "needed is true or false"),
        ({"picture": None}, "needed is true or false"),
    ],
)
def test_option_of_a_wrong_kind_is_refused(asked, words):
    with pytest.raises(PromptError, match=words) as caught:
        Options.from_json(asked)
    assert len(str(caught.value)) < 300


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["spacing", "plane", "intensities", "sequences", "world", "propagate", "picture"])


@settings(deadline=None)
@given(st.dictionaries(KEYS, ANYTHING))
def test_options_of_any_json_are_read_or_refused(asked):
    try:
        options = Options.from_json(json.loads(json.dumps(asked)))
    except PromptError:
        return
    assert hash(options) == hash(options)


# --- Prompts ---


def test_prompts_in_millimetres_become_voxels():
    entries = [{"point": [20, 30, -5], "label": 1}, {"box": [20, 30, -5, 18.8, 29.1, -4]}]
    point, box = read_prompts(entries, AFFINE, world=True)

    assert np.allclose(point.index, (0, 0, 0))
    assert np.allclose((box.first, box.last), ((0, 0, 0), (1, 1, 1)))


def test_prompts_in_voxels_stay_bit_for_bit():
    entries = [
        {"point": [0.1 + 0.2, 1e-300, 3], "label": 0, "structure": "liver"},
        {"box": [1, 2, 3, 4, 5, 6]},
        {"point": [4, 5], "label": 1},
    ]
    assert read_prompts(entries, AFFINE, world=False) == [
        Point((0.1 + 0.2, 1e-300, 3.0), BACKGROUND, "liver"),
        Box((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        SlicePoint(4.0, 5.0, FOREGROUND),
    ]


@settings(deadline=None)
@given(
    ANYTHING
    | st.lists(
        st.fixed_dictionaries(
            {}, optional={"point": ANYTHING, "label": ANYTHING, "box": ANYTHING, "structure": ANYTHING, "x": ANYTHING}
        )
    )
)
def test_prompts_of_any_json_are_read_or_refused(entries):
    try:
        prompts = read_prompts(json.loads(json.dumps(entries)), AFFINE, world=True)
    except PromptError:
        return
    assert len(prompts) == len(entries)


# --- Scans ---


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_scan_keeps_voxels_and_affine(dtype):
    name = {"float32": "volume"}.get(dtype, f"volume_{dtype}")
    array, affine = read_scan({name: BYTES.astype(dtype), "affine": AFFINE, "other": None}, Options(), 24)

    assert array.dtype == dtype
    assert np.array_equal(array, BYTES)
    assert np.array_equal(affine, AFFINE)


def test_affine_outlives_the_request():
    sent = AFFINE.copy()
    _, affine = read_scan({"volume_uint8": BYTES, "affine": sent}, Options(), 24)
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
        read_scan(tensors, Options.from_json(options), 24)
    assert isinstance(caught.value, SamkitError)


def test_picture_needs_no_affine():
    _, affine = read_scan({"volume_uint8": BYTES.reshape(3, 2, 4, 1)}, Options(picture=True), 24)

    assert np.array_equal(affine, np.eye(4))


def test_volumes_have_the_names_that_were_given_in_order():
    two = np.concatenate([BYTES, BYTES + 1])
    volumes = volumes_of(two, AFFINE, ("t2w", "t1c"))

    assert list(volumes) == ["t2w", "t1c"]
    assert np.array_equal(volumes["t1c"].array, BYTES[0] + 1)
    assert list(volumes_of(BYTES, AFFINE, ())) == [""]
