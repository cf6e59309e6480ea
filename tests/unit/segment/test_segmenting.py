"""One segmentation goes the same way with any session, and tells how far it is where somebody listens."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from samkit.errors import InputRefused
from samkit.geometry import Volume
from samkit.imageio.forms import Forms
from samkit.imageio.scan import Scan
from samkit.imageio.study import Study
from samkit.prompts import BACKGROUND, FOREGROUND, Point
from samkit.segment.segmenting import segment_study
from support import stand_ins as the


@pytest.fixture(autouse=True)
def _is_heard(caplog):
    caplog.set_level(logging.INFO, "samkit")


def study_of(array):
    path = Path("scan.nii.gz")
    scan = Scan(Volume(array, np.eye(4)), Forms.of_affine(np.eye(4)), "NIfTI", path.name, path, (), (path,))
    return Study({"": path}, {"": scan}, None)


def clicks_on(array):
    inside = the.bright_voxel(array)
    return [Point(tuple(inside), FOREGROUND), Point((inside[0], 1.0, inside[2]), BACKGROUND)]


def untimed(lines):
    return [line.rsplit(",", 1)[0] for line in lines]


def test_a_volume_is_clicked_one_by_one(caplog):
    array = the.scan(1)
    session, alone = the.alone("volume", the.scan(2)), the.alone("volume", array)
    done = segment_study(session, study_of(array), clicks_on(array))

    for point in clicks_on(array):
        alone.add(point)
    assert np.array_equal(session.labels(), alone.labels())
    assert done.volume_ml == alone.steps[-1].volume_ml
    assert done.figures == {"crops": alone.steps[-1].crops}
    assert untimed(caplog.messages) == [
        f"click {step.number} of 2: {step.volume_ml:.2f} mL, {step.crops} crop(s)" for step in alone.steps
    ]


def test_slices_get_their_prompts_at_once_then_the_rest_is_found_then_masks_lead_on(caplog):
    array = the.scan(6)
    session, alone = the.alone("automatic", the.scan(2)), the.alone("automatic", array)
    points = clicks_on(array)
    done = segment_study(session, study_of(array), points, propagate=True)

    alone.add(*points)
    alone.segment_automatically()
    alone.propagate()
    assert np.array_equal(session.labels(), alone.labels())
    assert len(session.steps) == 3
    assert done.figures["slices_prompted"] == list(alone.prompted)
    assert done.figures["slices_answered"] == array.shape[2]
    assert set(done.seconds) == {"prepare", "propose", "encode", "decode"}
    lines = untimed(caplog.messages)
    assert lines[0] == "2 prompt(s) on 1 slice(s)"
    assert sum(line.startswith("slice ") for line in caplog.messages) <= 10
    assert lines[-2:] == [
        f"{len(alone.steps[1].slices)} slice(s) segmented", f"{len(alone.steps[2].slices)} slice(s) by propagation"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["volume", "automatic"])
def test_prompts_are_judged_before_the_first_one_is_worked_on(kind, caplog):
    array = the.scan(1)
    session = the.alone(kind, array)
    with pytest.raises(InputRefused, match="lies outside the volume"):
        segment_study(session, study_of(array), [*clicks_on(array), Point((99, 1, 1), FOREGROUND)])

    assert session.steps == ()
    assert caplog.messages == []


def test_an_empty_mask_is_a_warning():
    array = the.scan(1)
    session = the.alone("slices", array)
    done = segment_study(session, study_of(array), [Point((1, 1, 1), BACKGROUND)])

    assert done.warnings == ["the mask is empty"]
    assert done.volume_ml == 0
