"""Guards the mask decoders' fast form: it computes what upstream's formulation does, on maps of unlike sides, too."""

from typing import ClassVar

import pytest
import torch
from torch import nn

import samkit
from samkit.networks.network import Network
from samkit.networks.sam2d import Sam2D
from samkit.networks.sam2d_config import Sam2DConfig
from samkit.networks.two_way import TwoWayTransformer
from samkit.networks.upscaling import Hypernetworks, Upscaling
from samkit.prompts import ABSENT

CHANNELS, MASKS = 32, 3
GRIDS = [(3, 5), (4, 4), (2, 4, 3)]
CONFIG = Sam2DConfig(
    image=96, width=24, heads=3, depth=1, window=4, global_blocks=(), channels=CHANNELS, decoder_heads=4,
    decoder_mlp=48, masks=5, lora_rank=2, lora_place="both",
)  # fmt: skip


class Decoder(Network):
    """An image map (B, C, ...) and tokens that are weights to masks: all of a decoder that has two formulations."""

    GRAPHS: ClassVar = {"decode": "decode"}

    def __init__(self, grid, used=MASKS, lora_rank=0):
        super().__init__()
        self.grid = grid
        self.tokens = nn.Embedding(MASKS + 2, CHANNELS)
        self.positions = nn.Parameter(torch.zeros(1, CHANNELS, *grid), requires_grad=False)
        self.transformer = TwoWayTransformer(CHANNELS, 4, 48, lora_rank=lora_rank)
        self.hypernetworks = Hypernetworks(MASKS, CHANNELS, used)
        self.upscaling = Upscaling(CHANNELS, len(grid))

    def decode(self, image, rows=None, present=None):
        rows = image.shape[0] if rows is None else rows
        tokens = self.tokens.weight.expand(rows, -1, -1)
        tokens, image = self.transformer(image, self.positions, tokens, present)
        return self.upscaling.masks(image, self.hypernetworks(tokens[:, 1 : 1 + MASKS]), self.grid)

    def freeze(self):
        super().freeze()
        self.transformer.freeze_positions(self.positions)


@pytest.fixture
def made(noisy):
    """Return a function that makes a Decoder in float64 whose weights hide nothing, the same at each call."""

    def make(*args, **kwargs):
        torch.manual_seed(0)
        return noisy(Decoder(*args, **kwargs))

    return make


def map_of(grid, batch):
    generator = torch.Generator().manual_seed(len(grid) * 10 + batch)
    return torch.randn(batch, CHANNELS, *grid, generator=generator, dtype=torch.float64)


def present_in(rows):
    """Return (rows, T), true where a token counts: fewer in each row."""
    return torch.arange(MASKS + 2)[None, :] < MASKS + 2 - torch.arange(rows)[:, None] % 2


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize(("images", "rows"), [(1, 1), (1, 3), (3, 3)], ids=["one row", "one image", "three images"])
@pytest.mark.parametrize("grid", GRIDS)
def test_folded_decoder_equals_the_official_one(grid, images, rows, lora_rank, made):
    decoder, image, present = made(grid, lora_rank=lora_rank), map_of(grid, images), present_in(rows)
    with torch.no_grad():
        decoder.set_folded(False)
        official = decoder.decode(image.expand(rows, *image.shape[1:]), rows, present)
        decoder.set_folded(True)
        folded = decoder.decode(image, rows, present)
        decoder.freeze()
        frozen = decoder.decode(image, rows, present)
    assert official.shape == (rows, MASKS, *(4 * side for side in grid))
    assert official.std() > 0.1
    torch.testing.assert_close(folded, official, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(frozen, folded, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_folded_decoder_in_float32_equals_the_official_one(grid, made):
    decoder, image = made(grid), map_of(grid, 2)
    with torch.no_grad():
        decoder.set_folded(False)
        official = decoder.decode(image)
        decoder.set_folded(True)
        folded = decoder.float().decode(image.float()).double()
    assert float((folded - official).norm() / official.norm()) < 1e-5


@pytest.mark.parametrize("grid", GRIDS)
def test_masks_that_nobody_reads_are_not_made(grid, made):
    all_masks, first, image = made(grid), made(grid, used=1), map_of(grid, 2)
    with torch.no_grad():
        torch.testing.assert_close(first.decode(image), all_masks.decode(image)[:, :1], rtol=1e-12, atol=1e-12)
        first.set_folded(False)
        assert first.decode(image).shape[1] == MASKS


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_exported_decoder_equals_torch(grid, made, exported):
    decoder = made(grid).float()
    decoder.freeze()
    image = map_of(grid, 3).float()
    run, operators = exported(decoder, "decode", image[:2])
    with torch.no_grad():
        expected = decoder.decode(image)
    torch.testing.assert_close(torch.from_numpy(run(image.numpy())), expected, rtol=0, atol=1e-5 * expected.abs().max())
    assert "ConvTranspose" not in operators


# --- Whole networks ---


def feed_of(config, rows):
    generator = torch.Generator().manual_seed(rows)
    labels = torch.tensor([[1, 0, 1], [2, 3, ABSENT], [ABSENT] * 3, [1, ABSENT, ABSENT]][:rows], dtype=torch.float64)
    feed = {
        "image_embeddings": torch.randn(1, config.channels, config.grid, config.grid, generator=generator),
        "point_coords": torch.rand(rows, 3, 2, generator=generator) * config.image,
        "point_labels": labels,
        "mask_input": torch.randn(rows, 1, config.logits, config.logits, generator=generator),
        "has_mask_input": (torch.arange(rows) % 2).reshape(rows, 1, 1, 1),
    }
    return {name: tensor.double() for name, tensor in feed.items()}


@pytest.fixture
def sam(noisy):
    torch.manual_seed(0)
    return noisy(Sam2D(CONFIG))


@pytest.mark.parametrize("rows", [1, 4])
def test_folded_sam_decodes_as_the_official_form(rows, sam):
    feed = feed_of(CONFIG, rows)
    with torch.no_grad():
        folded = sam.decode(**feed)
        sam.set_folded(False)
        official = sam.decode(**feed)
    torch.testing.assert_close(folded, official, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("is_folded", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
def test_decoder_without_masks_answers_as_the_other_does_without_one(rows, is_folded, sam):
    feed = feed_of(CONFIG, rows)
    feed["has_mask_input"].zero_()
    sam.set_folded(is_folded)
    with torch.no_grad():
        expected = sam.decode(**feed)
        found = sam.decode_without_mask(*(feed[name] for name in ("image_embeddings", "point_coords", "point_labels")))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["sam-med3d", "m-sam"])
def test_folded_3d_decoder_equals_the_official_one(name, noisy):
    method = samkit.get_method(name)
    config, generator = method.sizes["tiny"], torch.Generator().manual_seed(7)
    torch.manual_seed(0)
    network = noisy(method.build(config))
    feed = {
        "image_embeddings": torch.randn(2, config.channels, *(config.grid,) * 3, generator=generator),
        "point_coords": torch.rand(2, 2, 3, generator=generator) * config.patch,
        "point_labels": torch.tensor([[1.0, 0.0], [1.0, ABSENT]]),
        "mask_input": torch.randn(2, 1, *(config.logits,) * 3, generator=generator),
    }
    feed = {name: tensor.double() for name, tensor in feed.items()}
    with torch.no_grad():
        folded = network.decode(**feed)[:2]
        network.set_folded(False)
        official = network.decode(**feed)[:2]
    torch.testing.assert_close(folded, official, rtol=1e-11, atol=1e-11)
