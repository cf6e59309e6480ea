"""Volumes become slices with the sequences asked for, in order; what is not one space or lacks a file is told."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from samkit.errors import InputRefused
from samkit.training.slice_cases import hold_back
from samkit.training.volume_slices import (
    STRUCTURE_NAMES,
    STRUCTURE_VALUES,
    find_freesurfer,
    find_volumes,
    read_freesurfer,
)

SHAPE = (6, 7, 5)
LEVELS = {"T1": 100.0, "T1Gd": 200.0, "FLAIR": 300.0}


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(kind(array, np.eye(4) if affine is None else affine), path)


def write_case(folder, names=("T1", "T1Gd", "FLAIR"), label=1):
    """Write volumes that rise along J and are zero at its start; the label is one voxel."""
    for name in names:
        array = np.zeros(SHAPE, np.float32)
        array[:, 2:] = LEVELS[name] + np.arange(5, dtype=np.float32)[None, :, None]
        save(folder / f"{folder.name}_{name}.nii.gz", array)
    mask = np.zeros(SHAPE, np.int16)
    mask[1, 4, 3] = label
    save(folder / f"{folder.name}_seg.nii.gz", mask)


def test_sequences_come_in_the_order_asked_for(tmp_path):
    write_case(tmp_path / "b")
    write_case(tmp_path / "a")

    found = find_volumes(tmp_path, ("t2f", "t1n"))

    assert [case.name for case in found.cases] == ["a", "b"]
    assert found.skipped == ()
    case = found.cases[0]
    assert [path.name for path in case.images] == ["a_FLAIR.nii.gz", "a_T1.nii.gz"]
    assert case.slices == (0, 1, 2, 3, 4)
    loaded = case.load()
    assert loaded.images.shape == (5, 7, 6, 2)
    assert (loaded.images.dtype, loaded.labels.dtype) == (np.float32, np.uint8)
    assert (loaded.images.min(), loaded.images.max()) == (0, 255)
    assert not loaded.images[:, 5:].any()  # the two rows at the back are zero, and stay so
    # axial: rows run to the back, columns to the patient's left
    assert np.argwhere(loaded.labels).tolist() == [[3, 2, 4]]


def test_another_plane_and_fewer_slices_give_the_same_voxels(tmp_path):
    write_case(tmp_path / "a")
    (case,) = find_volumes(tmp_path, ("t1n",), plane="coronal").cases
    whole, part = case.load(), replace(case, slices=(4, 2)).load()
    assert np.argwhere(whole.labels).tolist() == [[4, 1, 4]]
    np.testing.assert_array_equal(part.images, whole.images[[4, 2]])
    np.testing.assert_array_equal(part.labels, whole.labels[[4, 2]])


def test_a_folder_that_is_a_case_itself_is_read(tmp_path):
    write_case(tmp_path / "patient")
    assert [case.name for case in find_volumes(tmp_path / "patient", ("t1n",)).cases] == ["patient"]


def test_volumes_lie_in_the_part_of_the_folder_that_their_split_is_named_by(tmp_path):
    for name in ("train/a", "train/b", "valid/c"):
        write_case(tmp_path / name)

    split = hold_back(find_volumes(tmp_path, ("t1n",)).cases)

    assert [case.name for case in split.training] == ["train/a", "train/b"]
    assert [case.name for case in split.held_back] == ["valid/c"]


def test_label_values_stay(tmp_path):
    write_case(tmp_path / "a", label=4)
    assert find_volumes(tmp_path, ("t1n",)).cases[0].load().labels.max() == 4


def test_a_missing_sequence_skips_the_case_and_is_named(tmp_path):
    write_case(tmp_path / "a")
    write_case(tmp_path / "b", names=("T1", "T1Gd"))
    found = find_volumes(tmp_path, ("t1n", "t2f"))
    assert [case.name for case in found.cases] == ["a"]
    assert found.skipped == (
        "b skipped: t2f not found; found are t1n (b_T1.nii.gz), t1c (b_T1Gd.nii.gz), label (b_seg.nii.gz); "
        "add the file, or a pattern that names it",
    )


def test_files_that_are_not_co_registered_skip_the_case_and_are_named(tmp_path):
    for name in "abcd":
        write_case(tmp_path / name)
    moved = np.eye(4)
    moved[0, 3] = 3
    save(tmp_path / "b/b_FLAIR.nii.gz", np.ones(SHAPE, np.float32), moved)
    save(tmp_path / "c/c_FLAIR.nii.gz", np.ones((6, 7, 4), np.float32))
    (tmp_path / "d/d_FLAIR.nii.gz").write_bytes(b"broken")

    found = find_volumes(tmp_path, ("t1n", "t2f"))

    assert [case.name for case in found.cases] == ["a"]
    b, c, d = found.skipped
    assert "b_FLAIR.nii.gz lies 3 voxels off b_T1.nii.gz" in b
    assert "c_FLAIR.nii.gz is 6 x 7 x 4 and c_T1.nii.gz 6 x 7 x 5" in c
    assert "d_FLAIR.nii.gz is not a NIfTI file: its start can't be read" in d


def test_two_files_for_one_sequence_are_refused_and_a_pattern_decides(tmp_path):
    write_case(tmp_path / "a")
    save(tmp_path / "a/a_T1CE.nii.gz", np.ones(SHAPE, np.float32))
    with pytest.raises(InputRefused, match=r"a_T1CE\.nii\.gz and a_T1Gd\.nii\.gz in a are both t1c"):
        find_volumes(tmp_path, ("t1n", "t1c"))
    found = find_volumes(tmp_path, ("t1n", "t1c"), {"t1c": "*_t1gd*"})
    assert found.cases[0].images[1].name == "a_T1Gd.nii.gz"


def test_no_usable_case_is_refused_with_the_reasons(tmp_path):
    with pytest.raises(InputRefused, match=r"holds no scan \(\.nii, \.nii\.gz, .*\.mhd were looked for\)"):
        find_volumes(tmp_path, ("t1n",))
    write_case(tmp_path / "a", names=("T1Gd",))
    with pytest.raises(InputRefused, match="no case can be used: a skipped: t1n not found"):
        find_volumes(tmp_path, ("t1n",))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full(SHAPE, np.nan, np.float32), "are NaN"),
        (np.zeros(SHAPE, np.float32), "contrast"),
    ],
)
def test_images_without_use_are_told_at_loading(tmp_path, array, says):
    write_case(tmp_path / "a")
    save(tmp_path / "a/a_T1.nii.gz", array)
    (case,) = find_volumes(tmp_path, ("t1n",)).cases
    with pytest.raises(InputRefused, match=rf"a_T1\.nii\.gz .*{says}"):
        case.load()


@pytest.mark.parametrize("value", [-1, 300])
def test_labels_that_are_none_are_told_at_loading(tmp_path, value):
    write_case(tmp_path / "a", label=value)
    with pytest.raises(InputRefused, match="label"):
        find_volumes(tmp_path, ("t1n",)).cases[0].load()


def test_a_ct_without_a_window_is_told(tmp_path):
    write_case(tmp_path / "a")
    assert not find_volumes(tmp_path, ("t1n",)).cases[0].load().remarks
    array = np.random.default_rng(0).normal(0, 300, SHAPE).astype(np.float32)
    save(tmp_path / "a/a_T1.nii.gz", array)
    (remark,) = find_volumes(tmp_path, ("t1n",)).cases[0].load().remarks
    assert "below zero, as in a CT, and the 0.5 and 99.5 percentile of each volume stand in for a window" in remark


def test_one_image_per_case_needs_no_names(data):
    found = find_volumes(data, ())
    assert len(found.cases) == 5
    assert found.cases[0].load().images.shape == (44, 36, 40, 1)


def write_subject(folder, values, label_name="aseg.mgz"):
    image = np.random.default_rng(0).integers(1, 200, SHAPE).astype(np.uint8)
    labels = np.zeros(SHAPE, np.int32)
    labels.ravel()[: len(values)] = values
    save(folder / "norm.mgz", image)
    save(folder / "T1.mgz", image)
    save(folder / label_name, labels)


def test_freesurfer_values_become_one_to_twelve_left_first(tmp_path):
    write_subject(tmp_path / "bert/mri", [*STRUCTURE_VALUES, 2, 1035])

    (case,) = find_freesurfer(tmp_path).cases

    assert (case.name, case.images[0].name, case.plane) == ("bert", "norm.mgz", "coronal")
    loaded = case.load()
    assert np.bincount(loaded.labels.ravel())[1:].tolist() == [1] * 12
    assert STRUCTURE_VALUES == (10, 11, 12, 13, 17, 18, 49, 50, 51, 52, 53, 54)
    assert STRUCTURE_NAMES[0] == "thalamus_left"
    assert STRUCTURE_NAMES[11] == "amygdala_right"


def test_freesurfer_without_labels_or_structures_is_told(tmp_path):
    write_subject(tmp_path / "a", [10])
    write_subject(tmp_path / "b", [10], label_name="other.mgz")
    write_subject(tmp_path / "c", [2])
    found = find_freesurfer(tmp_path)
    assert [case.name for case in found.cases] == ["a", "c"]
    assert found.skipped == (
        "b skipped: no label among T1, norm, other; name it aseg or aparc+aseg or aparc.DKTatlas+aseg.mgz",
    )
    with pytest.raises(InputRefused, match="none of FreeSurfer's 12"):
        read_freesurfer(found.cases[1])


def test_a_real_subject_has_twelve_structures_left_on_the_right_of_the_picture(shared):
    (case,) = find_freesurfer(shared / "data/subcortical").cases
    loaded = case.load()
    assert loaded.images.shape == (256, 256, 256, 1)
    coarse = loaded.labels[::2, ::2, ::2]
    middles = np.array(ndimage.center_of_mass(coarse > 0, coarse, range(1, 13)))
    assert middles[:6, 2].min() > middles[6:, 2].max()  # the patient's left is on the picture's right
    assert middles[1, 1] < middles[4, 1]  # the caudate is above the hippocampus


def test_real_cases_of_four_sequences_are_read(shared):
    found = find_volumes(shared / "data/ms-lesions", ("t1n", "t1c", "t2w", "t2f"))
    assert [case.name for case in found.cases] == ["patient19", "patient26"]
    assert [path.name for path in found.cases[0].images] == [
        "T1.nii.gz", "T1POST.nii.gz", "T2.nii.gz", "FLAIR.nii.gz",
    ]  # fmt: skip
    assert found.cases[1].slices == tuple(range(182))
