"""A runner takes exactly its graph's tensors, and says what is missing instead of running something else."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from samkit.errors import ManifestError, MissingDependencyError, SamkitError, TensorMismatchError
from samkit.manifest import Manifest
from samkit.methods import get_method
from samkit.runtime import onnxruntime_runner
from samkit.runtime.onnxruntime_runner import OnnxRuntimeRunner

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
        from samkit.runtime.torch_runner import TorchRunner

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

    with pytest.raises(MissingDependencyError, match=rf"samkit\[{extra}\]"):
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"], device=device)


def test_both_onnxruntimes_at_once_are_reported(bright_export, graphs, monkeypatch):
    monkeypatch.setattr(onnxruntime_runner, "version", lambda name: "1.0")

    with pytest.raises(MissingDependencyError, match="pip uninstall onnxruntime onnxruntime-gpu"):
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"])


class _FakeRuntime:
    """An ONNX Runtime that offers CUDA and then loads without it, as it does when cuDNN is missing."""

    class SessionOptions:
        pass

    class InferenceSession:
        def __init__(self, path, options, providers):
            assert providers[0][0] == "CUDAExecutionProvider"

        def get_providers(self):
            return ["CPUExecutionProvider"]

    @staticmethod
    def get_available_providers():
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    @staticmethod
    def preload_dlls():
        pass


def test_silent_fall_back_to_the_cpu_is_an_error(bright_export, graphs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", _FakeRuntime)

    with pytest.raises(MissingDependencyError, match=r"asked for CUDAExecutionProvider.*CPUExecutionProvider only"):
        OnnxRuntimeRunner(bright_export / "mask_decoder.onnx", graphs["mask_decoder"], device="cuda")
