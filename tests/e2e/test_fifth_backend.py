"""Guards the promise of docs/how-to/add-a-backend.md: a backend is one file and one line, and nothing else changes."""

import json
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

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-backend.md"
PACKAGE = Path(samkit.__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a samkit to which the page's file and line were added."""
    root = tmp_path_factory.mktemp("fifth")
    shutil.copytree(PACKAGE, root / "samkit", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    (file,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (before, line) = re.findall(r"```diff\n ( .*\n)\+(.*\n)```", PAGE.read_text())[0]
    backends = root / "samkit" / "runtime" / "backends"
    (backends / "zeros.py").write_text(file)
    registry = (backends / "__init__.py").read_text()
    assert registry.count(before) == 1
    (backends / "__init__.py").write_text(registry.replace(before, before + line))
    return root


def run(root, module, *arguments):
    """Run a command of that samkit in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", f"from {module} import main; main()", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_fifth_backend_is_in_the_help_and_segments(root, bright_export, tmp_path):
    assert "zeros answers zeros, to show how a backend" in " ".join(
        run(root, "samkit.segment.cli", "--help").stdout.split()
    )
    flair = make_phantom(5, (48, 56, 40), 3.5, sequences=("flair",)).sequences["flair"]
    nib.save(nib.Nifti1Image(flair.array.astype(np.float32), flair.affine), tmp_path / "scan.nii.gz")
    done = run(
        root, "samkit.segment.cli", "--export", bright_export, "-i", tmp_path / "scan.nii.gz", "-o",
        tmp_path / "mask.nii.gz", "--point", "24,28,20,+", "--backend", "zeros", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backend"] == "zeros"
    assert not np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).any()


@pytest.mark.xdist_group("export")
def test_a_fifth_backend_is_measured_and_the_gate_finds_it_out(root, tiny_export, tmp_path):
    ran = run(
        root, "samkit.benchmarks.cli", "accuracy", "--export", tiny_export, "--backends", "zeros", "--cases", "1",
        "--clicks", "1", "--threads", "1", "--json", tmp_path / "run.json",
    )  # fmt: skip
    assert ran.returncode == 1, ran.stderr
    assert "on zeros (fp32, cpu)" in ran.stderr
    rows = json.loads((tmp_path / "run.json").read_text())["rows"]
    assert {"torch", "zeros"} <= {row["backend"] for row in rows}
    assert "Zeros fp32" in ran.stdout  # the record's title
