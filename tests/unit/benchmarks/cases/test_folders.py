"""Guards what accuracy is measured on: whole scans with their truth, of every layout, and phantoms for every method."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samkit.benchmarks.cases.folders import FolderCases
from samkit.errors import InputRefused
from samkit.imageio.reading import read_scan
from samkit.methods import get_method
from samkit.training.volume_slices import STRUCTURE_NAMES

AFFINE = np.array([[0, 2.5, 0, 10], [-0.8, 0, 0, -3], [0, 0, 1.2, 7], [0, 0, 0, 1.0]])  # first axis to the posterior
SHAPE = (9, 10, 11)


def write(path, array, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(dtype), AFFINE), path)


def scan(seed):
    return np.random.default_rng(seed).integers(0, 900, SHAPE)


def label(*values):
    array = np.zeros(SHAPE, np.uint8)
    for place, value in enumerate(values):
        array[1 + 2 * place, 2:6, 3:9] = value
    return array


def draw(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


@pytest.fixture
def volumes(tmp_path):
    for number in range(5):
        write(tmp_path / "images" / f"a{number}.nii.gz", scan(number))
        write(tmp_path / "labels" / f"a{number}.nii.gz", label(*([1, 3] if number != 4 else [])))
    return tmp_path


@pytest.fixture
def sequences(tmp_path):
    for patient in ("one", "two"):
        for seed, name in enumerate(("T1", "T1POST", "T2", "FLAIR")):
            write(tmp_path / patient / f"{name}.nii.gz", scan(seed))
        write(tmp_path / patient / "lesions.nii.gz", label(1))
    return tmp_path


@pytest.fixture
def pictures(tmp_path):
    for number in range(3):
        draw(tmp_path / "images" / f"p{number}.png", scan(number)[0] % 256)
        draw(tmp_path / "masks" / f"p{number}_mask.png", 255 * label(1)[1] * (number != 1))
    return tmp_path


def read(name, folder, most=9, **options):
    method = get_method(name)
    return read_all(folder, method, method.sizes["tiny"], most, **options)


def read_all(*words, **options):
    """Return all cases of a folder, and what was said of it."""
    found = FolderCases(*words, **options)
    cases = list(found)
    return cases, [*found.told, *found.remarks]


@pytest.mark.parametrize("name", ["m-sam", "sam-med3d", "sam", "sam-med2d"])
def test_volumes_are_whole_scans_on_the_files_own_array(name, volumes):
    cases, said = read(name, volumes)

    assert [case.name for case in cases] == ["case 1", "case 2", "case 3", "case 4"]
    assert np.array_equal(cases[1].volumes[""].array, scan(1))
    assert np.array_equal(cases[1].targets[""], label(1, 3) > 0)  # no structures: all values are one target
    assert cases[1].spacing_mm == pytest.approx((0.8, 2.5, 1.2))
    assert any("case 5 left out" in sentence for sentence in said)


@pytest.mark.parametrize("name", ["m-sam", "sam"])
def test_label_chooses_a_value(name, volumes):
    cases, _ = read(name, volumes, label=3)

    assert np.array_equal(cases[0].targets[""], label(1, 3) == 3)
    with pytest.raises(InputRefused, match="can be measured on nothing"):
        read(name, volumes, label=7)


def test_picks_are_spread_and_an_empty_case_gives_its_place_away(volumes):
    assert [case.name for case in read("m-sam", volumes, 3)[0]] == ["case 1", "case 3", "case 2"]


def test_subjects_can_be_read_one_at_a_time(volumes):
    method = get_method("sam")
    found = FolderCases(volumes, method, method.sizes["tiny"], 2)
    walk = iter(found)

    assert next(walk).name == "case 1"
    (volumes / "images" / "a4.nii.gz").unlink()  # not read yet
    assert [case.name for case in walk] == ["case 2"]
    assert "case 5 left out" in found.remarks[-1]


def test_sequences_go_by_name(sequences):
    cases, _ = read("brainseg-dmif", sequences)

    assert list(cases[0].volumes) == ["t1n", "t1c", "t2w", "t2f"]
    assert np.array_equal(cases[0].volumes["t2f"].array, scan(3))
    assert np.array_equal(cases[0].targets[""], label(1) > 0)
    assert list(read("medsam-yolo", sequences)[0][0].volumes) == ["t1c", "t2w", "t2f"]


@pytest.mark.parametrize("name", ["m-sam", "medsam"])
def test_of_several_sequences_one_is_taken_and_said(name, sequences):
    cases, said = read(name, sequences)

    assert [np.array_equal(case.volumes[""].array, scan(3)) for case in cases] == [True, True]
    assert any("t2f is taken" in sentence for sentence in said)


def test_structures_go_by_name(tmp_path):
    write(tmp_path / "images" / "a.nii.gz", scan(0))
    write(tmp_path / "labels" / "a.nii.gz", label(2, 12))
    (case,), said = read("lora-sam", tmp_path)

    assert list(case.targets) == [STRUCTURE_NAMES[1], STRUCTURE_NAMES[11]]
    assert np.array_equal(case.targets["amygdala_right"], label(2, 12) == 12)
    assert any("are taken for thalamus_left to amygdala_right" in sentence for sentence in said)


def test_pictures_come_with_their_masks(pictures):
    cases, said = read("lmsfe-sam", pictures)

    assert [case.name for case in cases] == ["case 1", "case 3"]
    assert cases[0].picture.shape == (10, 11, 1)
    assert np.array_equal(cases[0].targets[""], label(1)[1] > 0)
    assert cases[0].spacing_mm == (1.0, 1.0)
    assert any("what is called mm here is pixels" in sentence for sentence in said)
    assert any("case 2 left out" in sentence for sentence in said)


def test_a_method_that_looks_by_itself_sees_healthy_pictures_too(pictures):
    cases, _ = read("medsam-yolo", pictures)
    assert [case.targets[""].any() for case in cases] == [True, False, True]


def test_named_targets_of_a_picture_are_a_subject_each(pictures):
    liver = np.zeros(SHAPE[1:], bool)
    liver[8:] = True
    draw(pictures / "masks" / "p0_liver_000.png", 255 * liver)
    cases, _ = read("sam", pictures)

    assert [case.name for case in cases] == ["case 1, mask", "case 1, liver", "case 3, mask"]
    assert np.array_equal(cases[1].targets[""], liver)


def test_boxes_are_for_a_detector(tmp_path):
    draw(tmp_path / "images" / "p.png", scan(0)[0] % 256)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "p.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    (case,), _ = read("medsam-yolo", tmp_path)

    assert case.boxes.tolist() == [pytest.approx([4.4, 3.0, 6.6, 7.0, 0])]
    assert case.targets == {}
    with pytest.raises(InputRefused, match="sam has no detector"):
        read("sam", tmp_path)


def test_pictures_that_lack_channels_are_refused(pictures):
    with pytest.raises(InputRefused, match="brainseg-dmif takes 4 sequences"):
        read("brainseg-dmif", pictures)


def test_what_the_gate_refuses_is_left_out_and_said(volumes):
    write(volumes / "images" / "a0.nii.gz", np.full(SHAPE, 5))
    for name in ("m-sam", "sam"):
        cases, said = read(name, volumes)
        assert cases[0].name == "case 2"
        assert any("case 1 left out" in sentence for sentence in said)


REAL = [
    ("m-sam", "hippocampus", 47, (1.0, 1.0, 1.0)),
    ("m-sam", "lung-nodule", 1, (1.0, 1.0, 1.0)),
    ("sam-med3d", "ms-lesions", 2, (1.0, 1.0, 1.0)),
    ("brainseg-dmif", "ms-lesions", 2, (1.0, 1.0, 1.0)),
    ("medsam-yolo", "ms-lesions", 2, (1.0, 1.0, 1.0)),
    ("lora-sam", "subcortical", 1, (1.0, 1.0, 1.0)),
    ("sam", "fetal-head", 22, (1.0, 1.0)),
    ("lmsfe-sam", "breast-ultrasound", 52, (1.0, 1.0)),
    ("sam-med2d", "organ-slices", 28, (1.0, 1.0)),
    ("medsam-yolo", "brain-tumour-boxes", 206, (1.0, 1.0)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder", "count", "spacing"), REAL)
def test_real_folders_are_read(name, folder, count, spacing, shared):
    method = get_method(name)
    (case,), said = read_all(shared / "data" / folder, method, method.sizes["small"], 1)

    assert said[0] == f"1 of {count} subjects in the folder are measured"
    assert case.spacing_mm == pytest.approx(spacing)
    if name == "lora-sam":
        assert set(case.targets) == set(STRUCTURE_NAMES)
    if folder == "ms-lesions":
        volume = read_scan(shared / "data" / folder / "patient19" / "lesions.nii.gz").volume
        assert np.array_equal(case.targets[""], volume.array > 0)


def test_a_mask_in_jpeg_is_said_once(pictures):
    for number in range(3):
        mask = pictures / "masks" / f"p{number}_mask.png"
        draw(mask.with_suffix(".jpg"), np.array(Image.open(mask)))
        mask.unlink()
    _, said = read("sam", pictures)
    assert sum("masks in JPEG" in sentence for sentence in said) == 1
