"""Where a GPU is, every method's engines of TensorRT and of TensorRT for RTX are built and give PyTorch's masks, and
load nowhere else.

`make test-tensorrt` runs these and prints the table: engine, build time, parity, latency. They were never run where
samkit is made, which has no GPU and no TensorRT.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

import samkit
from samkit.engine_libraries import LIBRARIES, RTX, TENSORRT
from samkit.errors import ManifestError, MissingDependencyError
from samkit.export.engines import build_engines, engines_of
from samkit.export.verify import repeat_parity
from samkit.manifest import Export, Manifest
from samkit.masks import dice
from samkit.methods import get_method
from samkit.runtime import open_session
from samkit.runtime.backends.tensorrt_library import import_tensorrt
from samkit.runtime.backends.tensorrt_runner import EngineTensor, TensorRTRunner, describe_here

pytestmark = [pytest.mark.tensorrt, pytest.mark.xdist_group("tensorrt"), pytest.mark.timeout(3600)]

EVERY = pytest.mark.parametrize("name", samkit.list_methods())
EACH = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.backend)
RUNS = 50


@pytest.fixture(scope="module")
def built(export_of):
    """Return what `sam-export --method NAME --fp16 --engines LIBRARY` makes of the demonstration weights."""

    @functools.cache
    def export(name, library=TENSORRT):
        try:
            import_tensorrt(library)
        except MissingDependencyError as error:
            pytest.skip(str(error))  # a failure with --require-tensorrt
        folder = export_of(name)
        build_engines(folder, library)
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


@EACH
@EVERY
def test_engines_give_pytorchs_answers(name, library, built, capsys):
    """Where an engine is built on the GPU that runs it, building fails without parity; here is what it came to."""
    folder = built(name, library)
    manifest = Manifest.load(folder)
    manifest.verify(folder)
    names = {
        library.engine_file(spec.name, precision) for spec in manifest.plan.specs for precision in ("fp32", "fp16")
    }
    assert set(engines_of(manifest, library)) == names
    export = Export.of(folder, manifest)
    rows = []
    for precision in ("fp32", "fp16"):
        with ExitStack() as opened:
            runners = {
                spec.name: opened.enter_context(TensorRTRunner(export, spec, precision, library))
                for spec in export.specs
            }
            parity = repeat_parity(export, runners, precision)  # fails beyond the tolerances of the ONNX files
            for graph, runner in runners.items():
                facts, figures = manifest.engines[library.engine_file(graph, precision)], parity[graph]
                assert not library.needs_gpu or facts["parity"]["relative_error"] >= 0
                milliseconds = latency(runner, feed_of(runner.graph))
                rows.append(
                    f"{name:14} {graph:22} {precision}  build {facts['build_seconds']:7.1f} s  relative error "
                    f"{figures['relative_error']:.1e}  Dice {figures.get('dice', float('nan')):.4f}  p50 "
                    f"{milliseconds:8.3f} ms"
                )
    with capsys.disabled():
        here = describe_here(library)
        title = f"{library.title} {here[library.version_fact]}, {here['gpu']}, driver {here['driver']}"
        sys.stdout.write("\n".join(["", f"{title}; host to host, {RUNS} runs", *rows, ""]))


@EVERY
def test_what_was_made_of_each_graph_is_kept(name, built):
    for facts in engines_of(Manifest.load(built(name)), TENSORRT).values():
        assert json.loads((built(name) / facts["files"][1]).read_text())


def latency(runner, feed):
    """Return the median [ms] of a run, host to host."""
    spent = []
    for _ in range(10 + RUNS):
        started = time.perf_counter()
        runner.run(feed)
        spent.append(1000 * (time.perf_counter() - started))
    return float(np.median(spent[10:]))


@EACH
@EVERY
def test_embedding_stays_on_the_device(name, library, built):
    export = Export.open(built(name, library), verify=False)
    specs = {spec.name: spec for spec in export.specs}
    with (
        TensorRTRunner(export, specs["image_encoder"], "fp16", library) as encoder,
        TensorRTRunner(export, specs["mask_decoder"], "fp16", library) as decoder,
    ):
        kept = encoder.run_keeping(feed_of(encoder.graph), {"image_embeddings"})["image_embeddings"]
        assert isinstance(kept, EngineTensor)
        feed = feed_of(decoder.graph)
        on_device = decoder.run({**feed, "image_embeddings": kept})
        on_host = decoder.run({**feed, "image_embeddings": kept.numpy()})
        for output, value in on_host.items():
            np.testing.assert_array_equal(on_device[output], value)


@EACH
@EVERY
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_session_segments_as_on_onnx_runtime(name, precision, library, built, segment):
    masks = []
    for backend in ("onnxruntime", library.backend):
        with open_session(built(name, library), backend=backend, precision=precision) as session:
            masks.append(segment(session, get_method(name)))
    differing = np.count_nonzero(masks[0] != masks[1])
    assert differing <= 5 or dice(*masks) >= 0.995


def test_kernels_compiled_first_give_what_those_compiled_later_do(built, segment):
    masks = []
    for backend in (RTX.backend, f"{RTX.backend}-eager"):
        with open_session(built("m-sam", RTX), backend=backend, precision="fp32") as session:
            masks.append(segment(session, get_method("m-sam")))
    assert dice(*masks) >= 0.995


def test_engine_of_another_machine_is_refused(built):
    folder = built("sam-med3d")
    manifest = Manifest.load(folder)
    name = TENSORRT.engine_file("mask_decoder", "fp16")
    assert name in manifest.engines
    for fact, value in (("gpu", "another GPU"), ("tensorrt", "9.9.9")):
        other = replace(manifest, engines={name: {**manifest.engines[name], fact: value}})
        spec = next(spec for spec in manifest.plan.specs if spec.name == "mask_decoder")
        with pytest.raises(ManifestError, match="was built for"):
            TensorRTRunner(Export.of(folder, other), spec, "fp16")


def test_timing_cache_is_taken_by_the_next_build(built):
    folder = built("sam-med3d")
    first = Manifest.load(folder)
    second = build_engines(folder, force=True)
    assert all(facts["timing_cache_used"] for facts in engines_of(second, TENSORRT).values())
    assert second.engines.keys() == first.engines.keys()
