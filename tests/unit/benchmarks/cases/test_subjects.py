"""Guards what accuracy is measured on: whole scans with their truth, of every layout, and phantoms for every method."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samkit.benchmarks.cases.subjects import PHANTOM_SEED, each_subject, phantom_subjects, read_subjects
from samkit.errors import InputRefused
from samkit.imageio.reading import read_scan
from samkit.methods import SliceMethod, get_method, list_methods
from samkit.planes import PlaneView
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
    return read_subjects(folder, method, method.sizes["tiny"], most, **options)


@pytest.mark.parametrize("name", ["m-sam", "sam-med3d", "sam", "sam-med2d"])
def test_volumes_are_whole_scans_on_the_files_own_array(name, volumes):
    subjects, said = read(name, volumes)

    assert [subject.name for subject in subjects] == ["case 1", "case 2", "case 3", "case 4"]
    assert np.array_equal(subjects[1].volumes[""].array, scan(1))
    assert np.array_equal(subjects[1].targets[""], label(1, 3) > 0)  # no structures: all values are one target
    assert subjects[1].spacing_mm == pytest.approx((0.8, 2.5, 1.2))
    assert any("case 5 left out" in sentence for sentence in said)


@pytest.mark.parametrize("name", ["m-sam", "sam"])
def test_label_chooses_a_value(name, volumes):
    subjects, _ = read(name, volumes, label=3)

    assert np.array_equal(subjects[0].targets[""], label(1, 3) == 3)
    with pytest.raises(InputRefused, match="can be measured on nothing"):
        read(name, volumes, label=7)


def test_picks_are_spread_and_an_empty_case_gives_its_place_away(volumes):
    assert [subject.name for subject in read("m-sam", volumes, 3)[0]] == ["case 1", "case 3", "case 2"]


def test_subjects_can_be_read_one_at_a_time(volumes):
    method, said = get_method("sam"), []
    walk = each_subject(volumes, method, method.sizes["tiny"], 2, said)

    assert next(walk).name == "case 1"
    (volumes / "images" / "a4.nii.gz").unlink()  # not read yet
    assert [subject.name for subject in walk] == ["case 2"]
    assert "case 5 left out" in said[-2]


def test_sequences_go_by_name(sequences):
    subjects, _ = read("brainseg-dmif", sequences)

    assert list(subjects[0].volumes) == ["t1n", "t1c", "t2w", "t2f"]
    assert np.array_equal(subjects[0].volumes["t2f"].array, scan(3))
    assert np.array_equal(subjects[0].targets[""], label(1) > 0)
    assert list(read("medsam-yolo", sequences)[0][0].volumes) == ["t1c", "t2w", "t2f"]


@pytest.mark.parametrize("name", ["m-sam", "medsam"])
def test_of_several_sequences_one_is_taken_and_said(name, sequences):
    subjects, said = read(name, sequences)

    assert [np.array_equal(subject.volumes[""].array, scan(3)) for subject in subjects] == [True, True]
    assert any("t2f is taken" in sentence for sentence in said)


def test_structures_go_by_name(tmp_path):
    write(tmp_path / "images" / "a.nii.gz", scan(0))
    write(tmp_path / "labels" / "a.nii.gz", label(2, 12))
    (subject,), said = read("lora-sam", tmp_path)

    assert list(subject.targets) == [STRUCTURE_NAMES[1], STRUCTURE_NAMES[11]]
    assert np.array_equal(subject.targets["amygdala_right"], label(2, 12) == 12)
    assert any("are taken for thalamus_left to amygdala_right" in sentence for sentence in said)


def test_pictures_come_with_their_masks(pictures):
    subjects, said = read("lmsfe-sam", pictures)

    assert [subject.name for subject in subjects] == ["case 1", "case 3"]
    assert subjects[0].picture.shape == (10, 11, 1)
    assert np.array_equal(subjects[0].targets[""], label(1)[1] > 0)
    assert subjects[0].spacing_mm == (1.0, 1.0)
    assert any("what is called mm here is pixels" in sentence for sentence in said)
    assert any("case 2 left out" in sentence for sentence in said)


def test_a_method_that_looks_by_itself_sees_healthy_pictures_too(pictures):
    subjects, _ = read("medsam-yolo", pictures)
    assert [subject.targets[""].any() for subject in subjects] == [True, False, True]


def test_named_targets_of_a_picture_are_a_subject_each(pictures):
    liver = np.zeros(SHAPE[1:], bool)
    liver[8:] = True
    draw(pictures / "masks" / "p0_liver_000.png", 255 * liver)
    subjects, _ = read("sam", pictures)

    assert [subject.name for subject in subjects] == ["case 1, mask", "case 1, liver", "case 3, mask"]
    assert np.array_equal(subjects[1].targets[""], liver)


def test_boxes_are_for_a_detector(tmp_path):
    draw(tmp_path / "images" / "p.png", scan(0)[0] % 256)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "p.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    (subject,), _ = read("medsam-yolo", tmp_path)

    assert subject.boxes.tolist() == [pytest.approx([4.4, 3.0, 6.6, 7.0, 0])]
    assert subject.targets == {}
    with pytest.raises(InputRefused, match="sam has no detector"):
        read("sam", tmp_path)


def test_pictures_that_lack_channels_are_refused(pictures):
    with pytest.raises(InputRefused, match="brainseg-dmif takes 4 sequences"):
        read("brainseg-dmif", pictures)


def test_what_the_gate_refuses_is_left_out_and_said(volumes):
    write(volumes / "images" / "a0.nii.gz", np.full(SHAPE, 5))
    for name in ("m-sam", "sam"):
        subjects, said = read(name, volumes)
        assert subjects[0].name == "case 2"
        assert "case 1 left out" in said[0]


@pytest.mark.parametrize("name", list_methods())
def test_every_method_has_phantoms(name):
    method = get_method(name)
    config = method.sizes["small"]
    (first,), (again,) = (phantom_subjects(method, config, 1) for _ in range(2))

    assert first.name == f"phantom {PHANTOM_SEED}"
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
    first, second = phantom_subjects(method, method.sizes["tiny"], 2)

    assert second.name == f"phantom {PHANTOM_SEED + 1}"
    assert not np.array_equal(first.targets[""], second.targets[""])


def test_a_sequence_that_phantoms_lack_is_refused():
    method = get_method("brainseg-dmif")
    config = replace(method.sizes["tiny"], sequences=("t1n", "dwi"))
    with pytest.raises(InputRefused, match="take dwi"):
        phantom_subjects(method, config, 1)


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


@pytest.mark.parametrize(("name", "folder", "count", "spacing"), REAL)
def test_real_folders_are_read(name, folder, count, spacing, shared):
    method = get_method(name)
    (subject,), said = read_subjects(shared / "data" / folder, method, method.sizes["small"], 1)

    assert said[-1] == f"1 of {count} subjects in the folder are measured"
    assert subject.spacing_mm == pytest.approx(spacing)
    if name == "lora-sam":
        assert set(subject.targets) == set(STRUCTURE_NAMES)
    if folder == "ms-lesions":
        volume = read_scan(shared / "data" / folder / "patient19" / "lesions.nii.gz").volume
        assert np.array_equal(subject.targets[""], volume.array > 0)
