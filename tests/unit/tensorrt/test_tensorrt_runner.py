"""Guards the runner of engines: only those it can trust, one set of buffers, tensors that stay, and nothing left open.

TensorRT and pycuda are stand-ins that know the names of the real ones alone; engines run by ONNX Runtime on the CPU.
"""

from __future__ import annotations

import gc
import itertools
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from samkit.errors import (
    ManifestError,
    MissingDependencyError,
    OptionError,
    SamkitError,
    TensorMismatchError,
)
from samkit.export.engines import build_engines
from samkit.manifest import Export, Manifest
from samkit.prompts import ABSENT
from samkit.runtime import open_session
from samkit.runtime.backends import cuda_libraries, tensorrt_library
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner
from samkit.runtime.backends.tensorrt_runner import TensorRTRunner, fill_points

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export")]


@pytest.fixture
def built(stand_ins, quick, export):
    """An export with engines, and its graphs."""
    manifest = build_engines(export)
    return export, manifest, {graph.name: graph for graph in manifest.plan.specs}


@pytest.fixture
def open_runner(built):
    folder, manifest, graphs = built
    return lambda name, manifest=manifest: TensorRTRunner(Export.of(folder, manifest), graphs[name], "fp32")


def feed_of(graph, rows=1, points=1, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"batch": rows, "images": rows, "points": points}
    return {
        spec.name: rng.standard_normal([sizes.get(axis.name, axis.opt) for axis in spec.axes]).astype(np.float32)
        if spec.name != "point_labels"
        else np.ones((rows, points), np.float32)
        for spec in graph.inputs
    }


# --- What it answers ---


@pytest.mark.parametrize(("rows", "points"), [(1, 1), (3, 5), (8, 64), (2, 0)])
def test_outputs_are_those_of_the_graph_at_every_size(built, open_runner, rows, points):
    folder, _, graphs = built
    feed = feed_of(graphs["mask_decoder"], rows, points)
    with OnnxRuntimeRunner(folder / "mask_decoder.onnx", graphs["mask_decoder"], threads=1) as runner:
        expected = runner.run(feed)
    with open_runner("mask_decoder") as runner:
        for _ in range(2):  # buffers hold what was before
            outputs = runner.run(feed)
        assert runner.providers[0].startswith("TensorRT 1")
    assert list(outputs) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-5)


def test_no_point_becomes_an_absent_one(built):
    _, _, graphs = built
    filled = fill_points(graphs["mask_decoder"], feed_of(graphs["mask_decoder"], 2, 0))
    assert filled["point_coords"].shape == (2, 1, 3)
    assert not filled["point_coords"].any()
    np.testing.assert_array_equal(filled["point_labels"], np.full((2, 1), ABSENT, np.float32))
    with_one = feed_of(graphs["mask_decoder"], 2, 1)
    assert all(fill_points(graphs["mask_decoder"], with_one)[name] is value for name, value in with_one.items())


def test_buffers_are_allocated_once_for_the_largest_shapes(built, open_runner, cuda):
    _, _, graphs = built
    with open_runner("mask_decoder") as runner:
        graph = graphs["mask_decoder"]
        largest = [4 * int(np.prod([axis.max for axis in spec.axes])) for spec in (*graph.inputs, *graph.outputs)]
        assert sorted(cuda().memory.values()) == sorted(largest)
        assert sorted(cuda().pinned.values()) == sorted(largest)
        made = cuda().allocations
        for rows in (1, 8, 2):
            runner.run(feed_of(graph, rows, 2 * rows))
        assert cuda().allocations == made
        assert not cuda().stack  # nothing stays current


def test_nothing_is_left_once_it_is_closed(built, open_runner, cuda):
    runner = open_runner("image_encoder")
    kept = runner.run_keeping(feed_of(built[2]["image_encoder"]), {"image_embeddings"})
    assert cuda().memory
    runner.close()
    runner.close()  # twice does no harm
    gc.collect()
    assert cuda().left() == {}
    assert not kept["image_embeddings"].is_open
    with pytest.raises(SamkitError, match="closed; open the session again"):
        kept["image_embeddings"].numpy()
    with pytest.raises(SamkitError, match="runner of image_encoder is closed"):
        runner.run(feed_of(built[2]["image_encoder"]))


@pytest.mark.parametrize("version", ["11.4"])
def test_runner_can_be_closed_by_any_thread_and_opened_again(built, open_runner, cuda):
    feed = feed_of(built[2]["mask_decoder"])
    with ThreadPoolExecutor(1) as thread:
        for opens, runs, closes in itertools.product((True, False), repeat=3):
            runner = here(open_runner, "mask_decoder") if opens else thread.submit(open_runner, "mask_decoder").result()
            here(runner.run, feed) if runs else thread.submit(runner.run, feed).result()
            here(runner.close) if closes else thread.submit(runner.close).result()
            gc.collect()
            assert cuda().left() == {}
    assert cuda().retained == 1  # the primary context, once for the process


def here(call, *arguments):
    return call(*arguments)


# --- Tensors that stay ---


def test_embeddings_stay_on_the_device_between_clicks(built, open_runner, cuda):
    graphs = built[2]
    image = feed_of(graphs["image_encoder"])
    feed = feed_of(graphs["mask_decoder"])
    with open_runner("image_encoder") as encoder, open_runner("mask_decoder") as decoder:
        kept = encoder.run_keeping(image, {"image_embeddings"})["image_embeddings"]
        on_host = encoder.run(image)["image_embeddings"]
        np.testing.assert_array_equal(kept.numpy(), on_host)
        assert (kept.shape, kept.dtype, kept.nbytes) == (on_host.shape, on_host.dtype, on_host.nbytes)
        expected = decoder.run({**feed, "image_embeddings": on_host})
        outputs = decoder.run({**feed, "image_embeddings": kept})
        for name, value in expected.items():
            np.testing.assert_array_equal(outputs[name], value)


def test_kept_tensor_is_never_written_to_again_while_it_is_held(built, open_runner, cuda):
    graph = built[2]["image_encoder"]
    with open_runner("image_encoder") as runner:
        first = runner.run_keeping(feed_of(graph, seed=1), {"image_embeddings"})["image_embeddings"]
        before = first.numpy()
        second = runner.run_keeping(feed_of(graph, seed=2), {"image_embeddings"})["image_embeddings"]
        assert second.address != first.address
        np.testing.assert_array_equal(first.numpy(), before)
        made, address = cuda().allocations, first.address
        del first
        gc.collect()
        third = runner.run_keeping(feed_of(graph, seed=3), {"image_embeddings"})["image_embeddings"]
        assert (third.address, cuda().allocations) == (address, made)  # memory that nobody holds is used again


def test_tensor_of_another_place_is_refused(built, open_runner):
    folder, _, graphs = built
    graph = graphs["image_encoder"]
    with OnnxRuntimeRunner(folder / "image_encoder.onnx", graph, threads=1, binds=True) as other:
        kept = other.run_keeping(feed_of(graph), {"image_embeddings"})["image_embeddings"]
        with (
            open_runner("mask_decoder") as decoder,
            pytest.raises(
                TensorMismatchError, match=r"lies in ONNX Runtime on cpu:0 and mask_decoder runs in TensorRT"
            ),
        ):
            decoder.run({**feed_of(graphs["mask_decoder"]), "image_embeddings": kept})


def test_inputs_that_do_not_fit_are_refused(built, open_runner):
    feed = feed_of(built[2]["mask_decoder"], 9)
    with open_runner("mask_decoder") as runner, pytest.raises(TensorMismatchError, match=r"batch=1\.\.8"):
        runner.run(feed)


# --- What it does not load ---


def test_engine_of_another_gpu_version_or_hash_is_refused(built, open_runner, stand_ins, version):
    folder = built[0]
    stand_ins(gpu="Stand-in L4")
    with pytest.raises(
        ManifestError, match=r"was built for GPU Stand-in H100, and here is Stand-in L4; .*build-engines"
    ):
        open_runner("mask_decoder")
    stand_ins(version="11.4" if version == "10.16" else "10.16")
    with pytest.raises(ManifestError, match=rf"was built for TensorRT {version}\.0\.106, and here is 1"):
        open_runner("mask_decoder")
    stand_ins()
    with (folder / "mask_decoder.fp32.plan").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ManifestError, match=r"mask_decoder\.fp32\.plan changed since it was built"):
        open_runner("mask_decoder")
    (folder / "mask_decoder.fp32.plan").unlink()
    with pytest.raises(ManifestError, match="is missing though the manifest lists it"):
        open_runner("mask_decoder")


@pytest.mark.parametrize("version", ["11.4"])
def test_file_that_the_manifest_does_not_list_is_never_loaded(built, open_runner, cuda):
    _, manifest, _ = built
    unlisted = replace(manifest, artifacts=tuple(a for a in manifest.artifacts if not a.file.endswith(".plan")))
    for poor in (unlisted, replace(manifest, engines={})):
        with pytest.raises(ManifestError, match=r"lists no engine mask_decoder\.fp32\.plan .*no other file is ever"):
            open_runner("mask_decoder", poor)


@pytest.mark.parametrize("version", ["11.4"])
def test_engine_of_another_graph_is_refused(built, cuda):
    folder, manifest, graphs = built
    renamed = replace(graphs["image_encoder"], name="mask_decoder")
    with pytest.raises(ManifestError, match=r"has the inputs .*export and build it again"):
        TensorRTRunner(Export.of(folder, manifest), renamed, "fp32")
    assert cuda().left() == {}


@pytest.mark.parametrize("version", ["11.4"])
@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        ("load", ManifestError, r"can't load mask_decoder\.fp32\.plan \(Serialization assertion.*--build-engines"),
        ("memory", SamkitError, r"no room to run mask_decoder\.fp32\.plan \(CUDA out of memory\)"),
    ],
)
def test_engine_that_does_not_load_leaves_nothing_behind(built, open_runner, monkeypatch, cuda, fault, error, sentence):
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    with pytest.raises(error, match=sentence):
        open_runner("mask_decoder")
    assert cuda().left() == {}


@pytest.mark.parametrize("version", ["11.4"])
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("run", r"could not run mask_decoder\.fp32\.plan \(Cask convolution execution\)"),
        ("shapes", r"can't tell the shape of 'low_res_masks'.*data-dependent"),
    ],
)
def test_run_that_fails_says_why_and_does_not_fall_back(built, open_runner, monkeypatch, cuda, fault, sentence):
    feed = feed_of(built[2]["mask_decoder"])
    with open_runner("mask_decoder") as runner:
        monkeypatch.setenv("STAND_IN_FAULT", fault)
        with pytest.raises(SamkitError, match=sentence):
            runner.run(feed)
        assert not cuda().stack
        monkeypatch.delenv("STAND_IN_FAULT")
        runner.run(feed)


@pytest.mark.parametrize("version", ["11.4"])
def test_missing_package_for_cuda_says_what_brings_one(built, open_runner, monkeypatch):
    for name in ("pycuda", "cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingDependencyError, match=r"of pycuda and cuda-bindings none is installed; pip .*\[tensorrt\].* as a wheel"
    ):
        open_runner("mask_decoder")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        ("something else", "unknown"),
    ],
)
def test_driver_version_is_read(tmp_path, monkeypatch, text, version):
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(cuda_libraries, "_DRIVER_FILE", tmp_path / "version")
    assert cuda_libraries._kernel_driver() == version


def test_driver_version_may_be_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_libraries, "_DRIVER_FILE", tmp_path / "none")
    assert cuda_libraries._kernel_driver() == "unknown"


def test_session_on_engines_answers_as_on_the_graphs(two_clicks, cuda):
    np.testing.assert_allclose(two_clicks("tensorrt"), two_clicks("onnxruntime"), rtol=1e-3, atol=1e-4)
    assert cuda().left() == {}


@pytest.mark.parametrize("version", ["11.4"])
def test_missing_or_changed_engine_stops_nothing_but_engines(built, monkeypatch):
    """An export is often copied without its engines, and the advice to build them again must work there."""
    folder = built[0]

    def damaged(name, change):
        copy = shutil.copytree(folder, folder.parent / name)
        for file in sorted(Manifest.load(copy).engine_files):
            change(copy / file)
        return copy

    def delete(ending):
        return lambda path: path.unlink() if path.name.endswith(ending) else None

    for name, change, sentence in (
        ("deleted", delete(".plan"), r"image_encoder\.fp32\.plan is missing .*--build-engines"),
        ("changed", lambda path: path.write_bytes(b"other"), r"image_encoder\.fp32\.plan changed since .*--build-engi"),
        ("uncached", delete(".timing-cache"), None),
    ):
        copy = damaged(name, change)
        with pytest.raises(ManifestError, match=r"build it again: sam-export --build-engines"):
            Manifest.load(copy).verify(copy)
        open_session(copy, backend="onnxruntime", precision="fp32").close()
        if sentence is None:
            open_session(copy, backend="tensorrt", precision="fp32").close()
        else:
            with pytest.raises(ManifestError, match=sentence):
                open_session(copy, backend="tensorrt", precision="fp32")
        manifest = build_engines(copy)
        manifest.verify(copy)
        # What was timed is used again where it is what a build left, and never where it changed
        assert {entry["timing_cache_used"] for entry in manifest.engines.values()} == {name == "deleted"}
        open_session(copy, backend="tensorrt", precision="fp32").close()


@pytest.mark.parametrize("version", ["11.4"])
def test_session_on_engines_needs_no_graph(built):
    folder = built[0]
    (folder / "mask_decoder.onnx").unlink()
    open_session(folder, backend="tensorrt", precision="fp32").close()
    with pytest.raises(
        ManifestError, match=r"mask_decoder\.onnx is missing though the manifest lists it; export again"
    ):
        open_session(folder)
    with pytest.raises(
        ManifestError, match=r"mask_decoder\.onnx is missing though the manifest lists it; export again"
    ):
        build_engines(folder)


@pytest.mark.parametrize("version", ["11.4"])
def test_session_warns_of_an_untested_version(built, monkeypatch):
    with open_session(built[0], backend="tensorrt", precision="fp32") as session:
        before = session.warnings
    monkeypatch.setattr(tensorrt_library, "is_known", lambda *which: False)
    with open_session(built[0], backend="tensorrt", precision="fp32") as session:
        assert set(session.warnings) - set(before) == {
            "TensorRT 11.4.0.106 is untested: calls were checked against the APIs of 10.16 and 11.4 alone"
        }


@pytest.mark.parametrize("version", ["11.4"])
def test_session_on_engines_needs_a_gpu_and_never_takes_another_backend(built, stand_ins):
    folder = built[0]
    with pytest.raises(OptionError, match="TensorRT runs on a CUDA device and not on cpu"):
        open_session(folder, backend="tensorrt", device="cpu")
    stand_ins(gpu="Stand-in L4")
    with pytest.raises(ManifestError, match="was built for GPU"):
        open_session(folder, backend="tensorrt")
