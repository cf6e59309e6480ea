"""Masks of pictures are 0 and 255, label maps keep their numbers, and their table counts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samkit.imageio.results import table_path, write_table
from samkit.imageio.writing import write_picture

LABELS = np.array([[0, 1, 1], [2, 0, 0]], np.uint8)


def test_picture_is_readable_by_people_or_keeps_its_numbers(tmp_path):
    write_picture(tmp_path / "m.png", LABELS, is_mask=True)
    write_picture(tmp_path / "l.png", LABELS, is_mask=False)

    assert np.asarray(Image.open(tmp_path / "m.png")).tolist() == [[0, 255, 255], [255, 0, 0]]
    assert np.asarray(Image.open(tmp_path / "l.png")).tolist() == LABELS.tolist()


def test_table_counts_every_structure(tmp_path):
    write_table(tmp_path / "a.tsv", LABELS, ("caudate", "putamen", "pallidum"), 0.5)

    assert (tmp_path / "a.tsv").read_text() == (
        "index\tname\tvoxels\tmL\n1\tcaudate\t2\t1.0000\n2\tputamen\t1\t0.5000\n3\tpallidum\t0\t0.0000\n"
    )
    write_table(tmp_path / "a.tsv", LABELS, ("caudate", "putamen"), None)
    assert (tmp_path / "a.tsv").read_text().splitlines()[1] == "1\tcaudate\t2\tn/a"


@pytest.mark.parametrize("name", ["a.b.nii", "a.b.nii.gz", "a.b.png"])
def test_table_lies_beside_its_map(name):
    assert table_path(Path("folder") / name) == Path("folder/a.b.tsv")
