"""What a person says to a session arrives as volumes and prompts, or is refused before anything changes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from samkit.errors import InputRefused, PromptError
from samkit.geometry import Volume, voxel_to_world
from samkit.methods.m_sam import METHOD as VOLUMES
from samkit.prompts import BACKGROUND, FOREGROUND, Box, Point, SliceBox, SlicePoint
from samkit.runtime.protocol.requests import ScanOptions
from samkit.runtime.session.base import Session
from support import stand_ins as the


class Recorder(Session):
    """Notes what it is asked for."""

    method, config, manifest, providers, warnings, steps = VOLUMES, None, None, {}, (), ()
    structures, sequences = (), ()

    def __init__(self, *, is_automatic=False, fails=None):
        self.calls, self.is_automatic, self.fails = [], is_automatic, fails

    def _note(self, *call):
        if self.fails == call[0]:
            raise InputRefused("no", "it was refused", "try another")
        self.calls.append(call)
        return self.last_update()

    def _take(self, image):
        self._note("picture" if isinstance(image, np.ndarray) else "volume", image)

    def _segment_automatically(self, report):
        return self._note("all")

    def add(self, *prompts, refine=False):
        return self._note("prompt", *prompts)

    def by_step(self, prompts):
        return [tuple(prompts)]

    def check(self, *prompts):
        self._note("check")

    def undo(self):
        return self._note("undo")

    def redo(self):
        return self._note("redo")

    def reset(self):
        return self._note("reset")

    def labels(self):
        return np.array([[0, 1, 2]], np.uint8)

    def logits(self):
        return np.zeros((1, 3), np.float32)

    def last_update(self):
        return f"update {len(self.calls)}"


@pytest.fixture
def nifti(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(the.scan(), the.oblique()), path)
    return path


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(the.scan()[:, :, 20].astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_file_is_read(kind, nifti):
    recorder = Recorder()
    assert recorder.set_image(kind(nifti)) == "update 1"
    ((_, volumes),) = recorder.calls
    volume = volumes[""]

    assert np.array_equal(volume.array, the.scan())
    assert np.allclose(volume.affine, the.oblique())


def test_sequences_keep_their_names(nifti):
    recorder, other = Recorder(), Volume(the.scan(1), the.oblique())
    recorder.set_image({"t1c": nifti, "t2w": other})
    ((_, volumes),) = recorder.calls

    assert list(volumes) == ["t1c", "t2w"]
    assert np.shares_memory(volumes["t2w"].array, other.array)  # not copied
    assert np.array_equal(volumes["t2w"].affine, other.affine)


def test_volume_without_a_name_among_others_is_not_taken_alone():
    recorder, one, other = Recorder(), Volume(the.scan(0), np.eye(4)), Volume(the.scan(1), np.eye(4))
    recorder.set_image({"": one, "t2w": other})

    ((kind, volumes),) = recorder.calls
    assert kind == "volume"
    assert list(volumes) == ["", "t2w"]
    assert np.shares_memory(volumes[""].array, one.array)


def test_automatic_method_decides_at_once(nifti, png):
    recorder = Recorder(is_automatic=True)
    recorder.set_image(nifti)
    recorder.set_image(png)

    assert [call[0] for call in recorder.calls] == ["volume", "all", "picture", "all"]


def test_no_image_is_refused():
    with pytest.raises(PromptError, match="no image is given"):
        Recorder().set_image({})


def test_picture_for_a_method_of_volumes_is_refused(png):
    session = the.served("volume").session(the.runners("volume"), ScanOptions())
    with pytest.raises(PromptError, match="works on volumes, and a picture is given"):
        session.set_image(png)


def test_sequences_for_a_method_of_volumes_are_refused():
    session = the.served("volume").session(the.runners("volume"), ScanOptions())
    with pytest.raises(InputRefused, match="takes one scan, and 2 are given"):
        session.set_image({"t1c": Volume(the.scan(0), np.eye(4)), "t2w": Volume(the.scan(1), np.eye(4))})


def test_clicks_and_boxes_become_prompts():
    recorder = Recorder()
    recorder.set_image(Volume(the.scan(), np.eye(4)))
    recorder.click((1, 2, 3))
    recorder.click(np.array([1.5, 2, 3]), False, structure="liver")
    recorder.click((4, 5))
    recorder.box((1, 2, 3), (7, 8, 3), structure="liver")
    assert recorder.box((9, 2), (1, 8)) == "update 6"

    assert [call[1] for call in recorder.calls[1:]] == [
        Point((1.0, 2.0, 3.0), FOREGROUND),
        Point((1.5, 2.0, 3.0), BACKGROUND, "liver"),
        SlicePoint(4.0, 5.0, FOREGROUND),
        Box((1.0, 2.0, 3.0), (7.0, 8.0, 3.0), "liver"),
        SliceBox(1.0, 2.0, 9.0, 8.0),
    ]


@pytest.mark.parametrize("affine", [the.oblique(), the.FLIPPED])
def test_millimetres_are_the_scans_own(affine):
    recorder = Recorder()
    recorder.set_image({"t1c": Volume(the.scan(), affine)})
    first, last = voxel_to_world(affine, np.array([[3.0, 4, 5], [6, 7, 5]]))
    recorder.click(first, world=True)
    recorder.box(first, last, world=True)
    click, box = (call[1] for call in recorder.calls[1:])

    assert np.allclose(click.index, (3, 4, 5))
    assert np.allclose((box.first, box.last), ((3, 4, 5), (6, 7, 5)))


def test_millimetres_need_a_scan_with_three_axes(png):
    recorder = Recorder()
    for place in ((1, 2, 3), (1, 2), (1, 2, 3, 4), ()):
        with pytest.raises(PromptError, match=r"set_image first|three numbers"):
            recorder.click(place, world=True)
    recorder.set_image(png)
    for place in ((1, 2, 3), (1, 2)):  # pixels are no millimetres
        with pytest.raises(PromptError, match=r"a picture is set; give pixels, click\(\(x, y\)\)"):
            recorder.click(place, world=True)
        with pytest.raises(PromptError, match="a picture is set; give pixels"):
            recorder.box(place, place, world=True)

    assert len(recorder.calls) == 1


def test_corners_of_different_length_are_refused():
    with pytest.raises(PromptError, match="this one has 2"):
        Recorder().box((1, 2, 3), (4, 5))


def test_image_that_is_refused_leaves_the_one_before(nifti, png, tmp_path):
    recorder = Recorder()
    recorder.set_image(Volume(the.scan(), the.FLIPPED))
    recorder.fails = "volume"
    with pytest.raises(InputRefused):
        recorder.set_image(nifti)
    with pytest.raises(InputRefused):
        recorder.set_image(tmp_path / "missing.nii.gz")
    recorder.fails = "picture"
    with pytest.raises(InputRefused):
        recorder.set_image(png)
    recorder.click(voxel_to_world(the.FLIPPED, np.array([[3.0, 4, 5]]))[0], world=True)

    assert np.allclose(recorder.calls[-1][1].index, (3, 4, 5))


@pytest.mark.parametrize("kind", ["volume", "slices"])
def test_millimetres_never_come_from_the_image_before(kind):
    array = the.scan()
    session = the.served(kind).session(the.runners(kind), ScanOptions())
    session.set_image(Volume(array, np.eye(4)))
    session.set_image(Volume(array, np.diag([2.0, 2, 2, 1])))
    place = the.bright_voxel(array)
    session.click([2 * side for side in place], world=True)
    assert session.mask()[tuple(place)]


def test_act_that_no_method_of_this_kind_takes_is_refused_in_one_sentence():
    recorder = Recorder()
    with pytest.raises(PromptError, match="m-sam segments nothing without a prompt; give a point"):
        recorder.segment_automatically()
    with pytest.raises(PromptError, match="m-sam works on volumes, and only masks of slices lead on to others; leave"):
        recorder.propagate()

    assert recorder.calls == []


def test_a_kind_of_session_has_to_be_whole():
    class Half(Session):
        def undo(self):
            return None

    with pytest.raises(TypeError, match="abstract"):
        Half()


@pytest.mark.parametrize("positive", ["-", "negative", 0, None])
def test_a_click_is_on_the_object_or_on_background_and_nothing_else(positive):
    session = Recorder()
    with pytest.raises(PromptError, match=r"positive is .*; give True for the object, or False for background"):
        session.click((1, 2, 3), positive)


@pytest.mark.parametrize(
    "place",
    [24, ("a", "b", "c"), None, ((1, 2), (3, 4)), (10**400, 1, 1), (np.nan, 1, 1), (1, np.inf, 1), (True, False, True)],
)
def test_a_place_that_is_no_numbers_is_refused_in_a_sentence(place):
    session = Recorder()
    with pytest.raises(PromptError, match=r"a place is .*, needed are finite numbers in order; give them together, "):
        session.click(place)
    with pytest.raises(PromptError, match=r"a place is .*; give them together"):
        session.box(place, (1, 2, 3))
