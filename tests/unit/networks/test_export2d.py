"""Guards export of the SAM 2D family: graphs without forbidden operators that compute what torch computes."""

import contextlib
import io
import warnings

import numpy as np
import onnxruntime
import pytest
import torch

from samkit.export.graphs import FORBIDDEN_OPS
from samkit.networks.sam2d import Sam2D
from samkit.networks.sam2d_config import Sam2DConfig
from samkit.prompts import ABSENT, PADDING

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("export2d")]  # so that each graph is made once

CONFIG = Sam2DConfig(
    image=96, width=24, heads=3, depth=2, window=4, global_blocks=(1,), channels=32, decoder_heads=4, decoder_mlp=48,
    masks=5, adapter=True, lora_rank=2, lora_place="both",
)  # fmt: skip


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Sam2D(CONFIG).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 4) ** 0.5)
    network.merge_lora()
    network.set_folded(True)
    network.freeze()
    return network


class _Graph(torch.nn.Module):
    def __init__(self, network, method):
        super().__init__()
        self.network, self.method = network, method

    def forward(self, *inputs):
        return getattr(self.network, self.method)(*inputs)


def export(network, graph, example, shapes):
    feed = list(prompt(1, 1))
    names = {"image_encoder": ["image"], "mask_decoder": feed, "mask_decoder_no_mask": feed[:3]}[graph]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Graph(network, Sam2D.GRAPHS[graph]),
            example,
            dynamo=True,
            input_names=names,
            dynamic_shapes=(shapes,),
            opset_version=20,
            external_data=False,
            verbose=False,
        )
    return program.model_proto


def run(model, feed):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(tensor) for name, tensor in feed.items()})


def prompt(batch, points, images=1):
    generator = torch.Generator().manual_seed(10 * batch + points)
    labels = torch.tensor([[1, 0, 1], [2, 3, ABSENT], [1, PADDING, ABSENT]])[:batch, :points]
    return {
        "image_embeddings": torch.randn(images, CONFIG.channels, CONFIG.grid, CONFIG.grid, generator=generator),
        "point_coords": torch.rand(batch, points, 2, generator=generator) * CONFIG.image,
        "point_labels": labels.float(),
        "mask_input": torch.randn(batch, 1, CONFIG.logits, CONFIG.logits, generator=generator),
        "has_mask_input": (torch.arange(batch) % 2).float().reshape(batch, 1, 1, 1),
    }


@pytest.fixture(scope="module")
def encoder(network):
    return export(
        network,
        "image_encoder",
        (torch.zeros(2, 3, CONFIG.image, CONFIG.image),),
        ({0: torch.export.Dim("batch", min=1, max=8)},),
    )


@pytest.fixture(scope="module")
def decoder(network):
    """Traced with one embedding for all rows, a plain broadcast in the graph; then the axis is given its name."""
    rows, points = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("points", min=0, max=64)
    example = tuple(prompt(2, 2).values())
    shapes = (None, {0: rows, 1: points}, {0: rows, 1: points}, {0: rows}, {0: rows})
    model = export(network, "mask_decoder", example, shapes)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "images"
    return model


@pytest.fixture(scope="module")
def decoder_without_masks(network):
    rows, points = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("points", min=0, max=64)
    example = tuple(prompt(2, 2).values())[:3]
    return export(network, "mask_decoder_no_mask", example, (None, {0: rows, 1: points}, {0: rows, 1: points}))


@pytest.mark.parametrize("graph", ["encoder", "decoder", "decoder_without_masks"])
def test_graphs_hold_no_forbidden_operator(graph, request):
    import onnx

    model = request.getfixturevalue(graph)
    onnx.checker.check_model(model, full_check=True)
    assert not FORBIDDEN_OPS & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("batch", [1, 3])
def test_exported_encoder_equals_torch(network, encoder, batch):
    image = torch.randn(batch, 3, CONFIG.image, CONFIG.image, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = network.encode(image).numpy()
    np.testing.assert_allclose(run(encoder, {"image": image})[0], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("points", [0, 1, 3])
@pytest.mark.parametrize(("batch", "images"), [(1, 1), (3, 1), (3, 3)])
def test_exported_decoder_equals_torch(network, decoder, batch, points, images):
    feed = prompt(batch, points, images)
    with torch.no_grad():
        wanted = network.decode(**feed)
    for found, expected in zip(run(decoder, feed), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("points", [0, 1, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_exported_decoder_without_masks_equals_torch(network, decoder_without_masks, batch, points):
    feed = prompt(batch, points)
    with torch.no_grad():
        wanted = network.decode(**{**feed, "has_mask_input": torch.zeros_like(feed["has_mask_input"])})
    given = {name: feed[name] for name in ("image_embeddings", "point_coords", "point_labels")}
    for found, expected in zip(run(decoder_without_masks, given), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_image_stays_one_where_rows_have_not_changed_it(decoder_without_masks):
    """No node repeats the embedding for the rows, which the decoder with masks has to do at its first."""
    consumers = [node.op_type for node in decoder_without_masks.graph.node if "image_embeddings" in node.input]
    assert "Expand" not in consumers
