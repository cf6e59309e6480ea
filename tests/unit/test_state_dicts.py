"""Checkpoints as people have them: whatever training put around a network's names, the same weights are found."""

import json
import logging
from dataclasses import replace

import pytest
import torch

import samkit
from samkit.checkpoints import CheckpointInfo, load_network, read_part, save_checkpoint
from samkit.errors import CheckpointError

METHOD, YOLO = samkit.get_method("sam"), samkit.get_method("medsam-yolo")
(DETECTOR,) = YOLO.parts
PREFIXES = (
    "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.", "model.", "net.", "sam.",
    "model.module._orig_mod.", "lit.network.sam_model.",
)  # fmt: skip
WRAPPERS = (
    "model", "state_dict", "model_state_dict", "net", "network", "ema", "model_ema", "state_dict_ema", "weights",
)  # fmt: skip


@pytest.fixture(scope="module")
def state():
    return network(seed=0)


def network(seed):
    torch.manual_seed(seed)
    return METHOD.build(METHOD.sizes["tiny"]).state_dict()


def under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def opened(path, content, weights=""):
    torch.save(content, path)
    return load_network(path, METHOD, weights=weights).network.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_a_prefix_is_taken_off(tmp_path, state, prefix):
    assert same(opened(tmp_path / "c.pth", under(prefix, state)), state)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_is_opened(tmp_path, state, wrapper):
    optimizer = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(3)}}, "param_groups": [{"lr": 1e-4}]}
    content = {wrapper: under("module.", state), "optimizer": optimizer, "epoch": 3}
    assert same(opened(tmp_path / "c.pth", content), state)


def test_what_is_left_over_is_listed(tmp_path, state, caplog):
    """Lightning's `state_dict`, with the parameters of a loss and of a metric beside the network's."""
    losses = {"loss.weight": torch.ones(2), "model_loss.alpha": torch.ones(1), "dice.total": torch.tensor(3)}
    content = {"state_dict": {**under("model.", state), **losses}, "pytorch-lightning_version": "2.5"}
    with caplog.at_level(logging.WARNING, "samkit"):
        assert same(opened(tmp_path / "c.ckpt", content), state)
    assert "c.ckpt also holds 3 tensors that are no weights of sam" in caplog.text
    assert all(name in caplog.text for name in losses)


def test_an_averaged_model_is_taken(tmp_path, state, caplog):
    average = torch.optim.swa_utils.AveragedModel(METHOD.build(METHOD.sizes["tiny"]))
    average.module.load_state_dict(state)
    assert same(opened(tmp_path / "c.pth", average.state_dict()), state)
    assert "n_averaged" in caplog.text


def test_a_name_of_the_networks_own_modules_is_never_left_over(tmp_path, state):
    """LoRA beside the projections that it changes: without it they are another network's."""
    extra = {"mask_decoder.transformer.layers.0.self_attn.q_proj.linear_a.weight": torch.ones(4, 16)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: mask_decoder\.transformer.*linear_a"):
        opened(tmp_path / "c.pth", under("module.", {**state, **extra}))


@pytest.mark.parametrize(
    ("first", "second"),
    [("model", "ema"), ("state_dict", "state_dict_ema"), ("net", "model_ema"), ("model", "ema_state_dict")],
)
def test_two_sets_are_refused_by_name_until_one_is_named(tmp_path, state, first, second):
    average = network(seed=1)
    content = {first: state, second: under("module.", average)}
    with pytest.raises(CheckpointError, match=rf"2 sets of weights that fit, '{first}', '{second}'; say .* weights="):
        opened(tmp_path / "c.pth", content)
    assert same(opened(tmp_path / "c.pth", content, "ema"), average)
    assert same(opened(tmp_path / "c.pth", content, "model"), state)
    assert same(opened(tmp_path / "c.pth", content, second), average)
    with pytest.raises(CheckpointError, match=f"no weights called 'teacher' that fit, it holds '{first}', '{second}'"):
        opened(tmp_path / "c.pth", content, "teacher")


def test_two_prefixes_in_one_set_are_two_sets(tmp_path, state):
    average = network(seed=1)
    content = {"state_dict": {**under("student.", state), **under("teacher.", average)}}
    with pytest.raises(CheckpointError, match=r"'state_dict\.student', 'state_dict\.teacher'"):
        opened(tmp_path / "c.pth", content)
    assert same(opened(tmp_path / "c.pth", content, "state_dict.teacher"), average)
    both = {**state, **under("ema_model.module.", average)}
    with pytest.raises(CheckpointError, match="2 sets of weights that fit"):
        opened(tmp_path / "c.pth", both)
    assert same(opened(tmp_path / "c.pth", both, "ema"), average)
    assert same(opened(tmp_path / "c.pth", both, "model"), state)


def test_one_set_that_is_found_in_two_ways_is_one(tmp_path, state):
    assert same(opened(tmp_path / "c.pth", {"model": state, "state_dict": state}), state)


def test_numbers_are_of_the_kind_that_the_network_has(tmp_path, state):
    name = "mask_decoder.iou_token.weight"
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
        with pytest.raises(CheckpointError, match=rf"1 of another type: {name} is \w+, needed float32"):
            opened(tmp_path / "c.pth", {**state, name: state[name].to(dtype)})
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        read = opened(tmp_path / "c.pth", {**state, name: state[name].to(dtype)})
        assert read[name].dtype == torch.float32


def test_counters_of_a_detector_are_whole_numbers_or_float16(tmp_path):
    torch.manual_seed(0)
    detector = DETECTOR.build(YOLO.sizes["tiny"].detector)
    for convert in (lambda tensor: tensor, torch.Tensor.half):
        official = under("module.", {name: convert(tensor) for name, tensor in detector.state_dict().items()})
        torch.save({"state_dict": official}, tmp_path / "yolo.pt")
        config, parameters = read_part(tmp_path / "yolo.pt", YOLO, DETECTOR)
        assert config.width == YOLO.sizes["tiny"].detector.width
        assert parameters.keys() == detector.state_dict().keys()


def test_weights_are_named_for_a_detector_too(tmp_path):
    torch.manual_seed(0)
    a, b = (DETECTOR.build(YOLO.sizes["tiny"].detector).state_dict() for _ in range(2))
    torch.save({"model": a, "ema": b}, tmp_path / "yolo.pt")
    with pytest.raises(CheckpointError, match="2 sets of weights that fit, 'model', 'ema'"):
        read_part(tmp_path / "yolo.pt", YOLO, DETECTOR)
    _, parameters = read_part(tmp_path / "yolo.pt", YOLO, DETECTOR, "ema")
    assert torch.equal(parameters["model.0.conv.weight"], b["model.0.conv.weight"])


def test_a_file_of_ours_without_its_json_is_never_official(tmp_path):
    config = METHOD.sizes["tiny"]
    info = CheckpointInfo("sam", "tiny", config, "none")
    save_checkpoint(tmp_path / "best.safetensors", METHOD.build(config), info)
    (tmp_path / "best.json").unlink()
    (tmp_path / "best.safetensors").rename(tmp_path / "sam_vit_b.safetensors")
    with pytest.raises(CheckpointError, match=r"is samkit's own and has lost sam_vit_b\.json"):
        load_network(tmp_path / "sam_vit_b.safetensors", METHOD)


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "epoch.safetensors"])
def test_a_file_of_a_run_without_its_json_is_never_official(tmp_path, state, name):
    """As the samkit before this one wrote them, without a mark."""
    from safetensors.torch import save_file

    save_file(dict(state), tmp_path / name)
    if name.startswith("epoch"):
        assert same(load_network(tmp_path / name, METHOD).network.state_dict(), state)
        (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is samkit's own and has lost"):
        load_network(tmp_path / name, METHOD)


@pytest.mark.parametrize(
    ("field", "value"), [("width", 60_000), ("depth", 500), ("masks", 500), ("decoder_mlp", 65_000)]
)
def test_a_config_is_compared_with_the_file_before_anything_is_built(tmp_path, field, value):
    config, outlines = METHOD.sizes["tiny"], []

    def build(config):
        outlines.append(torch.empty(1).is_meta)
        return METHOD.build(config)

    save_checkpoint(tmp_path / "c.safetensors", METHOD.build(config), CheckpointInfo("sam", "tiny", config, "none"))
    facts = json.loads((tmp_path / "c.json").read_text())
    facts["config"][field] = value
    (tmp_path / "c.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"misshapen|repeats a layer"):
        load_network(tmp_path / "c.safetensors", replace(METHOD, build=build))
    assert all(outlines)
