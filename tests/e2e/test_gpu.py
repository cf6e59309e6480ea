"""On a CUDA device every method's files give PyTorch's masks, and embeddings stay there between clicks.

`make test-gpu` runs these and then prints the timings of `sam-bench latency`; nothing here needs TensorRT.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

import samkit
from samkit.benchmarks.latency import graphs as graph_rows
from samkit.benchmarks.latency.command import measure_latency
from samkit.benchmarks.latency.settings import LatencySettings
from samkit.benchmarks.record.rows import LatencyRow
from samkit.export.verify import repeat_parity
from samkit.manifest import Export, Manifest, graph_file
from samkit.phantoms import make_phantom
from samkit.prompts import BACKGROUND, FOREGROUND, Point
from samkit.runtime import open_session
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner, OrtTensor
from samkit.runtime.backends.torch_runner import open_torch_runners

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("gpu")]

DEVICE = "cuda"
EVERY = pytest.mark.parametrize("name", samkit.list_methods())
CLICKS = [Point((40, 44, 36), FOREGROUND), Point((44, 40, 36), BACKGROUND), Point((32.5, 44, 36), FOREGROUND)]


def opened(stack, folder, precision, **options):
    """The runners of an export; `stack` closes them."""
    return {
        spec.name: stack.enter_context(OnnxRuntimeRunner(folder / graph_file(spec.name, precision), spec, **options))
        for spec in Manifest.load(folder).plan.specs
    }


@EVERY
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_files_give_pytorchs_masks_on_the_device(name, precision, export_of):
    folder = export_of(name)
    with ExitStack() as stack:
        runners = opened(stack, folder, precision, device=DEVICE)
        assert all(runner.providers[0] == "CUDAExecutionProvider" for runner in runners.values())
        figures = repeat_parity(Export.open(folder), runners, precision)
    assert figures.keys() == runners.keys()


@EVERY
def test_pytorch_gives_the_same_on_the_device(name, export_of):
    folder = export_of(name)
    export = Export.open(folder)
    with ExitStack() as stack:
        runners = open_torch_runners(export.plan, device=DEVICE)
        for runner in runners.values():
            stack.enter_context(runner)
        repeat_parity(export, runners, "fp32")


@EVERY
def test_embedding_stays_on_the_device(name, export_of):
    """And goes from one runner to another there: the decoder answers what it answers to the embedding's copy."""
    with ExitStack() as stack:
        runners = opened(stack, export_of(name), "fp16", device=DEVICE)
        encoder, decoder = runners["image_encoder"], runners["mask_decoder"]
        rng = np.random.default_rng(0)
        image = rng.normal(size=encoder.graph.inputs[0].shape).astype(np.float32)
        kept = encoder.run_keeping({"image": image}, ["image_embeddings"])["image_embeddings"]
        encoder.run({"image": -image})  # takes nothing of the first one's memory
        assert isinstance(kept, OrtTensor)
        assert kept.value.device_name() == DEVICE
        feed = {spec.name: np.zeros(spec.shape, np.float32) for spec in decoder.graph.inputs}
        there, copied = (decoder.run({**feed, "image_embeddings": given}) for given in (kept, kept.numpy()))
        assert all(np.array_equal(there[name], copied[name]) for name in there)


@pytest.mark.parametrize("refinement", ["recurrent", "anchored"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clicks_and_undo_on_the_device(refinement, precision, export_of):
    """Masks are those of the CPU, and undo is exact though nothing but logits was copied."""
    volume = make_phantom(3, (80, 88, 72), 1.0, sequences=["flair"]).sequences["flair"]

    def logits(device):
        found = []
        with open_session(export_of("m-sam", refinement=refinement), device=device, precision=precision) as session:
            session.set_image(volume)
            for click in CLICKS:
                session.add(click)
                found.append(session.logits())
            session.undo()
            session.undo()
            assert np.array_equal(session.logits(), found[0])
            session.redo()
            assert np.array_equal(session.logits(), found[1])
        return found

    for ours, original in zip(logits(DEVICE), logits("cpu"), strict=True):
        differing = ((ours > 0) != (original > 0)).sum()
        assert differing <= max(5, 0.005 * (original > 0).sum())


@pytest.mark.parametrize("name", ["m-sam", "medsam-yolo"])
def test_timings_compare_equal_outputs_on_the_device(name, export_of, monkeypatch):
    monkeypatch.setattr(graph_rows, "TURN_SECONDS", 0.0)  # one run a turn: the command does the timing
    folder = export_of(name, refinement="anchored" if name == "m-sam" else None)
    run = measure_latency([folder], LatencySettings(rounds=1, device=DEVICE, cold_starts=1))

    tried = [row for row in run.rows if isinstance(row, LatencyRow) or row.is_failure]
    assert tried
    assert all(row.identity.device == DEVICE and isinstance(row, LatencyRow) for row in tried)
    for row in tried:
        if row.identity.graph is not None and row.identity.precision == "fp32":
            assert row.relative_error < 1e-4
