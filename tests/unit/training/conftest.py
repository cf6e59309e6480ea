"""Tiny cases on disk, written by each test as it needs them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def write_case():
    """Return a function that writes one image and its label: a bright box in a noisy head."""

    def write(image: Path, label: Path, *, seed: int = 0, shape=(40, 36, 44), value: int = 1, empty: bool = False):
        rng = np.random.default_rng(seed)
        array = rng.uniform(50, 100, shape).astype(np.float32)
        mask = np.zeros(shape, np.uint8)
        if not empty:
            i, j, k = (int(v) for v in rng.integers(8, 16, 3))
            mask[i : i + 12, j : j + 10, k : k + 14] = value
        array[mask > 0] += 200
        for path, content in ((image, array), (label, mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(content, np.eye(4)), path)

    return write


@pytest.fixture
def data(tmp_path, write_case):
    """Return a folder of five cases."""
    for number in range(5):
        name = f"case{number}.nii.gz"
        write_case(tmp_path / "data/images" / name, tmp_path / "data/labels" / name, seed=number)
    return tmp_path / "data"
