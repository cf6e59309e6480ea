"""A folder's files say which reader it needs; a folder of two kinds has to be told apart by name."""

import pytest

from samkit.errors import InputRefused
from samkit.training.slice_readers import find_slice_cases


@pytest.mark.parametrize(
    ("folder", "layout", "plane"),
    [
        ("ms-lesions", "volumes", "axial"),
        ("hippocampus", "volumes", "axial"),
        ("subcortical", "freesurfer", "coronal"),
        ("breast-ultrasound", "images", ""),
        ("fetal-head", "images", ""),
        ("brain-tumour-boxes", "boxes", ""),
    ],
)
def test_real_folders_are_recognised(shared, folder, layout, plane):
    found = find_slice_cases(shared / "data" / folder, sequences=("t1n",) if folder == "ms-lesions" else ())
    assert (found.layout, found.cases[0].plane) == (layout, plane)


def test_plane_and_layout_can_be_named(data):
    found = find_slice_cases(data, "volumes", plane="sagittal")
    assert (found.layout, found.cases[0].plane, len(found.cases[0].slices)) == ("volumes", "sagittal", 40)


def test_two_kinds_unknown_names_and_nothing_are_refused(data, tmp_path):
    with pytest.raises(InputRefused, match="no layout 'movies'; give one folder per case"):
        find_slice_cases(data, "movies")
    with pytest.raises(InputRefused, match="there is no folder"):
        find_slice_cases(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused, match="nothing to train on; give"):
        find_slice_cases(tmp_path / "empty")
    (data / "x.png").touch()
    with pytest.raises(InputRefused, match="looks like volumes and images at once"):
        find_slice_cases(data)
    assert find_slice_cases(data, "volumes").layout == "volumes"
