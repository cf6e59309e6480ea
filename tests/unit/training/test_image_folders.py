"""Every picture finds its masks, wherever they lie; masks without pictures and pictures without masks are told."""

import numpy as np
import pytest
from PIL import Image

from samkit.errors import InputRefused
from samkit.imageio.reading import read_picture_mask
from samkit.training.image_folders import find_images
from samkit.training.slice_cases import check_slice_cases


def write(path, box=None, shape=(12, 16)):
    """Write a picture, or a mask of `box` (row, column, height, width); the empty tuple is an empty mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    if box is not None:
        array = np.zeros(shape, np.uint8)
        if box:
            row, column, height, width = box
            array[row : row + height, column : column + width] = 255
    Image.fromarray(array).save(path)


def test_masks_beside_pictures_are_united(tmp_path):
    files = {
        "benign (1)": None,
        "benign (1)_mask": (0, 0, 2, 2),
        "benign (1)_mask_1": (4, 4, 3, 3),
        "benign (10)": None,
        "benign (10)_mask": (),
    }
    for name, box in files.items():
        write(tmp_path / f"{name}.png", box)

    found = find_images(tmp_path)

    assert [case.name for case in found.cases] == ["benign (1)", "benign (10)"]
    assert found.names == ("mask",)
    first, second = (case.load() for case in found.cases)
    assert first.images.shape == (1, 12, 16, 1)
    assert (first.labels.dtype, first.labels.shape, int(first.labels.sum())) == (np.uint8, (1, 12, 16), 13)
    assert not second.labels.any()  # an empty mask is a normal image


@pytest.mark.parametrize("name", ["x.png", "x_mask.png", "x_Mask.PNG", "x_1.png", "x-seg.png", "X_Annotation.png"])
def test_masks_in_a_folder_beside_images(tmp_path, name):
    write(tmp_path / "images/x.jpg")
    write(tmp_path / "masks" / name, (1, 1, 2, 3))
    found = find_images(tmp_path)
    assert found.names == ("mask",)
    assert found.cases[0].load().labels.sum() == 6


def test_nested_folders_are_groups(tmp_path):
    for group in ("benign", "malignant"):
        write(tmp_path / group / "images/1.png")
        write(tmp_path / group / "masks/1_mask.png", (1, 1, 2, 3))
    assert [(case.name, case.group) for case in find_images(tmp_path).cases] == [
        ("benign/1", "benign"), ("malignant/1", "malignant"),
    ]  # fmt: skip


def test_targets_of_other_names_get_values_of_their_own(tmp_path):
    for name in ("s1", "s1_31"):  # the longer name wins
        write(tmp_path / f"images/{name}.png")
    masks = {
        "s1_liver_000": (0, 0, 2, 2),
        "s1_31_liver_000": (0, 0, 3, 3),
        "s1_31_hip_left_000": (5, 0, 1, 1),
        "s1_31_hip_left_001": (7, 0, 1, 1),
        "s1_31_rib_9_000": (9, 0, 1, 1),
    }
    for name, box in masks.items():
        write(tmp_path / f"masks/{name}.png", box)
    found = find_images(tmp_path)
    assert found.names == ("hip_left", "liver", "rib_9")
    assert np.bincount(found.cases[0].load().labels.ravel()).tolist()[1:] == [0, 4]
    assert np.bincount(found.cases[1].load().labels.ravel()).tolist()[1:] == [2, 9, 1]


def test_targets_that_overlap_are_told_at_loading(tmp_path):
    write(tmp_path / "images/x.png")
    write(tmp_path / "masks/x_a.png", (0, 0, 3, 3))
    write(tmp_path / "masks/x_b.png", (2, 2, 3, 3))
    with pytest.raises(InputRefused, match=r"x_b\.png overlaps another target of x\.png"):
        find_images(tmp_path).cases[0].load()


def test_lonely_masks_and_pictures_other_sizes_and_broken_files_are_skipped(tmp_path):
    for name in "abcd":
        write(tmp_path / f"images/{name}.png")
    write(tmp_path / "masks/a_mask.png", (1, 1, 2, 2))
    write(tmp_path / "masks/b_mask.png", (1, 1, 2, 2), shape=(10, 16))
    (tmp_path / "masks/c_mask.png").write_text("no picture")
    write(tmp_path / "masks/e_mask.png", (1, 1, 2, 2))

    found = find_images(tmp_path)

    assert [case.name for case in found.cases] == ["a"]
    assert sorted(found.skipped) == sorted(
        [
            "e_mask.png skipped: masks has this mask but there is no picture of its name",
            "d.png skipped: it has no mask; an empty one says that there is nothing to see",
            "b skipped: b_mask.png is 16 x 10 and b.png 16 x 12 pixels; give the mask the size of its picture",
            "c skipped: c_mask.png can't be read as PNG or JPEG (UnidentifiedImageError); save it again as PNG",
        ]
    )


def test_nothing_to_use_is_refused(tmp_path):
    with pytest.raises(InputRefused, match="holds no picture"):
        find_images(tmp_path)
    write(tmp_path / "x.png")
    with pytest.raises(InputRefused, match=r"no case can be used: x\.png skipped: it has no mask"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("folder", "cases", "masks", "skipped", "names"),
    [("breast-ultrasound", 52, 53, 0, 1), ("fetal-head", 22, 22, 2, 1), ("organ-slices", 4, 30, 1, 24)],
)
def test_real_folders_are_matched(shared, folder, cases, masks, skipped, names):
    found = find_images(shared / "data" / folder)
    assert (len(found.cases), len(found.skipped), len(found.names)) == (cases, skipped, names)
    assert sum(len(case.labels) for case in found.cases) == masks


def test_what_was_done_to_masks_and_pictures_is_counted(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / f"images/{name}.png")
    write(tmp_path / "masks/a.png", (1, 1, 8, 8))
    for name in ("b", "c"):
        write(tmp_path / f"masks/{name}.jpg", (1, 1, 8, 8))
    Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300).save(tmp_path / "images/c.png")

    jpeg, deep = check_slice_cases(find_images(tmp_path)).remarks

    assert jpeg.startswith("2 of 3 cases: masks in JPEG")
    assert deep.startswith("1 of 3 cases: 16 bits are scaled")


def test_a_mask_that_may_mean_several_things_is_skipped_with_what_to_do(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"images/{name}.png")
        write(tmp_path / f"masks/{name}.png", (1, 1, 8, 8))
    colours = np.zeros((12, 16, 3), np.uint8)
    colours[:6, ..., 0] = colours[6:, ..., 1] = 255
    Image.fromarray(colours).save(tmp_path / "masks/b.png")

    found = check_slice_cases(find_images(tmp_path))

    assert [case.name for case in found.cases] == ["a"]
    assert "b.png has several colours" in found.skipped[0]
    assert "save it in grey or with a palette" in found.skipped[0]


@pytest.mark.parametrize(("folder", "foreground"), [("fetal-head", 22), ("breast-ultrasound", 49)])
def test_real_masks_are_read(shared, folder, foreground):
    found = find_images(shared / "data" / folder)
    masks = [read_picture_mask(path) for case in found.cases for path in case.labels]
    assert not any(mask.remarks for mask in masks)
    assert sum(bool(mask.array.any()) for mask in masks) == foreground
    assert all(0 <= mask.array.mean() < 0.7 for mask in masks)
