"""What `-i` names is found by sequence, in any of its forms, and what does not fit is told by name."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

from samkit.errors import InputRefused, OptionError
from samkit.imageio.reading import files_of
from samkit.imageio.study import read_study
from samkit.methods import get_method, sam
from samkit.segment.inputs import find_inputs

TWO = replace(sam.METHOD, name="two", sequences=lambda config: ("t1c", "t2w"))


def volume(path):
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), path)
    return path


def test_one_file_has_no_name(tmp_path):
    assert find_inputs([str(tmp_path / "a.nii")], TWO, None, {}) == {"": tmp_path / "a.nii"}
    odd = volume(tmp_path / "t1c=b.nii")
    assert find_inputs([str(odd)], TWO, None, {}) == {"": odd}


@pytest.mark.parametrize("name", ["t1c", "T1C", "T1POST", "t1ce"])
def test_sequences_go_by_any_of_their_names(name, tmp_path):
    texts = [f"{name}={tmp_path}/a.nii", f"T2={tmp_path}/b.nii"]

    assert find_inputs(texts, TWO, None, {}) == {"t1c": tmp_path / "a.nii", "t2w": tmp_path / "b.nii"}


def test_folder_is_sorted_by_file_names_and_patterns(tmp_path):
    for name in ("x_T1POST.nii.gz", "x_FLAIR.nii.gz", "x_weighted.nii.gz", "x_seg.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(InputRefused, match="t2w not found"):
        find_inputs([str(tmp_path)], TWO, None, {})

    assert find_inputs([str(tmp_path)], TWO, None, {"t2w": "*weighted*"}) == {
        "t1c": tmp_path / "x_T1POST.nii.gz",
        "t2w": tmp_path / "x_weighted.nii.gz",
    }


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"a\.nii does not"):
        find_inputs(["t1c=b.nii", "a.nii"], TWO, None, {})
    with pytest.raises(OptionError, match=r"names t1c twice, a\.nii and b\.nii"):
        find_inputs(["t1c=a.nii", "t1ce=b.nii"], TWO, None, {})
    with pytest.raises(OptionError, match="give a folder with inputs"):
        find_inputs(["a.nii"], TWO, None, {"t1c": "a*"})
    with pytest.raises(InputRefused, match="is a folder, and sam takes one scan or picture"):
        find_inputs([str(tmp_path)], sam.METHOD, None, {})
    with pytest.raises(InputRefused, match=r"scan\.dcm is of no format that is known.* one of \.nii, .*\.mha, .*\.png"):
        files_of(tmp_path / "scan.dcm")


def test_scans_and_pictures_are_read(tmp_path):
    scan, picture = volume(tmp_path / "a.nii"), tmp_path / "a.png"
    Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(picture)
    given = read_study({"t1c": scan})
    assert given.scan.volume.array.shape == (3, 4, 5)
    assert given.picture is None
    given = read_study({"": picture})
    assert given.picture.shape == (4, 5, 1)
    assert given.warnings == ()

    with pytest.raises(InputRefused, match=r"a\.png is a picture, and m-sam works on volumes"):
        find_inputs([str(picture)], get_method("m-sam"), None, {})
    with pytest.raises(InputRefused, match="2 inputs are given"):
        read_study({"t1c": scan, "t2w": picture})
