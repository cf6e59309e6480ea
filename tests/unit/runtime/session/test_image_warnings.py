"""A scan that the weights have not learnt from is told, and a CT that nobody gave a window for."""

import json

import nibabel
import numpy as np
import pytest

from samkit.imageio.in_memory import study_of
from samkit.imageio.study import read_study
from samkit.intensities import Limits
from samkit.manifest import ExportPlan, Weights
from samkit.methods import get_method
from samkit.runtime.session.image_warnings import image_warnings

MEDSAM, YOLO, M_SAM = (get_method(name) for name in ("medsam", "medsam-yolo", "m-sam"))
DEMONSTRATION = ExportPlan(
    "m-sam", Weights("demonstration", None, None, True), None, None, None, "fp32", True, 17, ()
)  # fmt: skip


def ct(lowest=-1000.0):
    array = np.full((8, 8, 8), lowest, np.float32)
    array[2:6] = np.linspace(-100, 300, 256).reshape(4, 8, 8)
    return array


def warnings_of(array, method, plan=None, limits=()):
    return image_warnings(study_of(array, affine=np.eye(4)).scans, limits, method, plan)


def test_a_ct_is_told_where_the_weights_know_mr_alone():
    (told,) = warnings_of(ct(), M_SAM, DEMONSTRATION)
    assert (
        told == "this looks like CT, and the demonstration weights have learnt from MR alone: the mask may mean nothing"
    )
    assert warnings_of(ct(), YOLO)[0].startswith("this looks like CT, and medsam-yolo has learnt from MR alone")
    assert not warnings_of(ct(), M_SAM)


@pytest.mark.parametrize(
    "array",
    [
        np.abs(ct()),
        ct() / 300,  # scaled to its mean and deviation, as many a data set is
        np.where(np.arange(512).reshape(8, 8, 8) == 7, -150, np.abs(ct())),  # a filter's ringing
    ],
)
def test_mr_is_not_taken_for_ct(array):
    assert not warnings_of(array, M_SAM, DEMONSTRATION)


def test_percentiles_that_stand_in_for_a_window_are_told():
    (told,) = warnings_of(ct(), MEDSAM, limits=[Limits(-99, 298, "percentiles", -1000)])
    assert "values down to -1000 and no window given" in told
    assert "-99 and 298, stand in for it; give intensities, such as -160,240" in told
    assert not warnings_of(ct(), MEDSAM, limits=[Limits(-160, 240, "given")])
    assert not warnings_of(np.abs(ct()), MEDSAM, limits=[Limits(1, 298, "percentiles", 0)])


@pytest.mark.parametrize(("said", "warned"), [('{"Modality": "CT"}', 2), ('{"Modality": "MR"}', 0), ("[1", 0)])
def test_the_json_beside_a_scan_says_what_it_is(tmp_path, said, warned):
    nibabel.save(nibabel.Nifti1Image(np.abs(ct()), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "a.json").write_text(said)
    scans = read_study({"": tmp_path / "a.nii.gz"}).scans
    assert scans[""].modality == (json.loads(said)["Modality"] if said.startswith("{") else "")
    told = image_warnings(scans, [Limits(1, 298, "percentiles", 0)], MEDSAM, DEMONSTRATION)
    assert len(told) == warned


@pytest.mark.parametrize(("key", "end"), [("0008|0060", "mha"), ("0008|0060", "nrrd"), ("Modality", "nrrd")])
def test_a_header_says_what_it_is(tmp_path, key, end):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.abs(ct()))
    image.SetMetaData(key, "CT")
    sitk.WriteImage(image, str(tmp_path / f"a.{end}"))
    assert read_study({"": tmp_path / f"a.{end}"}).scan.modality == study_of(image).scan.modality == "CT"
