"""One scan meets one sentence: in sam-segment, sam-train, sam-bench and --calibration, of 3D and of 2D methods."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest

from samkit.benchmarks.cases.folders import FolderCases
from samkit.errors import InputRefused
from samkit.export.calibration import find_calibration, read_calibration
from samkit.imageio.gate import labels_of
from samkit.imageio.scan import count_kinds
from samkit.imageio.study import read_study
from samkit.methods import get_method
from samkit.protocols.simulated_user import CENTRE, SimulatedUser
from samkit.segment.inputs import find_inputs
from samkit.training.click_cases import check_cases, find_cases
from samkit.training.plan import plan_training
from samkit.training.slice_cases import check_slice_cases
from samkit.training.slice_readers import find_slice_cases
from samkit.training.slice_task import find_slices

SHAPE = (9, 8, 7)
BROKEN = {
    "in metres": "states its geometry in metres, needed is mm; write it again in mm, units code 2",
    "singular": "the affine is singular",
    "NaN": "1 of 504 voxels of a.nii.gz are NaN or infinite, or too large for float32; replace them first",
    "constant": "all voxels of a.nii.gz have the value 3; give a scan with contrast",
    "dark": "has no voxel above zero (largest -1), so its z-score is undefined",
    "of a time series": "more than one volume",
}


@pytest.fixture(params=list(BROKEN))
def broken(request, tmp_path):
    """A folder of one case whose scan is broken, the scan, and what is wrong with it."""
    array = np.random.default_rng(0).uniform(1, 99, SHAPE).astype(np.float32)
    affine = np.eye(4)
    if request.param == "NaN":
        array[1, 2, 3] = np.nan
    if request.param == "constant":
        array[:] = 3
    if request.param == "dark":
        array = -np.rint(array)
        array[0, 0, 0] = -1
    if request.param == "of a time series":
        array = np.stack([array, array], axis=-1)
    made = nibabel.Nifti1Image(array, affine)
    made.header.set_xyzt_units("meter" if request.param == "in metres" else "mm")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    made.to_filename(tmp_path / "images" / "a.nii.gz")
    if request.param == "singular":  # nibabel writes no such header
        content = bytearray(gzip.decompress((tmp_path / "images" / "a.nii.gz").read_bytes()))
        content[280:296] = bytes(16)
        (tmp_path / "images" / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    label = np.zeros(SHAPE, np.uint8)
    label[3:6, 3:6, 3:6] = 1
    nibabel.save(nibabel.Nifti1Image(label, affine), tmp_path / "labels" / "a.nii.gz")
    return tmp_path, tmp_path / "images" / "a.nii.gz", BROKEN[request.param]


def train_clicks(folder):
    return check_cases(find_cases(folder), None, "all")


def train_slices(folder):
    return check_slice_cases(find_slice_cases(folder))


@pytest.mark.parametrize(("name", "train"), [("m-sam", train_clicks), ("sam", train_slices)])
def test_every_command_says_the_same(broken, name, train):
    folder, scan, words = broken
    method = get_method(name)
    config = method.sizes["tiny"]
    with pytest.raises(InputRefused) as refused:
        read_study(find_inputs([str(scan)], method, config, {}))
    sentence = str(refused.value)
    assert words in sentence

    with pytest.raises(InputRefused) as calibrated:
        read_calibration(find_calibration(scan.parent, method, config)[0], method, config)
    assert str(calibrated.value) == sentence
    with pytest.raises(InputRefused) as measured:
        list(FolderCases(folder, method, config, 1))
    assert sentence in str(measured.value)
    with pytest.raises(InputRefused) as trained:
        train(folder)
    assert sentence in str(trained.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1, "1 of {size} voxels of a.nii.gz hold what is no label: -1; give the label"),
        (2e6, "hold what is no label: 2e+06"),
        (0.4, "hold what is no label: 0.4"),
        (0.998, "hold what is no label: 0.998"),
        (np.nan, "hold what is no label: nan"),
        (np.inf, "hold what is no label: inf"),
    ],
)
def test_labels_have_a_gate_of_their_own(value, words, tmp_path):
    array = np.random.default_rng(0).uniform(1, 99, SHAPE).astype(np.float32)
    label = np.zeros(SHAPE, np.float32)
    label[3, 3, 3], label[4, 4, 4] = 1, value
    for folder, content in (("images", array), ("labels", label)):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(content, np.eye(4)), tmp_path / folder / "a.nii.gz")

    with pytest.raises(InputRefused) as clicks:
        train_clicks(tmp_path)
    with pytest.raises(InputRefused) as slices:
        train_slices(tmp_path)
    with pytest.raises(InputRefused) as measured:
        list(FolderCases(tmp_path, get_method("medsam"), get_method("medsam").sizes["tiny"], 1))
    for refused in (clicks, slices, measured):
        assert words.format(size=label.size) in str(refused.value)


def test_what_lies_near_whole_numbers_is_a_label_and_of_others_some_are_named():
    near = np.array([0, -0.0009, 0.9995, 1.0005, 5, 14175.0005], np.float32)
    labels = labels_of(near, "a.nii")
    assert labels.dtype.kind == "i"
    assert labels.tolist() == [0, 0, 1, 1, 5, 14175]
    filtered = np.linspace(0, 5, 21, dtype=np.float32)
    with pytest.raises(
        InputRefused, match=r"15 of 21 voxels of a\.nii .*: 0\.25, 0\.5, 0\.75, 1\.25, 1\.5 and 10 more;"
    ):
        labels_of(filtered, "a.nii")


# --- What is unusual is told of all scans together, and dropped nowhere ---


@pytest.fixture
def unplaced(tmp_path):
    """Three cases, of which two do not say where their voxels lie."""
    label = np.zeros(SHAPE, np.uint8)
    label[3:6, 3:6, 3:6] = 1
    for number, code in enumerate((1, 0, 0)):
        array = np.random.default_rng(number).integers(1, 99, SHAPE).astype(np.int16)
        array[3:6, 3:6, 3:6] += 200
        for folder, content in (("images", array), ("labels", label)):
            made = nibabel.Nifti1Image(content, np.diag([-1, 1, 1, 1]))
            made.set_qform(made.header.get_base_affine(), code)
            made.set_sform(made.header.get_base_affine(), code)
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.save(made, tmp_path / folder / f"{number}.nii.gz")
    return tmp_path


UNPLACED = "the file does not say where its voxels lie in a patient; its axes are taken to run towards left, front"


def test_clicks_slices_and_measurements_tell_it_once_with_a_count(unplaced):
    told = [train_clicks(unplaced).remarks, train_slices(unplaced).remarks]
    for name in ("m-sam", "medsam"):
        method = get_method(name)
        found = FolderCases(unplaced, method, method.sizes["tiny"], 3)
        list(found)
        measured, *unusual = found.told
        assert measured == "3 of 3 subjects in the folder are measured"
        told.append(unusual)

    for (sentence,) in told:
        assert sentence.startswith(f"2 of 3 cases: {UNPLACED}")


def test_calibration_tells_it_too(unplaced, caplog):
    method = get_method("m-sam")
    config = method.sizes["tiny"]
    read_calibration(find_calibration(unplaced / "images", method, config)[0], method, config)
    assert caplog.messages[0].startswith(f"2 of 3 calibration subjects: {UNPLACED}")


def test_structures_of_one_side_are_told_of_loudly(unplaced, caplog):
    lora = get_method("lora-sam")
    found = FolderCases(unplaced, lora, lora.sizes["tiny"], 3)
    list(found)
    loud = "LEFT AND RIGHT UNKNOWN in 2 of 3 cases, and thalamus_left is of one side"
    assert found.told[-1].startswith(loud)

    plan = plan_training(lora, "small", [])
    remarks = find_slices(unplaced, plan, layout=None, patterns={}).remarks
    assert remarks[-1].startswith(loud)
    assert remarks[-1] in caplog.messages


def test_figures_that_differ_are_one_kind():
    near, far = "up to 0.5 mm apart", "up to 12 mm apart"
    assert count_kinds([(near,), (far, far), ()], "scans") == (f"2 of 3 scans, with the figures of the first: {near}",)


# --- One slice ---


@pytest.fixture
def thin(tmp_path):
    """Three cases of one slice: sagittal, coronal, and axial in a file of two axes."""
    rng = np.random.default_rng(0)
    label = np.zeros((20, 20, 20), np.uint8)
    label[6:12, 5:14, 6:11] = 1
    scan = rng.integers(1, 99, label.shape) + 200 * label
    scan[7:11, 7:11, 7:11] = 400
    for number, cut in enumerate((np.s_[9:10], np.s_[:, 9:10], np.s_[:, :, 9])):
        for folder, content in (("images", scan), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            made = nibabel.Nifti1Image(content[cut].astype(np.int16), np.diag([1, 2, 3, 1]))
            nibabel.save(made, tmp_path / folder / f"{number}.nii.gz")
    return tmp_path


def test_slices_train_and_are_measured_and_calibrated_on(thin):
    cases = train_slices(thin).cases
    assert [case.plane for case in cases] == ["sagittal", "coronal", "axial"]
    loaded = [case.load() for case in cases]
    assert [one.labels.shape for one in loaded] == [(1, 20, 20)] * 3
    assert [one.labels.sum() for one in loaded] == [45, 30, 54]
    assert [one.pixel_mm for one in loaded] == [(3, 2), (3, 1), (2, 1)]
    assert all(one.images[one.labels > 0].min() > one.images[one.labels == 0].max() for one in loaded)

    method = get_method("medsam")
    config = method.sizes["tiny"]
    for case in FolderCases(thin, method, config, 3):
        user = SimulatedUser.of(case, CENTRE, method, config, None)
        assert user.target.shape == (20, 20)
        assert user.target.sum() == case.targets[""].sum()
    subjects = read_calibration(find_calibration(thin / "images", method, config)[0], method, config)
    assert [subject.target.shape for subject in subjects] == [(1, 20, 20), (20, 1, 20), (20, 20, 1)]


def test_methods_of_volumes_say_what_to_do_instead(thin):
    method = get_method("m-sam")
    config = method.sizes["tiny"]
    words = "20 x 20 x 1: a slice, not a volume; give a 3D scan of several slices, or use a 2D method, such as medsam"
    with pytest.raises(InputRefused, match=words):
        train_clicks(thin)
    with pytest.raises(InputRefused, match=words):
        list(FolderCases(thin, method, config, 1))
    with pytest.raises(InputRefused, match="a slice, not a volume"):
        read_calibration(find_calibration(thin / "images", method, config)[0], method, config)
