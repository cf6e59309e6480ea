"""Guards what sessions are given to be measured: phantoms of every method's kind, clicks that a reader would make."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

import samkit
from samkit.benchmarks.cases import phantom_scans as studies
from samkit.errors import SamkitError
from samkit.geometry import Volume
from samkit.manifest import ExportPlan, Weights
from samkit.methods import SliceMethod, get_method

SHAPE = (48, 48, 48)


def plan_of(name):
    config = get_method(name).sizes["tiny"]
    return ExportPlan(name, Weights("random", None, None), "tiny", config, "none", "fp32", True, 20, ("image_encoder",))


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


@pytest.mark.parametrize("name", samkit.list_methods())
def test_a_study_has_what_its_method_takes(name):
    method, plan, session = get_method(name), plan_of(name), Session()
    is_sliced = isinstance(method, SliceMethod)

    study = studies.with_clicks(studies.make_study(plan, SHAPE), session, plan, 2)

    assert tuple(study.volumes) == ((method.sequences(plan.config) if is_sliced else ()) or ("",))
    assert session.volumes == study.volumes
    assert len(study.points) == (0 if is_sliced and "point" not in method.prompts else 2)
    places = [tuple(int(v) for v in point.index) for point in study.points]
    assert all(study.target[place] for place in places)
    if is_sliced:
        assert len(np.unique(np.argwhere(study.target)[:, study.across])) == 1


def test_clicks_end_where_no_error_is_left():
    plan = plan_of("m-sam")
    study = studies.make_study(plan, SHAPE)

    assert len(studies.with_clicks(study, Session(study.target), plan, 5).points) == 1


def test_errors_in_other_slices_are_not_clicked_on():
    plan = plan_of("sam")
    study = studies.make_study(plan, SHAPE)
    everywhere_else = ~np.any(study.target, axis=tuple(a for a in range(3) if a != study.across), keepdims=True)
    session = Session(study.target | np.broadcast_to(everywhere_else, SHAPE))

    assert len(studies.with_clicks(study, session, plan, 5).points) == 1


def test_a_target_of_nothing_is_an_error():
    plan = plan_of("m-sam")
    empty = studies.Study("air", {"": Volume(np.ones(SHAPE), np.eye(4))}, np.zeros(SHAPE, bool))

    with pytest.raises(SamkitError, match="m-sam has no error on the air"):
        studies.with_clicks(empty, Session(), plan, 5)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8"])
def test_numbered_scans_differ_and_their_air_stays(dtype):
    volume = Volume(np.array([[[0, 1, 200]]], dtype), np.eye(4))
    numbers = count(1)

    scans = [studies.numbered(volume, next(numbers)).array for _ in range(3)]

    assert len({scan.tobytes() for scan in (volume.array, *scans)}) == 4
    assert all(scan.dtype == dtype and scan[0, 0, 0] == 0 for scan in scans)
