"""Without the `train` extra `sam-train` tells what is missing, and still tells wrong usage first."""

import subprocess
import sys

import pytest

_WITHOUT = "import sys; sys.modules[{package!r}] = None; from samkit.training.cli import main; main()"


@pytest.mark.parametrize(
    ("package", "words", "code", "says"),
    [
        ("torch", [], 1, "training needs torch, which is not installed; pip install -e '.[train]' in samkit's clone"),
        ("lightning", [], 1, "training needs lightning"),
        ("monai", [], 1, "training needs monai"),
        ("torch", ["--set", "heads=0"], 2, "heads 0 is not at least 1"),
    ],
)
def test_a_missing_package_is_one_line(package, words, code, says, data, tmp_path):
    command = [
        sys.executable, "-c", _WITHOUT.format(package=package), "--method", "m-sam", "--data", str(data),
        "--out", str(tmp_path / "run"), "--preset", "tiny", *words,
    ]  # fmt: skip

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
