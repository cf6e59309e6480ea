"""Two frames in one file, or none: what is told, what is used, what is kept, and what is refused."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from samkit.errors import InputRefused
from samkit.imageio.in_memory import study_of
from samkit.imageio.reading import read_scan
from samkit.imageio.study import read_study
from samkit.imageio.writing import write_mask
from samkit.prompts import Point
from samkit.runtime.opening import open_export
from samkit.runtime.session.world import check_sides

SHAPE = (20, 18, 16)
BASE = np.diag([0.9, 1.1, 1.9, 1.0])
BASE[:3, 3] = -10, 5, 20
SIDES = ("thalamus_left", "thalamus_right")


def moved(shift=(0, 0, 0), turn=0.0, scale=1.0, mirror=False):
    """BASE shifted [mm], turned about the patient's long axis [rad], scaled, or mirrored."""
    other = BASE.copy()
    c, s = np.cos(turn), np.sin(turn)
    other[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ BASE[:3, :3] * scale
    other[:3, 0] *= -1 if mirror else 1
    other[:3, 3] += shift
    return other


def save(path, sform=BASE, qform=BASE, codes=(1, 1), pixdim=None):
    array = np.random.default_rng(0).integers(1, 99, SHAPE).astype(np.int16)
    array[8:12, 8:12, 6:10] = 900
    made = nibabel.Nifti1Image(array, BASE)
    made.set_qform(qform, codes[1])
    made.set_sform(sform, codes[0])
    if pixdim is not None:
        made.header["pixdim"][1:4] = pixdim
    nibabel.save(made, path)
    return path


@pytest.mark.parametrize(
    ("given", "millimetres", "mirrored"),
    [
        ({"qform": moved(shift=(0.1, 0, 0))}, "0.1", False),
        ({"qform": moved(shift=(0, 30, 40))}, "50", False),
        ({"qform": moved(turn=0.02)}, "0.521", False),
        ({"qform": moved(scale=1.02)}, "0.786", False),
        ({"qform": moved(mirror=True)}, "35.1", True),
    ],
)
def test_frames_that_differ_are_told_in_millimetres_and_kept(given, millimetres, mirrored, tmp_path):
    path = save(tmp_path / "a.nii.gz", **given)
    scan = read_scan(path)
    sentence = f"the file's sform and qform place its voxels up to {millimetres} mm apart"
    assert scan.warnings[0].startswith(sentence + (", as mirror images" if mirrored else "") + ": the sform is used")
    assert len(scan.warnings) == 1
    assert np.allclose(scan.volume.affine, BASE)
    assert (scan.doubt is not None) == mirrored
    assert study_of(nibabel.load(path)).warnings == scan.warnings

    write_mask(tmp_path / "m.nii.gz", scan.volume.array > 500, scan)
    before, after = nibabel.load(path), nibabel.load(tmp_path / "m.nii.gz")
    for get in ("get_sform", "get_qform"):
        assert np.array_equal(getattr(before, get)(coded=True)[0], getattr(after, get)(coded=True)[0])


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"qform": moved(shift=(0.08, 0, 0))},
        {"qform": moved(turn=0.002)},
        {"qform": moved(mirror=True), "codes": (0, 1)},
        {"qform": moved(shift=(9, 9, 9)), "codes": (1, 0)},
    ],
)
def test_frames_that_agree_and_one_alone_are_no_warning(given, tmp_path):
    scan = read_scan(save(tmp_path / "a.nii", **given))
    assert scan.warnings == ()
    assert scan.doubt is None


def test_voxel_sizes_beside_an_sform_are_a_frame_too(tmp_path):
    scan = read_scan(save(tmp_path / "a.nii", codes=(2, 0), pixdim=(0.9, 1.1, 2.0)))
    assert scan.warnings == (
        "the file's pixdim states voxels of 0.9 x 1.1 x 2 mm and its sform 0.9 x 1.1 x 1.9 mm, which puts a corner of "
        "the scan 1.55 mm off: the sform is used, as nibabel does, and the mask keeps both",
    )


def test_qform_that_is_no_rotation_is_told(tmp_path):
    path = save(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[256:264] = np.array([0.9, 0.9], "<f4").tobytes()
    path.write_bytes(content)

    assert read_scan(path).warnings[0].startswith("the file's qform is not one that places voxels")


@pytest.mark.parametrize("forms", [{"codes": (0, 0)}, {"qform": moved(mirror=True)}], ids=["none", "mirrored"])
def test_sides_that_are_not_known_are_refused_for_millimetres_and_structures(forms, tmp_path):
    is_mirrored = "qform" in forms
    study = read_study({"": save(tmp_path / "a.nii", **forms)})
    words = "mirror images" if is_mirrored else "does not say where its voxels lie"
    assert words in study.warnings[0]
    check_sides(study, ("tumour", "bright"), world=False)
    for structures, world in ((SIDES, False), ((), True), (("Hippocampus-R",), False)):
        with pytest.raises(InputRefused, match=words) as refused:
            check_sides(study, structures, world=world)
        assert refused.value.options == (() if is_mirrored else ("assume_ras",))

    vouched = read_study({"": tmp_path / "a.nii"}, assume_ras=True)
    assert vouched.warnings == study.warnings
    if is_mirrored:  # which of the two is right nobody can vouch for
        with pytest.raises(InputRefused, match="mirror images"):
            check_sides(vouched, (), world=True)
    else:
        check_sides(vouched, SIDES, world=True)


def test_analyze_states_no_frame(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(np.arange(60, dtype=np.int16).reshape(3, 4, 5), BASE), tmp_path / "a.img")
    assert study_of(nibabel.AnalyzeImage.load(tmp_path / "a.img")).doubt is not None
    assert study_of(nibabel.AnalyzeImage(np.arange(60, dtype=np.int16).reshape(3, 4, 5), BASE)).doubt is None


def test_one_scan_of_several_that_knows_is_enough(tmp_path):
    known, unknown = save(tmp_path / "a.nii"), save(tmp_path / "b.nii", codes=(0, 0))
    assert read_study({"t1": unknown, "t2": unknown}).doubt is not None
    assert read_study({"t1": unknown, "t2": known}).doubt is None


def test_a_session_takes_no_millimetres_where_sides_are_unknown(bright_export, tmp_path):
    path = save(tmp_path / "a.nii", codes=(0, 0))
    place = nibabel.load(path).affine @ (10, 10, 8, 1)
    with open_export(bright_export) as session:
        session.set_image(path)
        with pytest.raises(InputRefused, match="assume_ras=True where its axes do run towards left, front and head"):
            session.click(place[:3], world=True)
        session.click((10, 10, 8))
        expected = session.mask()
        assert any("left and right are unknown" in warning for warning in session.image_warnings)

        session.set_image(nibabel.load(path), assume_ras=True)
        session.click(place[:3], world=True)
        assert np.array_equal(session.mask(), expected)
        assert expected.any()

        session.set_image(save(tmp_path / "b.nii", qform=moved(mirror=True)), assume_ras=True)
        with pytest.raises(InputRefused, match="mirror images"):
            session.click(place[:3], world=True)


def test_a_method_of_sides_refuses_the_scan(bright_structures, tmp_path):
    path = save(tmp_path / "a.nii", codes=(0, 0))
    with open_export(bright_structures) as session:
        with pytest.raises(InputRefused, match="structures of one side, such as thalamus_left"):
            session.set_image(path, automatic=False)
        session.set_image(path, automatic=False, assume_ras=True)
        session.add(Point((10, 10, 8), 1, "thalamus_left"))


# --- Axes that ITK does not open ---


def noisy(noise):
    affine = BASE.copy()
    affine[:3, :3] = (np.eye(3) + np.random.default_rng(0).uniform(-noise, noise, (3, 3))) @ BASE[:3, :3]
    return affine


@pytest.mark.parametrize("noise", [1e-6, 1e-5, 1e-4, 2e-4, 4e-4])
@pytest.mark.parametrize("codes", [(1, 0), (1, 1)])
def test_noise_in_the_directions_is_told_where_itk_refuses_it(noise, codes, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    path = save(tmp_path / "a.nii", sform=noisy(noise), codes=codes)
    try:
        sitk.ReadImage(str(path))
        opens = True
    except RuntimeError:
        opens = False
    told = [warning for warning in read_scan(path).warnings if "ITK" in warning]

    assert bool(told) != opens
