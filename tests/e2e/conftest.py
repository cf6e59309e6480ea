"""Fixtures of the tests from file to file."""

from __future__ import annotations

import runpy
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
