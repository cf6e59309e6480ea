"""Guards reading of official SAM files: what shapes say, other image sizes, SAMed's LoRA files, and refusals."""

import json
import re
from dataclasses import replace

import pytest
import torch

from samkit.errors import CheckpointError
from samkit.methods import get_method
from samkit.networks.convert2d import lora_sam, resize_encoder, sam_config, start_lora_sam
from samkit.networks.sam2d import Sam2D
from samkit.networks.sam2d_config import SUBCORTICAL, Sam2DConfig

TINY = Sam2DConfig(
    image=1024,
    width=16,
    heads=2,
    depth=2,
    global_blocks=(1,),
    channels=32,
    decoder_mlp=24,
    iou_hidden=20,
    mlp_ratio=2,
)


def listed(shared, name):
    """Return the shapes of one of the listings of official names, without what is not a float."""
    keys = json.loads((shared / "keys" / f"{name}.json").read_text())["keys"]
    return {key: tuple(shape) for key, (shape, _) in keys.items()}


def shapes_of(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("sam_vit_b", Sam2DConfig()),
        ("medsam_vit_b", Sam2DConfig()),
        ("sam_vit_l", Sam2DConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))),
        ("sam_vit_h", Sam2DConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))),
        ("sammed2d_vit_b_adapter_256", Sam2DConfig(image=256, adapter=True)),
        ("sammed2d_vit_b_noadapter_256", Sam2DConfig(image=256)),
    ],
)
def test_official_files_are_recognised_by_shapes(name, config, shared):
    shapes = listed(shared, name)
    assert sam_config(shapes) == config
    with torch.device("meta"):
        assert shapes_of(Sam2D(config)) == shapes


@pytest.mark.parametrize(
    "config", [TINY, replace(TINY, image=256), replace(TINY, image=224), replace(TINY, depth=3, global_blocks=(0, 2))]
)
def test_a_networks_own_shapes_give_its_config(config):
    found = sam_config(shapes_of(Sam2D(config)))
    if config.image == 224:  # one window covers this grid, so every block is global
        assert found.global_blocks == (0, 1)
        found = replace(found, global_blocks=config.global_blocks)
    assert found == replace(config, decoder_heads=8)


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"model.0.conv.weight": (16, 3, 6, 6)},
        {"image_encoder.pos_embed": (1, 64, 64)},
        {"image_encoder.pos_embed": (1, 64, 64, 16), "image_encoder.patch_embed.proj.weight": (0, 3, 16, 16)},
    ],
)
def test_other_files_are_refused(shapes):
    with pytest.raises(CheckpointError, match=r"no checkpoint of SAM: .* the file holds .*Give one with image_encoder"):
        sam_config(shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"adapter": True}, "pass method sam-med2d"), ({"masks": 13}, "13 mask tokens, and SAM has 4")],
)
@pytest.mark.parametrize("method", ["sam", "medsam", "medsam-yolo"])
def test_files_of_what_is_built_on_sam_are_not_taken_for_sam(method, change, message):
    state = Sam2D(replace(TINY, **change)).state_dict()
    with pytest.raises(CheckpointError, match=message):
        get_method(method).official(state, {})


def test_windows_of_unlike_sizes_are_refused():
    shapes = shapes_of(Sam2D(replace(TINY, depth=3, global_blocks=(1,))))
    shapes["image_encoder.blocks.2.attn.rel_pos_h"] = (13, 8)
    with pytest.raises(CheckpointError, match="one length for all windows"):
        sam_config(shapes)


# --- Other image sizes ---


def test_positions_are_resized_by_block_index_and_nothing_else():
    state = Sam2D(TINY).state_dict()
    small = replace(TINY, image=256)
    resized = resize_encoder(state, small)
    changed = {name for name in state if resized[name] is not state[name]}
    assert changed == {
        "image_encoder.pos_embed",
        "image_encoder.blocks.1.attn.rel_pos_h",
        "image_encoder.blocks.1.attn.rel_pos_w",
    }
    Sam2D(small).load_state_dict(resized)


def test_resizing_is_bilinear_at_pixel_centres():
    """A plane stays one inside its border: from 64 to 16 tokens, new token i sits at old position 4 i + 1.5."""
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    state = {
        "image_encoder.pos_embed": torch.stack([row, column], dim=-1)[None],
        "image_encoder.blocks.1.attn.rel_pos_h": torch.arange(127.0)[:, None],
    }
    resized = resize_encoder(state, replace(TINY, image=256))
    expected = 4 * torch.arange(16.0) + 1.5
    table = resized["image_encoder.pos_embed"][0]
    torch.testing.assert_close(table[..., 0], expected[:, None].expand(16, 16))
    torch.testing.assert_close(table[..., 1], expected[None].expand(16, 16))
    between = ((torch.arange(31) + 0.5) * 127 / 31 - 0.5)[:, None]
    torch.testing.assert_close(resized["image_encoder.blocks.1.attn.rel_pos_h"], between)


def test_what_has_the_size_is_taken_as_it_is():
    state = Sam2D(replace(TINY, image=512)).state_dict()
    resized = resize_encoder(state, replace(TINY, image=512))
    assert all(resized[name] is tensor for name, tensor in state.items())


@pytest.mark.parametrize("shape", [(), (0, 8), (1, 31, 8), (31,)])
def test_what_is_no_table_is_left_for_the_filling_to_refuse(shape):
    name = "image_encoder.blocks.1.attn.rel_pos_w"
    state = {name: torch.zeros(shape)}
    assert resize_encoder(state, TINY)[name] is state[name]


def test_vit_h_resizes_its_four_global_blocks_alone(shared):
    shapes = listed(shared, "sam_vit_h")
    tables = {name: torch.zeros(shape) for name, shape in shapes.items() if "rel_pos" in name}
    resized = resize_encoder(tables, replace(sam_config(shapes), image=512))
    changed = {int(re.search(r"blocks\.(\d+)", name)[1]) for name in tables if len(resized[name]) != len(tables[name])}
    assert changed == {7, 15, 23, 31}


# --- SAMed's LoRA files ---


def lora_file(masks=13, targets=2, rank=4, decoder=False, encoder=True):
    """Return a file as SAMed writes it for TINY; with `decoder` as SAMed_s does."""
    whole = shapes_of(Sam2D(replace(TINY, masks=masks)))
    shapes = {name: shape for name, shape in whole.items() if not name.startswith("image_encoder.")}
    if decoder:
        shapes = {name: shape for name, shape in shapes.items() if ".transformer." not in name}
        for number in range(4):
            for word, inner in (("sa", 32), ("cti", 16), ("cit", 16)):
                shapes |= {f"{word}_a_{number:03d}": (rank, 32), f"{word}_b_{number:03d}": (inner, rank)}
        shapes |= {"fati_qa": (rank, 32), "fati_qb": (16, rank), "fati_va": (rank, 32), "fati_vb": (16, rank)}
    if encoder:
        for number in range(targets * TINY.depth):
            shapes |= {f"w_a_{number:03d}": (rank, 16), f"w_b_{number:03d}": (16, rank)}
    return random_state(shapes, seed=1)


@pytest.fixture(scope="module")
def base():
    return random_state(shapes_of(Sam2D(TINY)))


@pytest.mark.parametrize(("targets", "letters"), [(1, "q"), (2, "qv"), (3, "qkv")])
@pytest.mark.parametrize("masks", [9, 13])
def test_lora_file_gives_config_and_a_state_that_fits(base, targets, letters, masks):
    file = lora_file(masks, targets)
    config, state = lora_sam(file, base)
    assert config == replace(
        TINY, image=512, masks=masks, lora_rank=4, lora_targets=letters, structures=SUBCORTICAL if masks == 13 else ()
    )
    network = Sam2D(config)
    network.load_state_dict(state)
    last = len(letters) - 1
    attention = network.image_encoder.blocks[1].attn.qkv
    torch.testing.assert_close(attention.get_parameter(f"linear_b_{letters[last]}.weight").data, state_of(file, last))
    torch.testing.assert_close(attention.qkv.weight.data, base["image_encoder.blocks.1.attn.qkv.weight"])
    tokens = "mask_decoder.mask_tokens.weight"
    torch.testing.assert_close(state[tokens], file[tokens])


def state_of(file, target):
    """Return B of a target of block 1."""
    per_block = sum(name.startswith("w_b_") for name in file) // TINY.depth
    return file[f"w_b_{per_block + target:03d}"]


@pytest.mark.parametrize(("encoder", "place"), [(True, "both"), (False, "decoder")])
def test_lora_in_the_decoder_is_read_too(base, encoder, place):
    file = lora_file(decoder=True, encoder=encoder)
    config, state = lora_sam(file, base)
    assert (config.lora_place, config.lora_rank, config.lora_targets) == (place, 4, "qv")
    network = Sam2D(config)
    network.load_state_dict(state)
    transformer = network.mask_decoder.transformer
    for found, name in (
        (transformer.layers[0].self_attn.q_proj.linear_a, "sa_a_000"),
        (transformer.layers[1].self_attn.v_proj.linear_b, "sa_b_003"),
        (transformer.layers[0].cross_attn_token_to_image.v_proj.linear_a, "cti_a_001"),
        (transformer.layers[1].cross_attn_image_to_token.q_proj.linear_b, "cit_b_002"),
        (transformer.final_attn_token_to_image.q_proj.linear_a, "fati_qa"),
        (transformer.final_attn_token_to_image.v_proj.linear_b, "fati_vb"),
    ):
        torch.testing.assert_close(found.weight.data, file[name])
    frozen = "mask_decoder.transformer.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(state[frozen], base[frozen])


def test_base_at_the_networks_size_is_taken_as_it_is(base):
    at_512 = random_state(shapes_of(Sam2D(replace(TINY, image=512))), seed=2)
    config, state = lora_sam(lora_file(), at_512)
    assert config == lora_sam(lora_file(), base)[0]
    assert state["image_encoder.pos_embed"] is at_512["image_encoder.pos_embed"]


@pytest.mark.parametrize("rank", [8, 16, 32])
def test_official_listings_fit(shared, rank):
    with torch.device("meta"):
        base = {name: torch.empty(shape) for name, shape in listed(shared, "sam_vit_b").items()}
        names = [f"lora_sam_lora_vit_b_512_nc12_r{rank}"] + ["lora_sam_lora_encdec_vit_b_512_nc12_r16"] * (rank == 16)
        for name in names:
            file = {key: torch.empty(shape) for key, shape in listed(shared, name).items()}
            config, state = lora_sam(file, base)
            assert config.lora_rank == rank
            assert {key: tuple(tensor.shape) for key, tensor in state.items()} == shapes_of(Sam2D(config))


def broken(change):
    file = lora_file()
    change(file)
    return file


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"model.0.conv.weight": torch.zeros(1)}, "no LoRA file of SAMed: .* holds 1 tensors"),
        (random_state(shapes_of(Sam2D(TINY))), "no LoRA file of SAMed"),
        (broken(lambda file: file.pop("mask_decoder.mask_tokens.weight")), "no LoRA file of SAMed"),
        (broken(lambda file: file.pop("w_b_003")), "4 matrices w_a_. and 3 w_b_. for 2 blocks"),
        (lora_file(targets=5), "needed are one, two or three"),
        (broken(lambda file: file.update(w_a_000=torch.zeros(3, 16))), r"mixes ranks \[3, 4\]"),
        (broken(lambda file: file.update(w_a_000=torch.zeros(()))), "matrices that are none"),
    ],
)
def test_files_that_are_no_lora_are_refused(file, message, base):
    with pytest.raises(CheckpointError, match=message):
        lora_sam(file, base)


def test_base_with_adapters_is_refused():
    with pytest.raises(CheckpointError, match="the base holds SAM-Med2D's adapters"):
        lora_sam(lora_file(), Sam2D(replace(TINY, adapter=True)).state_dict())


def test_files_given_the_wrong_way_round_are_refused(base):
    with pytest.raises(CheckpointError, match="no checkpoint of SAM"):
        lora_sam(base, lora_file())


@pytest.mark.parametrize("masks", [4, 13])
def test_training_starts_from_all_of_sam_that_fits(base, masks):
    config = replace(TINY, image=512, masks=masks, lora_rank=4)
    network = Sam2D(config)
    missing, unexpected = network.load_state_dict(start_lora_sam(base, config), strict=False)
    assert unexpected == []
    fresh = (
        ("linear_",) if masks == 4 else ("linear_", "mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
    )
    assert all(any(word in name for word in fresh) for name in missing)
    assert sum("linear_" in name for name in missing) == 8
