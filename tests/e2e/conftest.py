"""Fixtures of the tests from file to file."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bright_slices(tmp_path_factory):
    """The folder of an export of `sam` that segments what is bright, inside the boxes it is given."""
    folder = tmp_path_factory.mktemp("bright-slices")
    runpy.run_path(str(Path(__file__).parents[1] / "bright_slices.py"))["write_export"](folder, "sam")
    return folder


@pytest.fixture(scope="session")
def bright_structures(tmp_path_factory):
    """The folder of an export of `lora-sam` to which what is bright is the left thalamus."""
    folder = tmp_path_factory.mktemp("bright-structures")
    runpy.run_path(str(Path(__file__).parents[1] / "bright_slices.py"))["write_export"](folder, "lora-sam")
    return folder


@pytest.fixture
def sam_train(monkeypatch, capsys):
    """Return a function that runs `sam-train` in this process and gives its exit code, stdout and stderr."""
    import torch

    from samkit.training import cli

    threads = torch.get_num_threads()

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sam-train", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    yield run
    torch.set_num_threads(threads)
