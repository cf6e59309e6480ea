"""A runner takes exactly its graph's tensors, and says what is missing instead of running something else.

Tensors kept on the device are tested where the device is the CPU: the code is the same.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from samkit.errors import ManifestError, MissingDependencyError, SamkitError, TensorMismatchError
from samkit.manifest import Manifest
from samkit.methods import get_method
from samkit.runtime.backends import onnxruntime_runner
from samkit.runtime.backends.onnxruntime_runner import OnnxRuntimeRunner, OrtTensor
from samkit.tensors import on_host

METHOD = get_method("sam-med3d")


@pytest.fixture
def graphs(bright_export):
    encoder, decoder = METHOD.graphs(Manifest.load(bright_export).plan.config)
    return {"image_encoder": encoder, "mask_decoder": decoder}


def zeros(graph, points=1, batch=1):
    sizes = {"batch": batch, "points": points}
    return {
        spec.name: np.zeros([sizes.get(axis.name, axis.opt) for axis in spec.axes], np.float32) for spec in graph.inputs
    }


@pytest.mark.parametrize("name", ["image_encoder", "mask_decoder"])
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_have_the_graphs_names_and_shapes(name, batch, bright_export, graphs):
    graph = graphs[name]
    with OnnxRuntimeRunner(bright_export / f"{name}.onnx", graph, threads=1) as runner:
        outputs = runner.run(zeros(graph, batch=batch))
    assert list(outputs) == [spec.name for spec in graph.outputs]
    for spec in graph.outputs:
        spec.check(outputs[spec.name])
    assert runner.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda inputs: inputs.pop("mask_input"),
        lambda inputs: inputs.update(extra=np.zeros(1, np.float32)),
        lambda inputs: inputs.update(point_labels=inputs["point_labels"].astype(np.int64)),
        lambda inputs: inputs.update(mask_input=inputs["mask_input"][..., :-1]),
        lambda inputs: inputs.update(point_labels=np.zeros((2, 1), np.float32)),
    ],
)
def test_inputs_that_do_not_fit_are_refused(spoil, bright_export, graphs):
    inputs = zeros(graphs["mask_decoder"])
    spoil(inputs)
    with (
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"]) as runner,
        pytest.raises(TensorMismatchError),
    ):
        runner.run(inputs)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_closed_runner_says_so(backend, bright_export, graphs):
    graph = graphs["mask_decoder"]
    if backend == "torch":
        pytest.importorskip("torch")
        from samkit.runtime.backends.torch_runner import TorchRunner

        tiny = METHOD.sizes["tiny"]
        graph = METHOD.graphs(tiny)[1]
        runner = TorchRunner(METHOD.build(tiny).eval(), graph)
    else:
        runner = OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graph, threads=1)
    with runner:
        runner.run(zeros(graph))
    runner.close()  # twice does no harm

    with pytest.raises(SamkitError, match=r"runner of mask_decoder is closed.*open the session again"):
        runner.run(zeros(graph))


def test_file_of_another_graph_is_refused(bright_export, graphs):
    with pytest.raises(ManifestError, match="export again"):
        OnnxRuntimeRunner(bright_export / "image_encoder.onnx", graphs["mask_decoder"])


def test_file_that_is_no_onnx_is_refused(tmp_path, graphs):
    path = tmp_path / "mask_decoder.onnx"
    path.write_bytes(b"nothing")

    with pytest.raises(ManifestError, match="can't load mask_decoder"):
        OnnxRuntimeRunner(path, graphs["mask_decoder"])


@pytest.mark.parametrize(("device", "extra"), [("cpu", "cpu"), ("cuda", "gpu")])
def test_missing_onnxruntime_names_its_extra(device, extra, bright_export, graphs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(MissingDependencyError, match=rf"pip install .*\[{extra}\]"):
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"], device=device)


def test_both_onnxruntimes_at_once_are_reported(bright_export, graphs, monkeypatch):
    monkeypatch.setattr(onnxruntime_runner, "version", lambda name: "1.0")

    with pytest.raises(MissingDependencyError, match="pip uninstall onnxruntime onnxruntime-gpu"):
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"])


# --- Tensors that stay on the device ---


def random_feed(graph, points=2, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random(value.shape, np.float32) for name, value in zeros(graph, points, batch).items()}


def opened(folder, graphs, **options):
    return [OnnxRuntimeRunner(folder / f"{name}.onnx", graph, threads=1, **options) for name, graph in graphs.items()]


@pytest.mark.parametrize("points", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_bound_run_equals_a_plain_one(points, batch, bright_export, graphs):
    for plain, bound in zip(opened(bright_export, graphs), opened(bright_export, graphs, binds=True), strict=True):
        feed = random_feed(plain.graph, points, batch)
        expected, found = plain.run(feed), bound.run(feed)
        assert list(found) == list(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("binds", [True, False])
def test_kept_tensor_goes_into_the_next_graph(binds, bright_export, graphs):
    encoder, decoder = opened(bright_export, graphs, binds=binds)
    image = random_feed(encoder.graph)
    kept = encoder.run_keeping(image, ["image_embeddings"])["image_embeddings"]
    points = {name: value for name, value in random_feed(decoder.graph).items() if name != "image_embeddings"}
    outputs = decoder.run({"image_embeddings": kept, **points})

    assert isinstance(kept, OrtTensor) == binds  # on the host a kept tensor is an array
    encoder.graph.outputs[0].check(kept)
    assert np.array_equal(on_host(kept), encoder.run(image)["image_embeddings"])
    expected = decoder.run({"image_embeddings": on_host(kept), **points})
    assert all(np.array_equal(outputs[name], expected[name]) for name in expected)


def test_kept_tensor_is_never_written_to_again(bright_export, graphs):
    encoder, _ = opened(bright_export, graphs, binds=True)
    feeds = [random_feed(encoder.graph, seed=seed) for seed in range(4)]
    kept = [encoder.run_keeping(feed, ["image_embeddings"])["image_embeddings"] for feed in feeds]
    kept[1].numpy()[:] = 7  # a copy

    for feed, tensor in zip(feeds, kept, strict=True):
        assert np.array_equal(tensor.numpy(), encoder.run(feed)["image_embeddings"])
    assert kept[0].nbytes == kept[0].numpy().nbytes


def test_outputs_that_were_not_kept_are_arrays(bright_export, graphs):
    _, decoder = opened(bright_export, graphs, binds=True)
    outputs = decoder.run_keeping(random_feed(decoder.graph), ["iou_predictions"])

    assert isinstance(outputs["low_res_masks"], np.ndarray)
    assert isinstance(outputs["iou_predictions"], OrtTensor)


def test_tensor_of_a_closed_runner_is_refused(bright_export, graphs):
    encoder, decoder = opened(bright_export, graphs, binds=True)
    kept = encoder.run_keeping(random_feed(encoder.graph), ["image_embeddings"])["image_embeddings"]
    encoder.close()

    assert not kept.is_open
    with pytest.raises(SamkitError, match=r"'image_embeddings' was kept by a runner that is closed.*encode the image"):
        decoder.run({**random_feed(decoder.graph), "image_embeddings": kept})
    with pytest.raises(SamkitError, match="open the session again"):
        kept.numpy()


class _Elsewhere:
    """A tensor that another backend kept."""

    place, is_open, dtype, nbytes = "TensorRT on cuda:0", True, np.dtype("float32"), 0

    def __init__(self, shape):
        self.shape = shape


def test_tensor_of_another_device_is_refused(bright_export, graphs):
    _, decoder = opened(bright_export, graphs, binds=True)
    feed = random_feed(decoder.graph)
    feed["image_embeddings"] = _Elsewhere(feed["image_embeddings"].shape)

    with pytest.raises(TensorMismatchError, match=r"lies in TensorRT on cuda:0 and mask_decoder runs in ONNX Runtime"):
        decoder.run(feed)


def test_kept_tensor_is_checked_like_an_array(bright_export, graphs):
    encoder, decoder = opened(bright_export, graphs, binds=True)
    kept = encoder.run_keeping(random_feed(encoder.graph, batch=2), ["image_embeddings"])["image_embeddings"]

    with pytest.raises(TensorMismatchError, match="different batches"):
        decoder.run({**random_feed(decoder.graph), "image_embeddings": kept})
    with pytest.raises(TensorMismatchError, match=r"'mask_input' is float32 \(2, 72, 2, 2, 2\)"):
        decoder.run({**random_feed(decoder.graph, batch=2), "mask_input": kept})


def test_keeping_what_is_no_output_is_refused(bright_export, graphs):
    encoder, _ = opened(bright_export, graphs)
    with pytest.raises(TensorMismatchError, match="no output masks to keep, it has image_embeddings"):
        encoder.run_keeping(random_feed(encoder.graph), ["masks"])


def test_graph_runs_as_it_stands_in_the_file_too(bright_export, graphs):
    feed = random_feed(graphs["mask_decoder"])
    fast, plain = (
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"], threads=1, optimise=optimise)
        for optimise in (True, False)
    )
    assert np.allclose(fast.run(feed)["low_res_masks"], plain.run(feed)["low_res_masks"], rtol=1e-6)


# --- Devices that are not there ---


class _FakeRuntime:
    """An ONNX Runtime that offers CUDA and then loads without it, as it does when cuDNN is missing."""

    class SessionOptions:
        pass

    class InferenceSession:
        def __init__(self, path, options, providers):
            assert providers[-2][0] == "CUDAExecutionProvider"
            assert providers[-2][1] == {"use_tf32": "0"}

        def get_providers(self):
            return ["CPUExecutionProvider"]

    @staticmethod
    def get_available_providers():
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    @staticmethod
    def preload_dlls():
        pass


def test_silent_fall_back_to_the_cpu_is_an_error(bright_export, graphs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", _FakeRuntime)

    with pytest.raises(MissingDependencyError, match=r"asked for CUDAExecutionProvider.*CPUExecutionProvider only"):
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"], device="cuda")


def test_tensorrt_provider_that_does_not_load_names_its_version(bright_export, graphs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", _FakeRuntime)

    with pytest.raises(MissingDependencyError, match=r"asked for TensorrtExecutionProvider.*links TensorRT 10"):
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"], device="cuda", tensorrt=True)


def test_tensorrt_provider_is_refused_on_the_cpu(bright_export, graphs):
    with pytest.raises(MissingDependencyError, match="pass device cuda"):
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"], tensorrt=True)


def test_tensorrt_provider_gets_one_profile_over_all_sizes(graphs):
    options = onnxruntime_runner._tensorrt_options(graphs["mask_decoder"])

    assert options["trt_profile_min_shapes"].split(",")[:2] == ["image_embeddings:1x72x2x2x2", "point_coords:1x1x3"]
    assert options["trt_profile_max_shapes"].split(",")[:2] == ["image_embeddings:8x72x2x2x2", "point_coords:8x64x3"]


def test_a_path_that_onnx_runtime_cannot_take_is_told_as_one(bright_export, graphs, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(bright_export / "mask_decoder.onnx", folder)
    with pytest.raises(ManifestError, match=r"caf\\udce9/mask_decoder\.onnx is not UTF-8, .* rename that folder"):
        OnnxRuntimeRunner(folder / "mask_decoder.onnx", graphs["mask_decoder"], threads=1)


def test_a_locale_without_letters_opens_what_a_better_one_does(bright_export, tmp_path):
    shutil.copytree(bright_export, tmp_path / "café")
    program = (
        "import sys, os; from pathlib import Path\n"
        "from samkit.runtime.backends.onnxruntime_runner import open_inference_session\n"
        "assert sys.getfilesystemencoding() == 'ascii', sys.getfilesystemencoding()\n"
        "open_inference_session(Path(sys.argv[1]), threads=1)\n"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-c", program, str(tmp_path / "café" / "mask_decoder.onnx")]
    ended = subprocess.run(words, env=plain, capture_output=True, check=False)

    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_graph_that_may_not_be_read_says_so(bright_export, graphs, monkeypatch):
    def forbidden(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(ManifestError, match=r"^mask_decoder\.onnx can't be read \(Permission denied\)"):
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"], threads=1)
