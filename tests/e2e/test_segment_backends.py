"""ONNX Runtime and PyTorch give the same masks, and PyTorch runs exactly the weights that were exported."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from samkit.checkpoints import CheckpointInfo, save_checkpoint
from samkit.errors import CheckpointError, ManifestError, OptionError
from samkit.export.loading import random_network
from samkit.geometry import Volume
from samkit.manifest import Manifest, Weights, file_sha256
from samkit.methods import get_method
from samkit.phantoms import make_phantom
from samkit.prompts import Point
from samkit.runtime import open_session

pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture
def export(tiny_export, tmp_path):
    """The tiny export, as if made from a checkpoint that holds the same seeded weights."""
    folder = tmp_path / "export"
    shutil.copytree(tiny_export, folder)
    manifest = Manifest.load(folder)
    plan = manifest.plan
    method = get_method(plan.method)
    path = folder / "weights.safetensors"
    info = CheckpointInfo(plan.method, plan.size, plan.config, plan.refinement)
    save_checkpoint(path, random_network(method, plan.config), info)
    weights = Weights("checkpoint", str(path), file_sha256(path))
    replace(manifest, plan=replace(plan, weights=weights)).save(folder)
    return folder


@pytest.fixture(scope="module")
def volume():
    return make_phantom(3, (40, 44, 36), 2.0, sequences=["flair"]).sequences["flair"]


POINTS = [Point((20, 22, 18), 1), Point((24, 20, 18), 0), Point((12.5, 22, 18), 1)]


def logits(folder, volume: Volume, **options):
    """The logits after each of the clicks."""
    with open_session(folder, **options) as session:
        session.set_image(volume)
        found = []
        for point in POINTS:
            session.add(point)
            found.append(session.logits())
    return found


def test_backends_agree_at_every_click(export, volume):
    for ours, original in zip(logits(export, volume), logits(export, volume, backend="torch"), strict=True):
        assert np.abs(ours - original).max() < 1e-3
        assert ((ours > 0) != (original > 0)).sum() <= 5


def test_fp16_is_used_when_asked_for(export, volume):
    single, half = logits(export, volume)[0], logits(export, volume, precision="fp16")[0]

    assert 0 < np.abs(single - half).max() < 0.5


def test_two_runs_are_identical(export, volume):
    first, second = logits(export, volume, threads=1), logits(export, volume, threads=1)

    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_torch_refuses_other_weights_than_the_exported_ones(export, volume):
    path = export / "weights.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(bytes(changed))

    with pytest.raises(ManifestError, match="changed since"):
        open_session(export, backend="torch")


def test_torch_says_when_the_checkpoint_is_gone(export):
    (export / "weights.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"weights\.safetensors that this export was made from is gone"):
        open_session(export, backend="torch")


def test_torch_runs_float32_only(export):
    with pytest.raises(OptionError, match="runs float32"):
        open_session(export, backend="torch", precision="fp16")
