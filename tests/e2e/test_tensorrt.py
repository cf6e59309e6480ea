"""Where TensorRT and a GPU are, every method's engines are built and give PyTorch's masks, and load nowhere else.

`make test-tensorrt` runs these and prints the table: engine, build time, parity, latency. They were never run where
samkit is made, which has neither.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import samkit
from samkit.engine_libraries import TENSORRT
from samkit.errors import ManifestError
from samkit.export.engines import build_engines
from samkit.manifest import Export, Manifest
from samkit.masks import dice
from samkit.methods import get_method
from samkit.runtime import open_session
from samkit.runtime.backends.tensorrt_runner import EngineTensor, TensorRTRunner

pytestmark = [pytest.mark.tensorrt, pytest.mark.xdist_group("tensorrt"), pytest.mark.timeout(3600)]

EVERY = pytest.mark.parametrize("name", samkit.list_methods())
RUNS = 50


@pytest.fixture(scope="module")
def built(export_of):
    """Return what `sam-export --method NAME --fp16 --require-tensorrt` makes of the demonstration weights."""

    @functools.cache
    def export(name):
        folder = export_of(name)
        build_engines(folder)
        return folder

    return export


def feed_of(graph):
    """Return made-up inputs of the usual shapes."""
    rng = np.random.default_rng(0)
    return {
        spec.name: np.ones(spec.shape, np.float32)
        if spec.name in ("point_labels", "has_mask_input")
        else rng.standard_normal(spec.shape).astype(np.float32)
        for spec in graph.inputs
    }


@EVERY
def test_engines_give_pytorchs_masks(name, built, capsys):
    """Building fails where parity does not hold; here is what it came to."""
    manifest = Manifest.load(built(name))
    manifest.verify(built(name))
    names = {
        TENSORRT.engine_file(spec.name, precision) for spec in manifest.plan.specs for precision in ("fp32", "fp16")
    }
    assert set(manifest.engines) == names
    rows = []
    for spec in manifest.plan.specs:
        for precision in ("fp32", "fp16"):
            facts = manifest.engines[TENSORRT.engine_file(spec.name, precision)]
            assert json.loads((built(name) / facts["files"][1]).read_text())
            with TensorRTRunner(Export.of(built(name), manifest), spec, precision) as runner:
                milliseconds = latency(runner, feed_of(spec))
            figures = facts["parity"]
            rows.append(
                f"{name:14} {spec.name:22} {precision}  build {facts['build_seconds']:7.1f} s  relative error "
                f"{figures['relative_error']:.1e}  Dice {figures.get('dice', float('nan')):.4f}  p50 "
                f"{milliseconds:8.3f} ms"
            )
    with capsys.disabled():
        title = f"TensorRT {facts['tensorrt']}, {facts['gpu']}, driver {facts['driver']}; host to host, {RUNS} runs"
        sys.stdout.write("\n".join(["", title, *rows, ""]))


def latency(runner, feed):
    """Return the median [ms] of a run, host to host."""
    spent = []
    for _ in range(10 + RUNS):
        started = time.perf_counter()
        runner.run(feed)
        spent.append(1000 * (time.perf_counter() - started))
    return float(np.median(spent[10:]))


@EVERY
def test_embedding_stays_on_the_device(name, built):
    export = Export.open(built(name), verify=False)
    specs = {spec.name: spec for spec in export.specs}
    with (
        TensorRTRunner(export, specs["image_encoder"], "fp16") as encoder,
        TensorRTRunner(export, specs["mask_decoder"], "fp16") as decoder,
    ):
        kept = encoder.run_keeping(feed_of(encoder.graph), {"image_embeddings"})["image_embeddings"]
        assert isinstance(kept, EngineTensor)
        feed = feed_of(decoder.graph)
        on_device = decoder.run({**feed, "image_embeddings": kept})
        on_host = decoder.run({**feed, "image_embeddings": kept.numpy()})
        for output, value in on_host.items():
            np.testing.assert_array_equal(on_device[output], value)


@EVERY
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_session_segments_as_on_onnx_runtime(name, precision, built, segment):
    masks = []
    for backend in ("onnxruntime", "tensorrt"):
        with open_session(built(name), backend=backend, precision=precision) as session:
            masks.append(segment(session, get_method(name)))
    differing = np.count_nonzero(masks[0] != masks[1])
    assert differing <= 5 or dice(*masks) >= 0.995


def test_engine_of_another_machine_is_refused(built):
    folder = built("sam-med3d")
    manifest = Manifest.load(folder)
    name = TENSORRT.engine_file("mask_decoder", "fp16")
    for fact, value in (("gpu", "another GPU"), ("tensorrt", "9.9.9")):
        other = replace(manifest, engines={name: {**manifest.engines[name], fact: value}})
        spec = next(spec for spec in manifest.plan.specs if spec.name == "mask_decoder")
        with pytest.raises(ManifestError, match="was built for"):
            TensorRTRunner(Export.of(folder, other), spec, "fp16")


def test_timing_cache_is_taken_by_the_next_build(built):
    folder = built("sam-med3d")
    first = Manifest.load(folder)
    second = build_engines(folder, force=True)
    assert all(facts["timing_cache_used"] for facts in second.engines.values())
    assert second.engines.keys() == first.engines.keys()
