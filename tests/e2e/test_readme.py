"""Guards the README: its commands and options exist, and its Python block runs as printed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("sam-")]


def command_of(line):
    """The words that name a command; some have commands of their own, each with its options."""
    words = line.partition("#")[0].split()
    return " ".join(words[: 2 if words[0] in ("sam-serve", "sam-bench") else 1])


@pytest.mark.parametrize("command", sorted({command_of(line) for line in COMMANDS}))
def test_every_option_of_the_readme_exists(command):
    name, *group = command.split()
    text = subprocess.run(
        [Path(sys.executable).parent / name, *group, "--help"], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.partition("#")[0] for line in COMMANDS if command_of(line) == command]
    used = {word for line in lines for word in line.split() if word.startswith("-")}
    assert used or command in ("sam-serve check", "sam-serve start", "sam-bench compare")  # called without any
    assert {option for option in used if not re.search(rf"(^|[\s,]){re.escape(option)}\b", text)} == set()


@pytest.mark.xdist_group("export")
def test_python_block_runs(bright_export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bright_export, tmp_path / "exports" / "m-sam")
    array = np.random.default_rng(0).uniform(1, 100, (80, 90, 40)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), "scan.nii.gz")
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - our own README
    assert names["mask"].shape == array.shape


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_root_links_lead_into_the_package():
    for name in ("training", "export", "runtime", "triton_models", "benchmarks"):
        assert (ROOT / name).resolve() == ROOT / "samkit" / name
