"""`--init` fills what fits, refuses what does not, and the parameter counts are the paper's."""

import json
from dataclasses import replace

import pytest
import torch

import samkit
from samkit.checkpoints import CheckpointInfo, save_checkpoint
from samkit.errors import CheckpointError
from samkit.methods import get_method
from samkit.training.plan import part_of, plan_training
from samkit.training.start import count_parameters, freeze, load_start, start_weights


def _save(path, name, config):
    torch.manual_seed(1)
    network = get_method(name).build(config)
    save_checkpoint(path, network, CheckpointInfo(name, "tiny", config, get_method(name).refinements[0]))
    return network


def test_paper_preset_has_the_parameters_of_tables_1_and_3():
    method = get_method("m-sam")
    with torch.device("meta"):  # shapes without 118 million numbers
        network = method.build(method.sizes["full"])
    freeze(network, method)

    counts = count_parameters(network)

    assert (round(counts.total / 1e6, 2), round(counts.tunable / 1e6, 2)) == (118.24, 25.32)
    assert round(100 * counts.tunable_share, 2) == 21.41
    assert round(100 * counts.tunable_share_without_adapter, 2) == 8.09
    assert "118.24 M parameters, 25.32 M of them tunable (21.41 %); without the adapter 8.09 %" in counts.to_text()


@pytest.mark.parametrize(
    ("name", "changes", "tunable", "frozen"),
    [
        ("lora-sam", {}, 5_917_273, 87_278_848),
        ("lora-sam", {"lora_place": "both"}, 2_720_217, 90_570_112),
        ("lora-sam", {"lora_place": "decoder"}, 2_130_393, 90_570_112),
        ("medsam", {}, 93_729_252, 6_220),
        ("sam-med2d", {}, 271_241_776 - 86_672_640, 86_672_640),
        # the ViT at 256, but with SAM's own 64 x 64 positions, which stay as they are
        ("lmsfe-sam", {}, 200_387_736, 86_672_640 + (64**2 - 16**2) * 768),
        ("brainseg-dmif", {}, 353_990_220, 0),
    ],
)
def test_the_records_freeze_what_the_papers_do(name, changes, tunable, frozen):
    method = get_method(name)
    with torch.device("meta"):
        network = method.build(replace(method.sizes["full"], **changes))
    freeze(network, method)

    counts = count_parameters(network)

    assert (counts.tunable, counts.total - counts.tunable) == (tunable, frozen)


def test_medsam_yolo_trains_the_mask_decoder_alone():
    method = get_method("medsam-yolo")
    with torch.device("meta"):
        network = method.build(method.sizes["full"])
    freeze(network, method)

    assert count_parameters(network).tunable == 4_058_340


def test_m_sam_starts_from_sam_med3d_and_trains_the_rest(tmp_path):
    base = _save(tmp_path / "base.safetensors", "sam-med3d", get_method("sam-med3d").sizes["tiny"])
    method = get_method("m-sam")
    loaded = load_start(tmp_path / "base.safetensors", method)
    plan = plan_training(method, "tiny", start=loaded.info)
    network = method.build(plan.config)

    said = start_weights(network, loaded, method, plan)
    freeze(network, method)

    wrapped = network.state_dict()["image_encoder.blocks.0.attn.qkv.qkv.weight"]
    torch.testing.assert_close(wrapped, base.state_dict()["image_encoder.blocks.0.attn.qkv.weight"])
    assert "fresh: image_encoder.blocks, bidatt." in said
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(".linear_" in name for name in trained if name.startswith("image_encoder."))
    assert any(name.startswith("bidatt.") for name in trained)
    # LoRA starts as nothing, so the encoder is the checkpoint's still.
    image = torch.randn(1, 1, 32, 32, 32)
    torch.testing.assert_close(network.encode(image), base.encode(image))


def test_weights_that_our_own_file_has_lost_are_not_made_anew(tmp_path):
    from safetensors.torch import load_file, save_file

    path, method = tmp_path / "own.safetensors", get_method("m-sam")
    _save(path, "m-sam", method.sizes["tiny"])
    state = load_file(path)
    del state["mask_decoder.iou_token.weight"]
    save_file(state, path)
    facts = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**facts, "weights_sha256": ""}))

    with pytest.raises(CheckpointError, match=r"does not fit m-sam: 1 missing: mask_decoder\.iou_token"):
        load_start(path, method)


def test_official_files_of_the_base_are_taken_too(tmp_path):
    config = get_method("sam-med3d").sizes["tiny"]
    torch.save({"model_state_dict": get_method("sam-med3d").build(config).state_dict()}, tmp_path / "turbo.pth")

    method = get_method("m-sam")
    start = load_start(tmp_path / "turbo.pth", method)
    plan = plan_training(method, "paper", start=start.info)

    assert start.info.method == "sam-med3d"
    with torch.device("meta"):
        network = method.build(plan.config)
    with pytest.raises(CheckpointError, match="have no place"):  # a tiny file has not vit_b_ori's sizes
        start_weights(network, start, method, plan)


def test_sizes_that_differ_are_refused(tmp_path):
    method = get_method("m-sam")
    _save(tmp_path / "own.safetensors", "m-sam", method.sizes["tiny"])
    loaded = load_start(tmp_path / "own.safetensors", method)
    plan = plan_training(method, "tiny", ["patch=48"], start=loaded.info)
    network = method.build(plan.config)

    with pytest.raises(CheckpointError, match=r"have no place in the network planned: .*rel_pos"):
        start_weights(network, loaded, method, plan)


def test_a_later_method_does_not_start_an_earlier_one(tmp_path):
    _save(tmp_path / "own.safetensors", "m-sam", get_method("m-sam").sizes["tiny"])

    for name, known in (("sam-med3d", "sam-med3d"), ("lmsfe-sam", "lmsfe-sam or sam-med2d")):
        with pytest.raises(CheckpointError, match=f"trained for 'm-sam'; {name} starts from weights of {known}, give"):
            load_start(tmp_path / "own.safetensors", get_method(name))


@pytest.mark.parametrize("name", [name for name in samkit.list_methods() if get_method(name).base])
def test_every_method_starts_from_the_one_it_builds_on(name, tmp_path):
    method = get_method(name)
    base = get_method(method.base)
    _save(tmp_path / "base.safetensors", base.name, base.sizes["tiny"])

    start = load_start(tmp_path / "base.safetensors", method)
    plan = plan_training(method, "tiny", start=start.info)
    network = method.build(plan.config)
    said = start_weights(network, start, method, plan)

    assert start.info.method == base.name
    assert plan.config == method.sizes["tiny"]
    fresh = int(said.split()[0])
    assert fresh < 0.8 * len(network.state_dict()), said
    assert (fresh == 0) == (name == "medsam"), said


@pytest.mark.parametrize("name", ["medsam-yolo"])
def test_a_part_starts_from_its_own_file_and_keeps_all_but_another_head(name, tmp_path):
    method = get_method(name)
    part = part_of(method, "detector")
    config = method.sizes["tiny"].detector
    torch.manual_seed(1)
    network = part.build(config)
    info = CheckpointInfo(name, "tiny", config, "none", part="detector")
    save_checkpoint(tmp_path / "own.safetensors", network, info)

    start = load_start(tmp_path / "own.safetensors", method, part="detector")
    for settings, fresh in (([], 0), (["classes=3"], 6)):
        plan = plan_training(method, "tiny", settings, part="detector", start=start.info)
        said = start_weights(part.build(plan.config), start, method, plan)
        assert said.startswith(f"{fresh} tensors are fresh")


def test_a_lora_file_alone_asks_for_its_base(tmp_path):
    torch.save({"w_a_000": torch.zeros(8, 768)}, tmp_path / "lora.pth")

    with pytest.raises(CheckpointError, match="beside it, base sam_vit_b"):
        load_start(tmp_path / "lora.pth", get_method("lora-sam"))
