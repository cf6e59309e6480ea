"""A spec lets through what the graph takes, refuses everything else with both shapes, and survives JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samkit.errors import TensorMismatchError
from samkit.tensors import Axis, TensorSpec

POINTS = TensorSpec("point_coords", "float32", (Axis("batch", 1, 1, 8), Axis("points", 0, 1, 64), Axis.fixed("ijk", 3)))


@given(batch=st.integers(1, 8), points=st.integers(0, 64))
def test_sizes_within_the_bounds_pass(batch, points):
    POINTS.check(np.zeros((batch, points, 3), np.float32))


@pytest.mark.parametrize("shape", [(0, 1, 3), (9, 1, 3), (1, 65, 3), (1, 1, 2), (1, 3), (1, 1, 1, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(TensorMismatchError, match=r"'point_coords' is float32 .*batch=1\.\.8, points=0\.\.64, ijk=3"):
        POINTS.check(np.zeros(shape, np.float32))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TensorMismatchError, match=dtype):
        POINTS.check(np.zeros((1, 1, 3), dtype))


def test_json_form_gives_name_dtype_and_axes():
    assert json.loads(json.dumps(POINTS.to_dict())) == {
        "name": "point_coords",
        "dtype": "float32",
        "axes": [["batch", 1, 1, 8], ["points", 0, 1, 64], ["ijk", 3]],
    }


def test_only_ranges_are_dynamic():
    assert [axis.is_dynamic for axis in POINTS.axes] == [True, True, False]
    assert POINTS.shape == (1, 1, 3)
