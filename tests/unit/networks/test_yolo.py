"""Guards the detector: names and sizes, what its predictions mean, folding, and a graph for every size of picture."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from samkit.export.graphs import FORBIDDEN_OPS
from samkit.networks.yolo import Yolo
from samkit.networks.yolo_config import YoloConfig

TINY = YoloConfig(width=8, depth=1, classes=2)


@pytest.fixture(scope="module")
def network():
    """A tiny network in evaluation mode; its batch norms have seen something."""
    torch.manual_seed(0)
    network = Yolo(TINY).train()
    with torch.no_grad():
        for _ in range(3):
            network.raw(torch.rand(2, 3, 96, 64))
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "depth", "classes", "parameters"),
    [(32, 1, 1, 7_022_326), (32, 1, 80, 7_235_389), (64, 3, 1, 46_138_294), (64, 3, 80, 46_563_709)],
)
def test_parameters_are_as_many_as_officially(width, depth, classes, parameters):
    network = Yolo(YoloConfig(width=width, depth=depth, classes=classes))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_every_size_has_its_rows(network):
    for batch, height, width in ((1, 32, 32), (3, 64, 96), (1, 160, 32)):
        with torch.no_grad():
            predictions = network.detect(torch.zeros(batch, 3, height, width))
        assert predictions.shape == (batch, 3 * height * width // 1024 * (16 + 4 + 1), 7)


def test_predictions_are_pixels_of_the_input():
    """A head that says 0 everywhere puts an anchor's box at the centre of every cell; rows go by grid, anchor, y, x."""
    network = Yolo(TINY).eval()
    with torch.no_grad():
        for convolution in network.model["24"].m:
            convolution.weight.zero_()
            convolution.bias.zero_()
        rows = network.detect(torch.rand(1, 3, 64, 96))[0].numpy()
    expected = [
        [(x + 0.5) * stride, (y + 0.5) * stride, *anchors[2 * a : 2 * a + 2], 0.5, 0.5, 0.5]
        for stride, anchors in zip(TINY.strides, TINY.anchors, strict=True)
        for a in range(3)
        for y in range(64 // stride)
        for x in range(96 // stride)
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_only_class_is_certain_before_training():
    with torch.no_grad():
        predictions = Yolo(YoloConfig(width=8, depth=1)).eval().detect(torch.rand(1, 3, 64, 64))
    assert predictions[..., 5].min() > 0.99
    assert predictions[..., 4].max() < 0.1


def test_folded_norms_change_nothing(network):
    image = torch.rand(2, 3, 96, 64)
    folded = Yolo(TINY)
    folded.load_state_dict(network.state_dict())
    folded.eval().freeze()
    with torch.no_grad():
        expected, actual = network.detect(image), folded.detect(image)
        assert not torch.equal(expected, actual)  # it is another formulation
        assert (actual - expected).norm() / expected.norm() < 1e-6
        folded.set_folded(False)
        torch.testing.assert_close(folded.detect(image), expected, rtol=0, atol=0)
    assert folded.state_dict().keys() == network.state_dict().keys()


class Detector(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network.detect(image)


@pytest.fixture(scope="module")
def graph(network, tmp_path_factory):
    """The exported detector: batch, height and width dynamic, the sides multiples of 32 up to 1280."""
    frozen = Yolo(TINY)
    frozen.load_state_dict(network.state_dict())
    frozen.eval().freeze()
    side = {name: 32 * torch.export.Dim(name, min=1, max=40) for name in ("height", "width")}
    sizes = {0: torch.export.Dim("batch", min=1, max=8), 2: side["height"], 3: side["width"]}
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Detector(frozen),
            (torch.zeros(2, 3, 192, 256),),
            dynamo=True,
            input_names=["image"],
            output_names=["predictions"],
            dynamic_shapes={"image": sizes},
            opset_version=20,
            verbose=False,
        )
    path = tmp_path_factory.mktemp("detector") / "detector.onnx"
    onnx.save_model(program.model_proto, path)
    return path


@pytest.mark.slow
def test_exported_graph_holds_simple_operators(graph):
    model = onnx.load(graph)
    onnx.checker.check_model(model, full_check=True)
    found = {node.op_type for node in model.graph.node}
    assert not found & FORBIDDEN_OPS
    assert "BatchNormalization" not in found


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 320, 320), (1, 640, 480), (3, 96, 64), (1, 32, 1280)])
def test_exported_graph_takes_every_size(network, graph, shape):
    batch, height, width = shape
    image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    actual = session.run(None, {"image": image.numpy()})[0]
    with torch.no_grad():
        expected = network.detect(image).numpy()
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 1e-6
