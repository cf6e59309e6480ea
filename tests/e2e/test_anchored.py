"""An anchored export of M-SAM: the session uses the decoder that takes the adapter's work on the image as given.

And `--no-fold` has none of it: one decoder, and LoRA beside the weights, as upstream computes them.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from samkit.export.export import run_export
from samkit.export.plan import plan_export
from samkit.manifest import Manifest
from samkit.methods import get_method
from samkit.phantoms import make_phantom
from samkit.prompts import BACKGROUND, FOREGROUND, Point
from samkit.runtime import VolumeSession, open_session
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner

pytestmark = pytest.mark.xdist_group("anchored export")

PAIR = {"adapter_stem", "mask_decoder_anchored"}
POINTS = [Point((20, 22, 18), FOREGROUND), Point((24, 20, 18), BACKGROUND), Point((12.5, 22, 18), FOREGROUND)]


@pytest.fixture
def export(export_of):
    """What `sam-export --method m-sam --size tiny --refinement anchored` writes."""
    return export_of("m-sam", size="tiny", precision="fp32", refinement="anchored")


@pytest.fixture(scope="module")
def volume():
    return make_phantom(3, (40, 44, 36), 2.0, sequences=["flair"]).sequences["flair"]


def logits(session, volume):
    """The logits after each of the clicks, and once more after the last one was taken back."""
    with session:
        session.set_image(volume)
        found = []
        for point in POINTS:
            session.add(point)
            found.append(session.logits())
        session.undo()
        assert np.array_equal(session.logits(), found[1])
    return found


def runners(folder, leave_out=(), **options):
    plan = Manifest.load(folder).plan
    return {
        spec.name: OnnxRuntimeRunner(folder / f"{spec.name}.onnx", spec, threads=1, **options)
        for spec in plan.specs
        if spec.name not in leave_out
    }


def test_every_file_was_compared_with_pytorch(export):
    manifest = Manifest.load(export)

    assert set(manifest.plan.graphs) == {"image_encoder", "mask_decoder", *PAIR}
    assert set(manifest.parity) == set(manifest.plan.files)
    assert manifest.parity["mask_decoder_anchored.onnx"]["clicks"] == 10
    assert all(figures["relative_error"] < 1e-5 for figures in manifest.parity.values())


def test_session_that_has_the_pair_uses_it_and_masks_stay(export, volume):
    opened = open_session(export, threads=1)
    assert opened.providers.keys() > PAIR
    method, config = get_method("m-sam"), Manifest.load(export).plan.config
    plain = VolumeSession(method, config, "anchored", runners(export, leave_out=PAIR))

    for ours, theirs in zip(logits(opened, volume), logits(plain, volume), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)


def test_clicks_and_undo_are_the_same_with_tensors_that_stay_on_the_device(export, volume):
    method, config = get_method("m-sam"), Manifest.load(export).plan.config
    bound, plain = (VolumeSession(method, config, "anchored", runners(export, binds=binds)) for binds in (True, False))

    for ours, theirs in zip(logits(bound, volume), logits(plain, volume), strict=True):
        assert np.array_equal(ours, theirs)


def test_embeddings_fed_back_from_the_device_are_the_same(export, volume):
    """Recurrent steps on the same graphs: each returns the embedding that the next one takes."""
    method, config = get_method("m-sam"), Manifest.load(export).plan.config
    bound, plain = (
        VolumeSession(method, config, "recurrent", runners(export, leave_out=PAIR, binds=binds))
        for binds in (True, False)
    )

    for ours, theirs in zip(logits(bound, volume), logits(plain, volume), strict=True):
        assert np.array_equal(ours, theirs)


def test_unfolded_export_is_upstreams_formulation(tmp_path):
    manifest = run_export(plan_export("m-sam", size="tiny", refinement="anchored", folded=False), tmp_path / "export")
    encoder = onnx.load(tmp_path / "export" / "image_encoder.onnx").graph
    rank, width = manifest.plan.config.lora_rank, manifest.plan.config.width
    shapes = [tuple(sorted(weight.dims)) for weight in encoder.initializer]

    assert manifest.plan.graphs == ("image_encoder", "mask_decoder")
    assert manifest.lora_merge is None
    assert shapes.count((rank, width)) == 4 * manifest.plan.config.depth  # A and B, of q and v
    assert manifest.parity["mask_decoder.onnx"]["dice"] == 1
