"""Guards the promise of docs/how-to/add-a-reader.md: a reader is one file and one line, and nothing else changes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import samkit
from samkit.phantoms import make_phantom

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-reader.md"
PACKAGE = Path(samkit.__file__).parent
CASES = """
import sys
from pathlib import Path
from samkit.training.click_cases import check_cases, find_cases
from samkit.training.slice_readers import find_slice_cases
checked = check_cases(find_cases(Path(sys.argv[1])), None, "all")
print([(case.case.name, case.values) for case in checked.cases])
found = find_slice_cases(Path(sys.argv[1]))
print(found.layout, found.cases[0].load().images.shape)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a samkit to which the page's file and line were added."""
    root = tmp_path_factory.mktemp("fifth")
    shutil.copytree(PACKAGE, root / "samkit", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    (file,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (before, line) = re.findall(r"```diff\n ( .*\n)\+(.*\n)```", PAGE.read_text())[0]
    room = root / "samkit" / "imageio"
    (room / "npy.py").write_text(file)
    registry = (room / "__init__.py").read_text()
    assert registry.count(before) == 1
    (room / "__init__.py").write_text(registry.replace(before, before + line))
    return root


def run(root, code, *arguments):
    """Run code with that samkit in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def segment(root, *arguments):
    return run(root, "from samkit.segment.cli import main; main()", *arguments)


def write(stem, array, affine):
    stem.parent.mkdir(parents=True, exist_ok=True)
    np.save(f"{stem}.npy", array)
    np.savetxt(f"{stem}.affine", affine)


def test_a_fifth_reader_is_in_the_help_and_segments(root, bright_export, tmp_path):
    assert "numpy, one 3D volume" in " ".join(segment(root, "--help").stdout.split())
    flair = make_phantom(5, (48, 56, 40), 3.5, sequences=("flair",)).sequences["flair"]
    nib.save(nib.Nifti1Image(flair.array.astype(np.float32), flair.affine), tmp_path / "scan.nii.gz")
    write(tmp_path / "scan", flair.array, flair.affine)
    masks = []
    for name in ("scan.nii.gz", "scan.npy"):
        mask = tmp_path / f"mask-{name[5:8]}.nii.gz"
        done = segment(
            root, "--export", bright_export, "-i", tmp_path / name, "-o", mask, "--point", "24,28,20,+", "--quiet"
        )
        assert done.returncode == 0, done.stderr
        masks.append(nib.load(mask))
    assert np.array_equal(np.asarray(masks[0].dataobj), np.asarray(masks[1].dataobj))
    assert np.array_equal(masks[0].affine, masks[1].affine)

    (tmp_path / "scan.affine").unlink()
    done = segment(
        root, "--export", bright_export, "-i", tmp_path / "scan.npy", "-o", mask, "--point", "24,28,20,+", "--quiet"
    )
    assert done.returncode == 3
    assert "scan.affine, the other half of scan.npy, is missing" in done.stderr
    refused = segment(root, "--export", bright_export, "-i", tmp_path / "a.dcm", "-o", mask, "--point", "1,1,1,+")
    assert ".npy" in refused.stderr


def test_cases_of_a_fifth_reader_are_trained_on(root, tmp_path):
    array = np.random.default_rng(0).uniform(1, 9, (12, 11, 10)).astype(np.float32)
    for name in ("a", "b"):
        write(tmp_path / "images" / name, array, np.eye(4))
        write(tmp_path / "labels" / name, (array > 8).astype(np.uint8), np.eye(4))
    done = run(root, CASES, tmp_path)

    assert done.stdout.splitlines() == ["[('a', (1,)), ('b', (1,))]", "volumes (10, 11, 12, 1)"], done.stderr
