"""Guards what sessions are given to be measured: phantoms of every method's kind, clicks that a reader would make."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from samkit.benchmarks.cases.phantom_scans import ACCURACY_SEED, brighter, cost_case, phantom_cases, with_clicks
from samkit.errors import InputRefused, SamkitError
from samkit.geometry import Volume
from samkit.methods import SliceMethod, get_method, list_methods
from samkit.planes import PlaneView
from samkit.protocols.case import Case

SHAPE = (48, 48, 48)


class Session:
    """Never finds anything, or after the first click just what it is told to."""

    def __init__(self, answer=None):
        self._answer = answer

    def set_image(self, volumes):
        self.volumes = volumes
        self._mask = np.zeros(SHAPE, bool)

    def click(self, index, positive, structure=""):
        self._mask = self._mask if self._answer is None else self._answer
        return SimpleNamespace(mask=self._mask)

    def mask(self):
        return self._mask


@pytest.mark.parametrize("name", list_methods())
def test_a_cost_case_has_what_its_method_takes(name):
    method, session = get_method(name), Session()
    config = method.sizes["tiny"]
    is_sliced = isinstance(method, SliceMethod)

    case = with_clicks(cost_case(method, config, SHAPE), session, method, 2)

    assert tuple(case.volumes) == ((method.sequences(config) if is_sliced else ()) or ("",))
    assert session.volumes == case.volumes
    assert len(case.clicks) == (0 if is_sliced and "point" not in method.prompts else 2)
    places = [tuple(int(v) for v in point.index) for point in case.clicks]
    assert all(case.target[place] for place in places)
    if is_sliced:
        assert len(np.unique(np.argwhere(case.target)[:, case.across])) == 1


def test_clicks_end_where_no_error_is_left():
    method = get_method("m-sam")
    case = cost_case(method, method.sizes["tiny"], SHAPE)

    assert len(with_clicks(case, Session(case.target), method, 5).clicks) == 1


def test_errors_in_other_slices_are_not_clicked_on():
    method = get_method("sam")
    case = cost_case(method, method.sizes["tiny"], SHAPE)
    everywhere_else = ~np.any(case.target, axis=tuple(a for a in range(3) if a != case.across), keepdims=True)
    session = Session(case.target | np.broadcast_to(everywhere_else, SHAPE))

    assert len(with_clicks(case, session, method, 5).clicks) == 1


def test_a_target_of_nothing_is_an_error():
    method = get_method("m-sam")
    empty = Case("air", {"": Volume(np.ones(SHAPE), np.eye(4))}, {"": np.zeros(SHAPE, bool)})

    with pytest.raises(SamkitError, match="m-sam has no error on the air"):
        with_clicks(empty, Session(), method, 5)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8"])
def test_brighter_scans_differ_and_their_air_stays(dtype):
    volume = Volume(np.array([[[0, 1, 200]]], dtype), np.eye(4))
    case = Case("case 1", {"": volume}, {})
    numbers = count(1)

    scans = [brighter(case, next(numbers)).first.array for _ in range(3)]

    assert len({scan.tobytes() for scan in (volume.array, *scans)}) == 4
    assert all(scan.dtype == dtype and scan[0, 0, 0] == 0 for scan in scans)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_methods())
def test_every_method_has_phantoms(name):
    method = get_method(name)
    config = method.sizes["small"]
    (first,), (again,) = (phantom_cases(method, config, 1) for _ in range(2))

    assert first.name == f"phantom {ACCURACY_SEED}"
    is_slices = isinstance(method, SliceMethod)
    assert tuple(first.volumes) == ((method.sequences(config) if is_slices else ()) or ("",))
    assert tuple(first.targets) == ((method.structures(config) if is_slices else ()) or ("",))
    for volume in first.volumes.values():
        assert volume.spacing == first.spacing_mm
        assert all(mask.shape == volume.array.shape and mask.any() for mask in first.targets.values())
    if is_slices and method.is_automatic:
        volume = next(iter(first.volumes.values()))
        assert PlaneView.of(volume.array.shape, volume.affine, method.plane).slice_mm == 4.0
    for name, volume in again.volumes.items():
        assert np.array_equal(volume.array, first.volumes[name].array)


def test_phantoms_differ():
    method = get_method("m-sam")
    first, second = phantom_cases(method, method.sizes["tiny"], 2)

    assert second.name == f"phantom {ACCURACY_SEED + 1}"
    assert not np.array_equal(first.targets[""], second.targets[""])


def test_a_sequence_that_phantoms_lack_is_refused():
    method = get_method("brainseg-dmif")
    config = replace(method.sizes["tiny"], sequences=("t1n", "dwi"))
    with pytest.raises(InputRefused, match="take dwi"):
        list(phantom_cases(method, config, 1))
