"""Boxes come from text files or around masks, in one frame; lines that are no boxes are told."""

import numpy as np
import pytest
from PIL import Image

from samkit.errors import InputRefused
from samkit.training.box_labels import boxes_of, find_boxes, parse_boxes


def write(folder, name, text, shape=(20, 40)):
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(shape, np.uint8)).save(folder / f"images/{name}.png")
    if text is not None:
        (folder / f"labels/{name}.txt").write_text(text)


def test_boxes_are_pixels_from_the_corner(tmp_path):
    write(tmp_path, "a.rf.1", "0 0.5 0.5 0.25 0.5\n2 0.0 1 0.5 0.2\n\n")
    write(tmp_path, "b", "")

    found = find_boxes(tmp_path)

    assert [case.name for case in found.cases] == ["a.rf.1", "b"]
    first, second = (case.load() for case in found.cases)
    np.testing.assert_allclose(first.boxes[0], [[15, 5, 25, 15, 0], [0, 18, 10, 20, 2]], atol=1e-4)
    assert first.images.shape == (1, 20, 40, 1)
    assert second.boxes[0].shape == (0, 5)


@pytest.mark.parametrize(
    "line",
    ["0 0.5 0.5 0.2", "0 0.1 0.1 0.5 0.1 0.5 0.5", "a 0.5 0.5 0.1 0.1", "0 1.5 0.5 0.1 0.1", "0 0.5 0.5 0 0.1",
     "0 nan 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1", "-1 0.5 0.5 0.1 0.1"],
)  # fmt: skip
def test_a_line_that_is_no_box_is_refused(tmp_path, line):
    path = tmp_path / "a.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(InputRefused, match=r"line 2 of a\.txt"):
        parse_boxes(path, (20, 40))


def test_lonely_and_broken_files_are_skipped(tmp_path):
    write(tmp_path / "train", "a", "0 0.5 0.5 0.1 0.1")
    write(tmp_path / "train", "b", None)
    write(tmp_path / "train", "c", "nothing")
    (tmp_path / "train/labels/d.txt").write_text("")
    found = find_boxes(tmp_path)
    assert [(case.name, case.group) for case in found.cases] == [("train/a", "train")]
    assert [sentence.split(" skipped: ")[0] for sentence in found.skipped] == ["d.txt", "train/b", "train/c"]
    for path in (tmp_path / "train/labels").iterdir():
        path.unlink()
    with pytest.raises(InputRefused, match="no case can be used"):
        find_boxes(tmp_path)


def test_boxes_around_masks_hold_their_components():
    labels = np.zeros((20, 30), np.uint8)
    labels[2:6, 3:10] = 1
    labels[6:8, 10:12] = 3  # touches at a corner
    labels[15:18, 20:23] = 1  # 9 pixels, too small
    np.testing.assert_array_equal(boxes_of(labels), [[3, 2, 12, 8, 0]])
    np.testing.assert_array_equal(boxes_of(labels, 9), [[3, 2, 12, 8, 0], [20, 15, 23, 18, 0]])
    assert boxes_of(np.zeros((5, 5), np.uint8)).shape == (0, 5)


def test_the_real_folder_is_read(shared):
    found = find_boxes(shared / "data/brain-tumour-boxes")
    assert (len(found.cases), found.skipped) == (206, ())
    boxes = [parse_boxes(case.labels[0], (640, 640)) for case in found.cases]
    assert sum(len(b) for b in boxes) == 147
    assert sum(not len(b) for b in boxes) == 83
