"""Three layouts of training data are found, and data that can't be used is refused with every offender named."""

import json

import nibabel as nib
import numpy as np
import pytest

from samkit.errors import InputRefused
from samkit.training.click_cases import check_cases, find_cases


def test_images_and_labels_are_matched_by_stem(data):
    assert [case.name for case in find_cases(data)] == [f"case{n}" for n in range(5)]


def test_masks_may_take_the_place_of_labels(data):
    (data / "labels").rename(data / "masks")

    assert len(find_cases(data)) == 5


def test_one_folder_per_case_is_found(tmp_path, write_case):
    for name in ("a", "b"):
        write_case(tmp_path / name / "t1.nii.gz", tmp_path / name / "t1_seg.nii.gz")

    cases = find_cases(tmp_path)

    assert [(case.name, case.label.name) for case in cases] == [("a", "t1_seg.nii.gz"), ("b", "t1_seg.nii.gz")]


def test_folder_of_one_image_and_its_label_is_a_case(tmp_path, write_case):
    write_case(tmp_path / "t1.nii.gz", tmp_path / "t1_seg.nii.gz")

    assert [(case.name, case.image.name) for case in find_cases(tmp_path)] == [(tmp_path.name, "t1.nii.gz")]


def test_decathlon_json_is_read(data):
    entries = [{"image": f"./images/case{n}.nii.gz", "label": f"./labels/case{n}.nii.gz"} for n in (0, 3)]
    (data / "dataset.json").write_text(json.dumps({"training": entries}))

    assert [case.name for case in find_cases(data)] == ["case0", "case3"]


def test_json_may_not_name_files_outside_the_folder(data):
    entry = {"image": "../secret.nii.gz", "label": "labels/case0.nii.gz"}
    (data / "dataset.json").write_text(json.dumps({"training": [entry]}))

    with pytest.raises(InputRefused, match="no file inside"):
        find_cases(data)


@pytest.mark.parametrize("content", ["[]", "{", '{"training": [{"image": "a"}]}'])
def test_broken_json_is_refused(data, content):
    (data / "dataset.json").write_text(content)

    with pytest.raises(InputRefused, match=r"dataset\.json can't be used"):
        find_cases(data)


def test_unmatched_stems_are_all_listed(data):
    (data / "labels/case1.nii.gz").unlink()
    (data / "images/case3.nii.gz").unlink()

    with pytest.raises(InputRefused, match=r"case1 \(no label\), case3 \(no image\)"):
        find_cases(data)


def test_missing_and_empty_folders_are_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputRefused, match="lay the data out"):
            find_cases(folder)


def test_images_without_labels_are_refused(tmp_path):
    (tmp_path / "images").mkdir()

    with pytest.raises(InputRefused, match="neither labels/ nor masks/"):
        find_cases(tmp_path)


def test_case_folder_with_two_images_is_refused(tmp_path, write_case):
    write_case(tmp_path / "a/t1.nii.gz", tmp_path / "a/mask.nii.gz")
    write_case(tmp_path / "a/t2.nii.gz", tmp_path / "a/mask.nii.gz")

    with pytest.raises(InputRefused, match=r"a \(2 images, 1 labels\)"):
        find_cases(tmp_path)


def test_label_without_foreground_is_skipped_and_said_so(data, write_case):
    write_case(data / "images/case2.nii.gz", data / "labels/case2.nii.gz", empty=True)

    checked = check_cases(find_cases(data), None, "all")

    assert len(checked.cases) == 4
    assert checked.skipped == ("case2 skipped: its label holds only 0, no foreground",)


def test_no_foreground_anywhere_is_refused(data):
    with pytest.raises(InputRefused, match="equal to 7"):
        check_cases(find_cases(data), 7, "all")


def test_shapes_that_differ_truncated_and_nan_files_are_named_together(data):
    image = nib.load(data / "images/case0.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), data / "labels/case0.nii.gz")
    whole = (data / "images/case1.nii.gz").read_bytes()
    (data / "images/case1.nii.gz").write_bytes(whole[: len(whole) // 2])
    nib.save(nib.Nifti1Image(np.full(image.shape, np.nan, np.float32), np.eye(4)), data / "images/case2.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), np.eye(4)), data / "images/case3.nii.gz")

    with pytest.raises(InputRefused) as refused:
        check_cases(find_cases(data), None, "all")

    text = str(refused.value)
    assert "4 of 5 cases can't be used" in text
    for part in (
        "case case0",
        "case1.nii.gz can't be read",
        "of case2.nii.gz are NaN",
        "all voxels of case3.nii.gz have the value 0",
    ):
        assert part in text


def test_label_in_another_orientation_than_its_image_is_refused(data):
    label = nib.load(data / "labels/case2.nii.gz")
    nib.save(label.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]])), data / "labels/case2.nii.gz")

    with pytest.raises(InputRefused, match=r"case case2: .* lies 40 voxels off the image; resample the label"):
        check_cases(find_cases(data), None, "all")


@pytest.mark.parametrize(("shift", "cases"), [(1e-6, 5), (0.05, 5), (0.2, None)])
def test_label_affine_may_differ_by_round_off_alone(data, shift, cases):
    label = nib.load(data / "labels/case2.nii.gz")
    affine = label.affine + shift * np.eye(4, k=3)
    nib.save(nib.Nifti1Image(np.asanyarray(label.dataobj).copy(), affine), data / "labels/case2.nii.gz")

    if cases is None:
        with pytest.raises(InputRefused, match="case case2"):
            check_cases(find_cases(data), None, "all")
    else:
        assert len(check_cases(find_cases(data), None, "all").cases) == cases


def test_each_takes_every_label_value_and_measures_the_largest(tmp_path, write_case):
    write_case(tmp_path / "images/a.nii.gz", tmp_path / "labels/a.nii.gz", value=3)
    label = nib.load(tmp_path / "labels/a.nii.gz")
    array = np.asanyarray(label.dataobj).copy()
    array[30:35, 30:32, 2:4] = 1
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "labels/a.nii.gz")

    (each,) = check_cases(find_cases(tmp_path), None, "each").cases
    (together,) = check_cases(find_cases(tmp_path), None, "all").cases

    assert each.values == (1, 3)
    assert max(each.extent_mm) == 14.0
    assert max(together.extent_mm) > 14.0


@pytest.mark.parametrize("axes", ["RAS", "LIA", "PSR"])
def test_extent_is_along_the_patient_whatever_the_file_order(tmp_path, axes):
    from nibabel.orientations import axcodes2ornt, ornt_transform

    label = np.zeros((20, 30, 40), np.uint8)
    label[5:9, 5:15, 5:25] = 1
    scan = nib.Nifti1Image(np.where(label, 50.0, 10.0).astype(np.float32), np.diag([1.0, 2.0, 0.5, 1.0]))
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    for folder, image in (("images", scan), ("labels", nib.Nifti1Image(label, scan.affine))):
        (tmp_path / folder).mkdir()
        nib.save(image.as_reoriented(turn), tmp_path / folder / "a.nii.gz")
    (checked,) = check_cases(find_cases(tmp_path), None, "all").cases
    np.testing.assert_allclose(checked.extent_mm, (4.0, 20.0, 10.0))
