"""Limits come from a config's parameters as they were written there, or not at all."""

from __future__ import annotations

import pytest

from samkit.errors import ServingError
from samkit.triton_models.limits import LIMITS, Limits
from samkit.triton_models.model_config import ROLES, SESSION


@pytest.mark.parametrize(
    "name", ["max_sessions", "idle_seconds", "heartbeat_seconds", "unused_seconds", "max_voxels", "threads"]
)
def test_limit_that_lets_nothing_through_is_refused(name):
    with pytest.raises(ServingError, match=f"the limit {name} is 0"):
        Limits(**{name: 0})


def test_limits_are_read_from_parameters():
    parameters = {"samkit_name": "sam", "max_voxels": "1000", "cache_bytes": "0"}

    assert Limits.from_parameters(parameters) == Limits(max_voxels=1000, cache_bytes=0)


@pytest.mark.parametrize("text", ["many", "", "1e6", "1.5"])
def test_limit_that_is_no_whole_number_is_refused(text):
    with pytest.raises(ServingError, match=f"the limit threads is '{text}', needed is a whole number"):
        Limits.from_parameters({"threads": text})


def test_every_python_model_has_its_limits():
    assert set(LIMITS) == {*ROLES, SESSION}
    assert set(LIMITS[SESSION]) == set(vars(Limits()))
